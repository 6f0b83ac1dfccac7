"""Drawing the next token of one sequence: llama.cpp's samplers in llama.cpp's order, or in the request's.

Biases and the grammar's mask come first, then the samplers, then the draw. Each token of the vocabulary has a random number of
its own at each place of the answer, made from the seed (Maddison et al., 2014: the largest sum of logit and Gumbel noise is
drawn as by the softmax). So what else runs beside a request changes nothing, and logits that differ by rounding rarely do.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.serve import dry, samplers
from stratakv.serve.samplers import Candidates, SamplingParams

Alternatives = tuple[tuple[int, float], ...]
_DRAW, _XTC = 0, 1  # what a random number is for


class Sampler:
    """Draws the tokens of one request. tokenizer: of the model, for DRY's sequence breakers; needed where dry_multiplier is set.

    candidates: after a draw, the tokens that it was made from, with their logits at the end of the samplers.
    """

    def __init__(self, params: SamplingParams, tokenizer: Any = None) -> None:
        self.params = params
        self.candidates: Candidates | None = None
        self._seed = secrets.randbits(64) if params.seed is None else params.seed
        self._drawn = 0
        self._chain = [name for name in params.samplers if params.active(name)]
        self._breakers = dry.find_breakers(tokenizer, params.dry_sequence_breakers) if "dry" in self._chain else {}
        # The best token stays the best, and is the only one that can be drawn
        self._greedy = (
            params.temperature == 0
            and params.dynatemp_range == 0
            and "temperature" in self._chain
            and not {"xtc", "typ_p", "penalties", "dry"} & set(self._chain)
        )

    def draw(self, logits: torch.Tensor, tokens: Sequence[int], mask: torch.Tensor | None = None) -> int:
        """The next token.

        logits: float32 [vocabulary], left as they are. tokens: prompt and answer so far. mask: boolean [vocabulary], True for
        what a grammar allows.
        """
        values = logits.numpy()  # numpy's passes over one row take a sixth of torch's, which wake its threads
        if self.params.logit_bias:
            values = values.copy()
            for token, bias in self.params.logit_bias.items():
                if token < len(values):
                    values[token] += bias
        if mask is not None:
            values = np.where(mask.numpy(), values, np.float32(-np.inf))
        best = int(values.argmax())
        if values[best] == -np.inf:
            raise ValueError("no token is allowed: grammar, logit_bias and ignore_eos leave none")
        self._drawn += 1
        if self._greedy:
            self.candidates = Candidates(np.array([best]), values[best : best + 1].copy(), True)
            return best
        found = Candidates(np.arange(len(values)), values)
        for name in self._chain:
            found = self._apply(name, found, tokens)
        self.candidates = found = found.kept(np.isfinite(found.logits))
        noise = -np.log(-np.log(self._uniform(_DRAW, found.ids)))
        return int(found.ids[np.argmax(found.logits + noise)])

    def drawn_from(self, token: int, count: int) -> tuple[float, Alternatives]:
        """As log_probabilities, of what the last token was drawn from."""
        assert self.candidates is not None
        found = self.candidates.best_first()
        logs = np.log(np.maximum(found.probabilities(), 1e-300))
        pairs = tuple(zip(found.ids[:count].tolist(), logs[:count].tolist(), strict=True))
        return float(logs[found.ids == token][0]), pairs

    def _apply(self, name: str, found: Candidates, tokens: Sequence[int]) -> Candidates:
        params = self.params
        if name == "penalties":
            return self._penalised(found, tokens)
        if name == "dry":
            return self._without_repetitions(found, tokens)
        if name == "xtc":
            chance = float(self._uniform(_XTC, np.zeros(1, dtype=np.int64))[0])
            return found if chance > params.xtc_probability else samplers.xtc(found, params.xtc_threshold)
        if name == "temperature":
            if params.dynatemp_range > 0:
                return samplers.dynamic_temperature(
                    found, params.temperature, params.dynatemp_range, params.dynatemp_exponent
                )
            return samplers.temperature(found, params.temperature)
        sampler, parameter = samplers.ONE_NUMBER[name]
        return sampler(found, getattr(params, parameter))

    def _penalised(self, found: Candidates, tokens: Sequence[int]) -> Candidates:
        params = self.params
        counts = Counter(tokens if params.repeat_last_n < 0 else tokens[-params.repeat_last_n :])
        places = _places(found, list(counts))
        times = np.array([counts[int(id_)] for id_ in found.ids[places]], dtype=np.float64)
        logits = found.logits.astype(np.float64)
        seen = logits[places]
        seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
        logits[places] = seen - times * params.frequency_penalty - params.presence_penalty
        return Candidates(found.ids, logits)

    def _without_repetitions(self, found: Candidates, tokens: Sequence[int]) -> Candidates:
        params = self.params
        last = params.dry_penalty_last_n
        costs = dry.penalties(
            tokens if last < 0 else tokens[-last:],
            self._breakers,
            multiplier=params.dry_multiplier,
            base=params.dry_base,
            allowed=params.dry_allowed_length,
        )
        if not costs:
            return found
        places = _places(found, list(costs))
        logits = found.logits.astype(np.float64)
        logits[places] -= np.array([costs[int(id_)] for id_ in found.ids[places]])
        return Candidates(found.ids, logits)

    def _uniform(self, purpose: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """A number above 0 and below 1 for each token, by the seed, the place in the answer, and what it is for."""
        key = _mix(np.array([self._seed], dtype=np.uint64))
        key = _mix(key + np.array([2 * self._drawn + purpose], dtype=np.uint64))
        return ((_mix(key + ids.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def log_probabilities(logits: torch.Tensor, token: int, count: int) -> tuple[float, Alternatives]:
    """Natural logarithm of a token's probability, and the `count` most likely tokens with theirs, best first."""
    logs = torch.log_softmax(logits, dim=-1)
    best, ids = torch.topk(logs, count) if count else (logs[:0], logs[:0])
    return float(logs[token]), tuple(zip(map(int, ids.tolist()), best.tolist(), strict=True))


def _places(found: Candidates, ids: list[int]) -> NDArray[np.int64]:
    """Where these tokens are among the candidates, those that are."""
    return np.flatnonzero(np.isin(found.ids, ids))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's output function (Steele et al., 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
