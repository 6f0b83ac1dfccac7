"""The transformers cache of one step: its layers write into pages and give handles back."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from stratakv.engine.cache.handle import handles
from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.kernel import CannotStoreError
from stratakv.kernels.placing import Placed, PlacingLayer
from stratakv.kernels.step import Step
from stratakv.pages.pool import Pool


class StepLayer(CacheLayerMixin, PlacingLayer):
    """One layer: `step` is set before each forward call."""

    step: Step
    ragged = True

    def __init__(self, name: str, pool: Pool) -> None:
        CacheLayerMixin.__init__(self)
        self.name, self.pool = name, pool
        self.kernel = kernel_for(pool.layout, pool.device)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: pages are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the states [1, kv_heads, tokens of the step, head_dim]; UserError where they can't be."""
        try:
            key, value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
            self.kernel.append(self.pool, key, value, self.step.slots)
        except CannotStoreError as error:
            raise self.refusal(error.side, error) from error
        return handles(Placed(self.pool, self.step, self.kernel), key_states.dtype)

    def place(self, batch: int, tokens: int) -> Placed | None:
        """See PlacingLayer."""
        if batch != 1 or tokens != len(self.step.slots):
            return None
        return Placed(self.pool, self.step, self.kernel)

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
