"""The transformers cache of one step: its layers write into pages and give handles back."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from stratakv.engine.cache.handle import handles
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.placing import Placed, PlacingLayer
from stratakv.kernels.step import Step
from stratakv.pages.pool import Pool


class StepLayer(CacheLayerMixin, PlacingLayer):
    """One layer: `step` is set before each forward call. status: what it couldn't store, as `Kernel.append` writes it."""

    step: Step
    ragged = True

    def __init__(self, pool: Pool, status: torch.Tensor) -> None:
        CacheLayerMixin.__init__(self)
        self.pool, self.status = pool, status
        self.kernel = kernel_for(pool.layout, pool.device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: pages are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the states [1, kv_heads, tokens of the step, head_dim]."""
        key, value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        self.kernel.append(self.pool, key, value, self.step.slots, self.status)
        return handles(self._placed(), key_states.dtype)

    def place(self, batch: int, tokens: int) -> Placed | None:
        """See PlacingLayer."""
        return self._placed() if batch == 1 and tokens == len(self.step.slots) else None

    def stored(self, tokens: int) -> None:
        """Nothing to do: lengths are the sequences' affair."""

    def _placed(self) -> Placed:
        return Placed(self.pool, self.step, self.kernel, self.status)

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
