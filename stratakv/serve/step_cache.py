"""The transformers cache of one step: its layers write into pages and give handles back."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from stratakv.cache.placed import Placed, PlacingLayer
from stratakv.cache.ragged import RaggedStates, RaggedStep
from stratakv.errors import UserError
from stratakv.kernels import ragged
from stratakv.kernels.choice import compiled_kernel
from stratakv.kernels.cpu_encode import CannotStoreError
from stratakv.kernels.cpu_layout import native_layout
from stratakv.pages.pool import Pool


class StepLayer(CacheLayerMixin, PlacingLayer):
    """One layer: `step` is set before each forward call."""

    step: RaggedStep
    ragged = True

    def __init__(self, name: str, arena: Pool) -> None:
        CacheLayerMixin.__init__(self)
        self.name, self.arena = name, arena
        layout = arena.layout
        self._base, self._stride = arena.pool.data_ptr(), layout.page_bytes
        self._compiled = native_layout(layout) if compiled_kernel(layout, arena.device) else None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: pages are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the states [1, kv_heads, tokens of the step, head_dim]; UserError where they can't be."""
        try:
            key, value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
            ragged.append(key, value, self.arena.layout, self.arena.pool, self.step.slots)
        except CannotStoreError as error:
            raise self.refusal(error.side, error) from error
        dtype = key_states.dtype
        return (
            RaggedStates(self.arena, self.step, "k", dtype),
            RaggedStates(self.arena, self.step, "v", dtype),
        )

    def place(self, batch: int, tokens: int) -> Placed | None:
        """See PlacingLayer; long chunks of prompts are attended in a way of their own."""
        step = self.step
        sequences = step.sequences
        if self._compiled is None or sequences.decoding is None or batch != 1 or tokens != len(step.slots):
            return None
        arrays, addresses = step.seen
        addresses = (self._base, self._stride, *addresses)
        return Placed(self.arena.layout, self._compiled, len(sequences), sequences.decoding, addresses, arrays)

    def stored(self, tokens: int) -> None:
        """Nothing to do: lengths are the sequences' affair."""

    def refusal(self, side: str, error: ValueError) -> UserError:
        """See PlacingLayer."""
        return UserError(f"{self.name}, {side}: {error} (the model's own states)")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Not used: masks are the block tables' affair."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Zero: positions are given."""
        return 0

    def get_max_length(self) -> int:
        """No maximum."""
        return -1


def step_cache(layers: list[StepLayer | None]) -> Cache:
    """The model's layers in order, None where a layer has no cache of its own."""
    return Cache(layers=[layer or DummyLayer() for layer in layers])
