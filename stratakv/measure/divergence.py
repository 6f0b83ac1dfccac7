"""How far predictions are from the reference's, token by token, in float64.

Differences of float32 log-probabilities carry rounding noise near 1e-6, as large as the divergence of a good 8-bit cache.
So the logits, whatever they were computed in, are taken as exact and everything after them is float64. Nothing is clamped:
equal logits give exactly 0, and a value below 0 by more than float64's rounding (1e-12) would be a fault, which raises.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float64]

_VALUES_AT_ONCE = 1 << 22  # 32 MiB of float64
_ROUNDING = 1e-12


class Divergence(NamedTuple):
    """kld: float64 [n], nats, KL(reference || measured). agree: bool [n], the same most likely token."""

    kld: Floats
    agree: npt.NDArray[np.bool_]


def negative_log_likelihood(logits: torch.Tensor, targets: torch.Tensor) -> Floats:
    """-log p(target) in nats, [n] float64, of logits [n, vocab] (any float dtype) and targets int64 [n].

    Raises FloatingPointError when it is not finite: a broken prediction is never averaged away.
    """
    parts = []
    for rows, wanted in zip(_slices(logits), _slices(targets, logits), strict=True):
        rows = rows.double()
        parts.append(rows.logsumexp(-1) - rows.gather(-1, wanted[:, None])[:, 0])
    return _finite(torch.cat(parts), "negative log-likelihood")


def divergence(reference: torch.Tensor, measured: torch.Tensor) -> Divergence:
    """KL divergence and top-1 agreement of two sets of logits [n, vocab] (any float dtype, -inf allowed where both have it).

    Raises FloatingPointError when a divergence is not finite, or negative beyond float64's rounding.
    """
    klds, agree = [], []
    for left, right in zip(_slices(reference), _slices(measured), strict=True):
        left, right = left.double(), right.double()
        log_p = left.log_softmax(-1)
        p = log_p.exp()
        # where p is 0 the term is 0 by definition; computed it would be 0 * (-inf - -inf)
        klds.append((p * (log_p - right.log_softmax(-1))).masked_fill(p == 0, 0.0).sum(-1))
        agree.append(left.argmax(-1) == right.argmax(-1))
    kld = _finite(torch.cat(klds), "KL divergence")
    if kld.min(initial=0.0) < -_ROUNDING:
        raise FloatingPointError(f"KL divergence {kld.min()} is negative beyond rounding")
    return Divergence(kld, torch.cat(agree).cpu().numpy())


def _slices(x: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    rows = max(1, _VALUES_AT_ONCE // (x if like is None else like).shape[-1])
    return torch.split(x, rows)


def _finite(x: torch.Tensor, what: str) -> Floats:
    values: Floats = x.cpu().numpy()
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{what} is not finite in {(~np.isfinite(values)).sum()} of {len(values)} predictions")
    return values
