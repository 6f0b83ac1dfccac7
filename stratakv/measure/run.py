"""The measuring loop: contexts outside, profiles inside. All read a context in step, piece by piece.

So the reference's logits are held for one piece: 512 tokens of 262,144 words are half a GiB, 16,384 would be 16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.heap import Heap
from stratakv.measure.corpus import Contexts
from stratakv.measure.divergence import Floats, Predictions, negative_log_likelihood, predictions
from stratakv.measure.forward import Reading
from stratakv.profile import Profile, resolve

BASELINE = "f16"
_SPARE = 1 << 30  # bytes of freed memory that the heap may keep between pieces

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
    shape = len(contexts.ids), contexts.scored
    grown = [_Growing(*shape, against) for _ in profiles]
    reference = _Growing(*shape, False)
    total, done, read = len(contexts.ids) * (len(profiles) + against), 0, 0
    heap = Heap(_SPARE)  # the caches of waiting profiles lie between a piece's temporaries: 6 GiB for 46 of them
    for index, ids in enumerate(contexts.ids):
        targets = ids[contexts.first + 1 :].to(loaded.model.device)
        runs = [*([(baseline, reference)] if against else []), *zip(profiles, grown, strict=True)]
        walks = [_Walk(loaded, profile, ids, batch, contexts, into, index) for profile, into in runs]
        at = 0
        while at < contexts.scored:
            expected: Predictions | None = None
            for walk in walks:
                piece = walk.score(at, targets, expected)
                heap.trim()
                if expected is None and against:
                    expected = piece
                read += len(piece.logits)
                if read // contexts.scored > done:
                    progress(done := read // contexts.scored, total)
            at += len(piece.logits)
    scores = [each.scores() for each in grown]
    return (reference.scores() if against else scores[0]), scores


class _Walk:
    """One profile's way through one context, and where its scores go."""

    def __init__(
        self,
        loaded: LoadedModel,
        profile: Profile,
        ids: torch.Tensor,
        batch: int,
        contexts: Contexts,
        into: _Growing,
        index: int,
    ) -> None:
        self._profile, self._into, self._index = profile, into, index
        self._reading = Reading(loaded, profile, ids, batch, contexts.first)
        self._pieces = iter(self._reading)

    def score(self, at: int, targets: torch.Tensor, reference: Predictions | None) -> Predictions:
        """Read the next piece, add its scores, return it.

        at: scored predictions before it. targets: int64 [scored]. reference: the f16 cache's predictions of this piece.
        """
        started, into = time.perf_counter(), self._into
        try:
            logits = next(self._pieces)
            here = slice(at, at + len(logits))
            found = predictions(logits, reference)
            into.nll[self._index, here] = negative_log_likelihood(found, targets[here])
            if reference is not None and into.kld is not None and into.agree is not None:
                into.kld[self._index, here], into.agree[self._index, here] = found.kld, found.top == reference.top
        except UserError as error:
            raise UserError(f"profile {self._profile.name}, context {self._index}: {error}") from error
        except FloatingPointError as error:
            raise UserError(
                f"profile {self._profile.name}, context {self._index}: {error}; if --dtype is not f32, try --dtype f32"
            ) from error
        into.allocated = self._reading.allocated
        into.seconds += time.perf_counter() - started
        return found
