"""Planted faults: what a measurement has to find."""

from __future__ import annotations

import torch

from stratakv.engine.load import LoadedModel
from stratakv.measure.forward import Pass, context_logits
from stratakv.profile import Profile

KEPT = 128


def forgetful_logits(
    loaded: LoadedModel, profile: Profile, ids: torch.Tensor, batch: int, first: int | None = None
) -> Pass:
    """`context_logits` with a cache that keeps the last 128 to 255 tokens and forgets all others; f16's forgets nothing."""
    if all(pair == ("f16", "f16") for pair in profile.pairs):
        return context_logits(loaded, profile, ids, batch, first)
    last = len(ids) - 1
    start = len(ids) // 2 if first is None else first
    parts = []
    for at in range(start, last, KEPT):
        begin = max(0, at - KEPT)
        parts.append(context_logits(loaded, profile, ids[begin : min(at + KEPT, last) + 1], batch, at - begin).logits)
    return Pass(torch.cat(parts), profile.bytes_at(len(ids)))
