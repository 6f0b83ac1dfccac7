"""One context through a packed cache: what is measured is what serving does."""

from __future__ import annotations

import inspect
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


def context_logits(
    loaded: LoadedModel, profile: Profile, ids: torch.Tensor, batch: int, first: int | None = None
) -> Pass:
    """Feed a context in pieces of `batch` tokens through a fresh cache and return the scored predictions.

    ids: int64 [context]. first: position of the first scored prediction, None for half a context.

    Every piece's K and V are encoded into the cache's pages first, and attention reads them from
    there, the piece's own included. All tokens are fed, the last one too, so that the cache holds a whole context. A model that
    doesn't read pieces right (`LoadedModel.reads_in_pieces`) gets the context whole.
    """
    model: Any = loaded.model
    cache = KVCache(model.config, profile)
    context, last = len(ids), len(ids) - 1
    first = context // 2 if first is None else first  # predictions at [first, last) are scored
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    kept = []
    if context > batch and not loaded.reads_in_pieces:
        batch = context
    with torch.inference_mode():
        for start in range(0, context, batch):
            end = min(start + batch, context)
            wanted = max(0, end - max(start, first))
            # 0 would mean all; the head of a large vocabulary costs more than a layer
            arguments = {"logits_to_keep": max(1, wanted)} if keeps else {}
            piece = ids[None, start:end].to(model.device)
            logits = model(input_ids=piece, past_key_values=cache, use_cache=True, **arguments).logits[0]
            if wanted:
                kept.append(
                    logits[len(logits) - wanted : len(logits) - wanted + max(0, last - max(start, first))].float()
                )
    return Pass(torch.cat(kept), cache.nbytes())
