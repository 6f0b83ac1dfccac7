"""The transformers cache of one step: its layers write into pages and give handles back."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer

from stratakv.engine.cache.handle import handles
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.placing import Placed, PlacingLayer, Sealed
from stratakv.kernels.spans import Seen
from stratakv.pages.pool import Pool


class StepLayer(CacheLayerMixin, PlacingLayer):
    """One layer: `seen` is set before each forward call. status, sealed_status: what it couldn't store, as `Kernel.append` writes
    it, and what couldn't be sealed.

    sealed: the pool of sealed pages of a layer with spans. within: its pages, and their numbers there, that this step fills and
    its own later queries see sealed.
    """

    seen: Seen
    ragged = True

    def __init__(self, pool: Pool, status: torch.Tensor, sealed: Pool | None, sealed_status: torch.Tensor) -> None:
        CacheLayerMixin.__init__(self)
        self.pool, self.status, self.sealed, self.sealed_status = pool, status, sealed, sealed_status
        self.kernel = kernel_for(pool.layout, pool.device)
        self.sealed_kernel = self.kernel if sealed is None else kernel_for(sealed.layout, sealed.device)
        self.within: list[tuple[int, int]] = []
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: pages are there from the start."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the states [1, kv_heads, tokens of the step, head_dim]."""
        key, value = key_states[0].transpose(0, 1), value_states[0].transpose(0, 1)
        self.kernel.append(self.pool, key, value, self.seen.fine.slots, self.status)
        self.seal(self.within)
        return handles(self._placed(), key_states.dtype)

    def place(self, batch: int, tokens: int) -> Placed | None:
        """See PlacingLayer."""
        unseen = self.within and self.seen.sealed is None
        return self._placed() if batch == 1 and tokens == len(self.seen.fine.slots) and not unseen else None

    def stored(self, tokens: int) -> None:
        """Nothing to do: lengths are the sequences' affair."""

    def seal(self, pages: list[tuple[int, int]]) -> None:
        """Pages become sealed ones: pairs of numbers."""
        if pages:
            assert self.sealed is not None
            self.sealed_kernel.convert(self.pool, self.sealed, pages, self.sealed_status)

    def _placed(self) -> Placed:
        part = None
        if self.seen.sealed is not None:
            assert self.sealed is not None
            part = Sealed(self.sealed, self.seen.sealed, self.sealed_kernel, self.sealed_status, self.within)
        return Placed(self.pool, self.seen.fine, self.kernel, self.status, part)

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
