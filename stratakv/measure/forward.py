"""One context through a packed cache: what is measured is what serving does."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from stratakv.engine.cache import KVCache
from stratakv.engine.load import LoadedModel
from stratakv.profile import Profile


class Pass(NamedTuple):
    """logits: float32 [scored, vocab], row i predicts the token at position first + 1 + i. allocated: the cache's bytes
    after the whole context."""

    logits: torch.Tensor
    allocated: int


class Reading:
    """A context on its way through a fresh packed cache, in pieces of `batch` tokens; to be iterated over once.

    Every piece's K and V are encoded into the cache's pages first, and attention reads them from
    there, the piece's own included. All tokens are fed, the last one too, so that the cache holds a whole context. A model that
    doesn't read pieces right (`LoadedModel.reads_in_pieces`) gets the context whole.

    ids: int64 [context]. first: position of the first scored prediction, None for half a context. allocated: the cache's
    bytes, of a whole context once all pieces are through.
    """

    def __init__(
        self, loaded: LoadedModel, profile: Profile, ids: torch.Tensor, batch: int, first: int | None = None
    ) -> None:
        self._loaded, self._profile, self._ids = loaded, profile, ids
        self._batch = batch if loaded.reads_in_pieces else max(batch, len(ids))
        self._first = len(ids) // 2 if first is None else first
        self.allocated = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Logits of the scored predictions of each piece that has any, float32 [n, vocab]."""
        model: Any = self._loaded.model
        cache = KVCache(model.config, self._profile)
        context, last = len(self._ids), len(self._ids) - 1  # predictions at [first, last) are scored
        keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        for start in range(0, context, self._batch):
            end, begin = min(start + self._batch, context), max(start, self._first)
            wanted = max(0, end - begin)
            # 0 would mean all; the head of a large vocabulary costs more than a layer
            arguments = {"logits_to_keep": max(1, wanted)} if keeps else {}
            piece = self._ids[None, start:end].to(model.device)
            with torch.inference_mode():
                logits = model(input_ids=piece, past_key_values=cache, use_cache=True, **arguments).logits[0]
                scored = [logits[len(logits) - wanted :][: max(0, last - begin)].float()]
            del logits  # what waits here holds no piece: of 60 profiles on a vocabulary of 262,144 that was 16 GiB
            self.allocated = cache.nbytes()
            if end == context:
                del cache  # others may still be at this piece
            if len(scored[0]):
                yield scored.pop()


def context_logits(
    loaded: LoadedModel, profile: Profile, ids: torch.Tensor, batch: int, first: int | None = None
) -> Pass:
    """All scored predictions of a context at once, as `Reading` gives them."""
    reading = Reading(loaded, profile, ids, batch, first)
    with torch.inference_mode():
        return Pass(torch.cat(list(reading)), reading.allocated)
