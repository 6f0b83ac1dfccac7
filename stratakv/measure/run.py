"""The measuring loop: contexts outside, profiles inside, the reference's logits held for one context at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.measure.corpus import Contexts
from stratakv.measure.divergence import Floats, divergence, negative_log_likelihood
from stratakv.measure.forward import context_logits
from stratakv.profile import Profile, resolve

BASELINE = "f16"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scores:
    """What one profile did, token by token.

    nll, kld: float64 [contexts, scored], nats; agree: bool, the same shape. kld and agree are None when no reference ran.
    allocated: bytes of the cache after a whole context. seconds: the profile's forward passes and scoring.
    """

    nll: Floats
    kld: Floats | None
    agree: npt.NDArray[np.bool_] | None
    allocated: int
    seconds: float


class _Growing:
    """Scores that fill up, in arrays made at the start: small results kept between large temporaries would leave holes in
    the heap that nothing fits into (measured: 9 GiB after 1,500 passes)."""

    def __init__(self, contexts: int, scored: int, against: bool) -> None:
        self.nll = np.empty((contexts, scored))
        self.kld = np.empty((contexts, scored)) if against else None
        self.agree = np.empty((contexts, scored), dtype=np.bool_) if against else None
        self.allocated = 0
        self.seconds = 0.0

    def scores(self) -> Scores:
        return Scores(self.nll, self.kld, self.agree, self.allocated, self.seconds)


def measure(
    loaded: LoadedModel,
    contexts: Contexts,
    profiles: Sequence[Profile],
    *,
    batch: int,
    against: bool = True,
    progress: Progress = lambda done, total: None,
) -> tuple[Scores, list[Scores]]:
    """Score the f16 cache and every profile on the same contexts: (baseline, one Scores a profile).

    The baseline's logits of a context are computed once and every profile is compared with them; an f16 profile among
    `profiles` runs again through a cache of its own. batch: tokens a forward call. against: False leaves the reference out,
    the baseline returned is then the first profile. progress: called with (passes done, passes in all) after each pass.
    Raises UserError when the model's predictions are not finite.
    """
    if batch < 1:
        raise UserError(f"-b {batch}: at least 1 token a forward call")
    baseline = resolve(BASELINE, loaded.geometry)
    first = contexts.first
    shape = len(contexts.ids), contexts.scored
    grown = [_Growing(*shape, against) for _ in profiles]
    reference = _Growing(*shape, False)
    total = len(contexts.ids) * (len(profiles) + against)
    done = 0
    for index, ids in enumerate(contexts.ids):
        targets = ids[first + 1 :].to(loaded.model.device)
        logits: torch.Tensor | None = None
        if against:
            logits = _score(loaded, baseline, ids, first, targets, batch, None, reference, index)
            progress(done := done + 1, total)
        for profile, into in zip(profiles, grown, strict=True):
            _score(loaded, profile, ids, first, targets, batch, logits, into, index)
            progress(done := done + 1, total)
    scores = [each.scores() for each in grown]
    return (reference.scores() if against else scores[0]), scores


def _score(
    loaded: LoadedModel,
    profile: Profile,
    ids: torch.Tensor,
    first: int,
    targets: torch.Tensor,
    batch: int,
    reference: torch.Tensor | None,
    into: _Growing,
    index: int,
) -> torch.Tensor:
    """Run one context with one profile, add its scores, return its logits."""
    started = time.perf_counter()
    try:
        logits, into.allocated = context_logits(loaded, profile, ids, batch, first)
        into.nll[index] = negative_log_likelihood(logits, targets)
        if reference is not None and into.kld is not None and into.agree is not None:
            into.kld[index], into.agree[index] = divergence(reference, logits)
    except UserError as error:
        raise UserError(f"profile {profile.name}, context {index}: {error}") from error
    except FloatingPointError as error:
        raise UserError(
            f"profile {profile.name}, context {index}: {error}; if --dtype is not f32, try --dtype f32"
        ) from error
    into.seconds += time.perf_counter() - started
    return logits
