"""Drawing the next token of one sequence: llama.cpp's samplers in llama.cpp's order, a random stream for each request.

Penalties and biases, then the grammar's mask, then top-k, top-p, min-p, then temperature and the draw. The n-th token of a
request is drawn with the n-th number of its own stream: what else runs beside it changes nothing.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch

from stratakv.serve.request import SamplingParams

Alternatives = tuple[tuple[int, float], ...]


class Sampler:
    """Draws the tokens of one request."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._random = np.random.Generator(
            np.random.Philox(secrets.randbits(64) if params.seed is None else params.seed)
        )
        self._penalised = (
            params.repeat_last_n != 0
            and (params.repeat_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)
        )  # fmt: skip
        self.plain = not self._penalised and not params.logit_bias

    def draw(self, logits: torch.Tensor, tokens: Sequence[int], mask: torch.Tensor | None = None) -> int:
        """The next token.

        logits: float32 [vocabulary], left as they are. tokens: prompt and answer so far. mask: boolean [vocabulary], True for
        what a grammar allows.
        """
        if not self.plain:
            logits = self._adjusted(logits.clone(), tokens)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        if self.params.temperature == 0:
            return int(logits.argmax())
        return self._random_draw(logits)

    def _adjusted(self, logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        params = self.params
        if self._penalised:
            window = tokens if params.repeat_last_n < 0 else tokens[-params.repeat_last_n :]
            counts = Counter(window)
            ids = torch.tensor(list(counts), dtype=torch.long)
            times = torch.tensor(list(counts.values()), dtype=torch.float32)
            seen = logits[ids]
            seen = torch.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
            logits[ids] = seen - times * params.frequency_penalty - params.presence_penalty
        for token, bias in params.logit_bias.items():
            if token < len(logits):
                logits[token] += bias
        return logits

    def _random_draw(self, logits: torch.Tensor) -> int:
        params = self.params
        count = min(params.top_k or len(logits), len(logits))
        best, ids = torch.topk(logits, count)  # sorted, best first
        values = best.double().numpy()
        values = values[: int(np.isfinite(values).sum())]
        if not len(values):
            raise ValueError("no token is allowed: grammar, logit_bias and ignore_eos leave none")
        if params.top_p < 1:
            cumulative = np.cumsum(_softmax(values))
            values = values[: int(np.searchsorted(cumulative, params.top_p)) + 1]
        if params.min_p > 0:
            values = values[values >= values[0] + np.log(params.min_p)]
        cumulative = np.cumsum(_softmax(values / params.temperature))
        chosen = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[min(chosen, len(values) - 1)])


def log_probabilities(logits: torch.Tensor, token: int, count: int) -> tuple[float, Alternatives]:
    """Natural logarithm of a token's probability, and the `count` most likely tokens with theirs, best first."""
    logs = torch.log_softmax(logits, dim=-1)
    best, ids = torch.topk(logs, count) if count else (logs[:0], logs[:0])
    return float(logs[token]), tuple(zip(map(int, ids.tolist()), best.tolist(), strict=True))


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    total: np.ndarray = weights / weights.sum()
    return total
