"""How far predictions are from the reference's, token by token, in float64.

Differences of float32 log-probabilities carry rounding noise near 1e-6, as large as the divergence of a good 8-bit cache.
So the logits, whatever they were computed in, are taken as exact and everything after them is float64. Nothing is clamped:
equal logits give exactly 0, and a value below 0 by more than float64's rounding (1e-12) would be a fault, which raises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stratakv.kernels.native import native

Floats = npt.NDArray[np.float64]

_VALUES_AT_ONCE = 1 << 22  # 32 MiB of float64
_ROUNDING = 1e-12
_SCORER = ""  # of the compiled ones the fastest


class Predictions(NamedTuple):
    """Logits, and what is compared of each row.

    logits: [n, vocab], any float dtype. logsumexp: float64 [n], the logits' less it are log-probabilities. top: int64 [n], the
    most likely token. kld: float64 [n], nats, KL(reference || these), None without a reference.
    """

    logits: torch.Tensor
    logsumexp: Floats
    top: npt.NDArray[np.int64]
    kld: Floats | None


def predictions(logits: torch.Tensor, reference: Predictions | None = None) -> Predictions:
    """Score logits [n, vocab] (any float dtype; -inf is allowed, with a reference where both have it).

    KLD is sum(p (log p - log q)), with p the reference's probabilities. Terms are 0 where p is (below 1e-307). One compiled pass
    over float32 on a CPU, torch else. Raises FloatingPointError where a row's predictions or divergence are not finite, or a
    divergence is negative beyond float64's rounding.
    """
    others = () if reference is None else (reference.logits,)
    compiled = native() is not None and all(_readable(each) for each in (logits, *others))
    found = _compiled(logits, reference) if compiled else _in_torch(logits, reference)
    _finite(found.logsumexp, "negative log-likelihood")
    if found.kld is not None:
        _finite(found.kld, "KL divergence")
        if found.kld.min(initial=0.0) < -_ROUNDING:
            raise FloatingPointError(f"KL divergence {found.kld.min()} is negative beyond rounding")
    return found


def negative_log_likelihood(found: Predictions, targets: torch.Tensor) -> Floats:
    """-log p(target) in nats, [n] float64, of targets int64 [n]. Raises FloatingPointError where it is not finite: a broken
    prediction is never averaged away."""
    wanted: Floats = found.logits.gather(-1, targets[:, None])[:, 0].double().cpu().numpy()
    return _finite(found.logsumexp - wanted, "negative log-likelihood")


def _readable(x: torch.Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()


def _compiled(logits: torch.Tensor, reference: Predictions | None) -> Predictions:
    module: Any = native()
    rows = len(logits)
    found = Predictions(
        logits, np.empty(rows), np.empty(rows, dtype=np.int64), None if reference is None else np.empty(rows)
    )
    module.score(
        logits.data_ptr(),
        *logits.shape,
        found.logsumexp.ctypes.data,
        found.top.ctypes.data,
        0 if reference is None else reference.logits.data_ptr(),
        0 if reference is None else reference.logsumexp.ctypes.data,
        0 if found.kld is None else found.kld.ctypes.data,
        _SCORER,
        torch.get_num_threads(),
    )
    return found


def _in_torch(logits: torch.Tensor, reference: Predictions | None) -> Predictions:
    count = max(1, _VALUES_AT_ONCE // logits.shape[-1])
    sums, tops, klds = [], [], []
    for first in range(0, len(logits), count):
        here = slice(first, first + count)
        rows = logits[here].double()
        sums.append(rows.logsumexp(-1))
        tops.append(rows.argmax(-1))
        if reference is not None:
            log_p = reference.logits[here].double()
            difference = log_p - rows
            log_p -= torch.from_numpy(reference.logsumexp[here, None]).to(log_p.device)
            p = log_p.exp_()
            # where p is 0 the term is 0 by definition; computed it would be 0 * (-inf - -inf)
            klds.append((p * difference).masked_fill(p == 0, 0.0).sum(-1))
    logsumexp: Floats = torch.cat(sums).cpu().numpy()
    kld = None
    if reference is not None:
        with np.errstate(invalid="ignore"):  # what is not finite is reported
            kld = torch.cat(klds).cpu().numpy() + (logsumexp - reference.logsumexp)
    return Predictions(logits, logsumexp, torch.cat(tops).cpu().numpy(), kld)


def _finite(values: Floats, what: str) -> Floats:
    if not np.isfinite(values).all():
        raise FloatingPointError(f"{what} is not finite in {(~np.isfinite(values)).sum()} of {len(values)} predictions")
    return values
