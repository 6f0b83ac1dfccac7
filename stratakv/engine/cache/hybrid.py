"""Layers that hold linear-attention states and attention at once (Falcon-H1): attention packed, the states left alone.

The ignored type errors are transformers' own: its two bases declare `is_croppable`, `dtype` and `device` differently.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.cache_utils import (
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from stratakv.engine.cache.layers import PackedLayer, PackedSlidingLayer, packs
from stratakv.engine.cache.sealing import Seals
from stratakv.engine.cache.steps import Steps
from stratakv.kvtypes import KVType


class _BothStates(LinearAttentionLayer, PackedLayer):  # type: ignore[override,misc]
    """Every operation on both halves; the two `lazy_initialization` differ by their arguments, as in transformers."""

    is_compileable = False

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        if args:
            PackedLayer.lazy_initialization(self, *args)
        else:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)

    def offload(self) -> None:
        LinearAttentionLayer.offload(self)

    def prefetch(self) -> None:
        LinearAttentionLayer.prefetch(self)

    def reset(self) -> None:
        LinearAttentionLayer.reset(self)
        PackedLayer.reset(self)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        LinearAttentionLayer.reorder_cache(self, cast(torch.LongTensor, beam_idx))
        PackedLayer.reorder_cache(self, beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        LinearAttentionLayer.crop(self, tokens_to_remove)
        self._attention_class().crop(self, tokens_to_remove)

    @staticmethod
    def _attention_class() -> type[PackedLayer]:
        return PackedLayer

    def get_max_length(self) -> int:
        return self._attention_class().get_max_length(self)


@packs("hybrid")
class PackedHybridLayer(_BothStates, LinearAttentionAndFullAttentionLayer):  # type: ignore[override,misc]
    """Linear-attention states beside full attention."""

    def __init__(
        self,
        name: str,
        k: KVType,
        v: KVType,
        number_of_states: int = 1,
        *,
        steps: Steps | None = None,
        seals: Seals | None = None,
    ) -> None:
        PackedLayer.__init__(self, name, k, v, steps=steps, seals=seals)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)


@packs("hybrid_sliding")
class PackedHybridSlidingLayer(  # type: ignore[override,misc]
    _BothStates, PackedSlidingLayer, LinearAttentionAndSlidingWindowAttentionLayer
):
    """Linear-attention states beside sliding-window attention."""

    def __init__(
        self,
        name: str,
        k: KVType,
        v: KVType,
        sliding_window: int,
        number_of_states: int = 1,
        *,
        steps: Steps | None = None,
        seals: Seals | None = None,
    ) -> None:
        PackedSlidingLayer.__init__(self, name, k, v, sliding_window, steps=steps, seals=seals)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    @staticmethod
    def _attention_class() -> type[PackedLayer]:
        return PackedSlidingLayer
