"""One class a kind of attention layer, each a transformers cache layer over packed pages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import CacheLayerMixin, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from stratakv.engine.cache.handle import handles
from stratakv.engine.cache.steps import Steps
from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.kernel import Kernel
from stratakv.kernels.placing import Placed, PlacingLayer
from stratakv.kvtypes import KVType
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import GrowingPool


class PackedLayer(DynamicLayer, PlacingLayer):
    """A layer that keeps every token.

    name: how errors call the layer. k, v: the types of its K and V. steps: what the layers of a cache share. All sequences of a
    batch are equally long (padding included), as everywhere in transformers.
    """

    pool: GrowingPool
    kernel: Kernel
    status: torch.Tensor

    def __init__(self, name: str, k: KVType, v: KVType, *, steps: Steps | None = None) -> None:
        CacheLayerMixin.__init__(self)
        self.name, self.k_type, self.v_type = name, k, v
        self.pages = PageAllocator()
        self.tables: list[list[int]] = []
        self.length = 0
        self.dropped = 0  # tokens of whole pages before the tables' first page
        self._steps = steps or Steps()
        self.number = self._steps.status.add(name, k, v)
        self._numbers: NDArray[np.int64] | None = None  # the tables, [sequences, pages]; None when they have changed

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        return self.pages.used * self.pool.layout.page_bytes if self.is_initialized else 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the pool from the first states' shapes [batch, kv_heads, tokens, head_dim]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        if key_states.shape[1] != value_states.shape[1]:
            raise UserError(
                f"{self.name}: {key_states.shape[1]} K heads but {value_states.shape[1]} V heads; pages hold equally many"
            )
        k_dim, v_dim = key_states.shape[-1], value_states.shape[-1]
        self.k_type.check(k_dim)
        self.v_type.check(v_dim)
        layout = PageLayout(self.k_type, self.v_type, k_dim, v_dim, key_states.shape[1])
        self.kernel = kernel_for(layout, self.device)
        self.pool = GrowingPool(layout, self.device)
        self.status = self._steps.status.of(self.number, self.device)
        self.tables = [[] for _ in range(key_states.shape[0])]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states to the pages; handles on all visible tokens come back.

        key_states, value_states: [batch, kv_heads, tokens, head_dim], after RoPE; nothing keeps a reference to them. The last
        layer's update ends the step: UserError, and a cache as it was before the step, where a layer's states were inf, nan or
        too large for its types.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, heads, tokens, _ = key_states.shape
        if batch != len(self.tables):
            raise ValueError(f"{self.name} holds {len(self.tables)} sequences, {batch} were given")
        placed = self._place(tokens)
        k, v = (
            x.squeeze(2) if tokens == 1 else x.transpose(1, 2).reshape(-1, heads, x.shape[3])
            for x in (key_states, value_states)
        )
        self.kernel.append(self.pool, k, v, placed.step.slots, self.status)
        self.stored(tokens)
        return handles(placed, self.dtype)

    def place(self, batch: int, tokens: int) -> Placed | None:
        """See PlacingLayer."""
        return self._place(tokens) if self.is_initialized and batch == len(self.tables) else None

    def stored(self, tokens: int) -> None:
        """See PlacingLayer."""
        self.length += tokens
        self._steps.stored(self, tokens)

    @property
    def _window(self) -> int | None:
        return None

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens (a negative number, as in transformers) and free their pages."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes a negative number of tokens to remove, {tokens_to_remove} was given")
        self._steps.end()
        self.length = max(0, self.length + tokens_to_remove)
        keep = -(-(self.length - self.dropped) // PAGE_TOKENS)
        self._numbers = None
        for table in self.tables:
            while len(table) > keep:
                self.pages.release(table.pop())

    def reset(self) -> None:
        """Free all pages, and their memory."""
        self._steps.forget()
        self.tables, self.length, self.dropped, self._numbers = [], 0, 0, None
        self.pages = PageAllocator()
        if self.is_initialized:
            del self.pool
        self.is_initialized = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Sequence i becomes what sequence beam_idx[i] was; pages are shared, not copied."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence `repeats` times, pages shared."""
        self._take([index for index in range(len(self.tables)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences (indices, or a boolean mask over the batch), pages shared."""
        chosen = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        self._take([int(index) for index in chosen])

    def offload(self) -> None:
        """Pages stay where they are: moving packed bytes back and forth costs more than it saves."""

    def prefetch(self) -> None:
        """Nothing to bring back, see offload."""

    def _place(self, tokens: int) -> Placed:
        """Room for so many tokens more of each sequence, in pages of its own."""
        self._steps.begin(self)
        start = self.length - self.dropped
        first, end = start // PAGE_TOKENS, -(-(start + tokens) // PAGE_TOKENS)
        for table in self.tables:
            if len(table) < end or any(self.pages.shared(page) for page in table[first:]):
                self._make_room(table, first, end)
        if self._numbers is None:
            self._numbers = np.array(self.tables, dtype=np.int64)
        length = self.length + tokens
        step, self._numbers = self._steps.even(self._numbers, length, tokens, window=self._window, dropped=self.dropped)
        return Placed(self.pool, step, self.kernel, self.status)

    def _make_room(self, table: list[int], first: int, end: int) -> None:
        self._numbers = None
        while len(table) < end:
            table.append(self._fresh_page())
        for index in range(first, end):
            if self.pages.shared(page := table[index]):
                table[index] = self._fresh_page()
                self.pool.copy(page, table[index])
                self.pages.release(page)

    def _fresh_page(self) -> int:
        page = self.pages.allocate()
        assert page is not None
        self.pool.reserve(page + 1)
        return page

    def drop_unreachable(self) -> None:
        """Free pages that no later query can see."""

    def _take(self, indices: list[int]) -> None:
        if not self.is_initialized:
            return
        before, self.tables, self._numbers = self.tables, [list(self.tables[index]) for index in indices], None
        for page in (page for table in self.tables for page in table):
            self.pages.share(page)
        for page in (page for table in before for page in table):
            self.pages.release(page)


class PackedSlidingLayer(PackedLayer, DynamicSlidingWindowLayer):
    """A sliding-window or chunked layer: pages wholly before the window are freed."""

    def __init__(self, name: str, k: KVType, v: KVType, sliding_window: int, *, steps: Steps | None = None) -> None:
        PackedLayer.__init__(self, name, k, v, steps=steps)
        self.sliding_window, self.record_past = sliding_window, False

    # the stock mask arithmetic reads this name
    @property
    def cumulative_length(self) -> int:
        """Tokens seen."""
        return self.length

    @cumulative_length.setter
    def cumulative_length(self, tokens: int) -> None:
        self.length = tokens

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """As PackedLayer."""
        PackedLayer.lazy_initialization(self, key_states, value_states)

    def crop(self, tokens_to_remove: int) -> None:
        """As PackedLayer; past a full window only while past states are recorded, as in transformers."""
        if self.length >= self.sliding_window and not self.record_past:
            raise RuntimeError(
                f"{self.name}: tokens before the window are gone; call activate_past_recording() before crop()"
            )
        PackedLayer.crop(self, tokens_to_remove)
        self._free_before(self.length - self.sliding_window + 1)

    @property
    def _window(self) -> int | None:
        return self.sliding_window

    def drop_unreachable(self) -> None:
        """As PackedLayer."""
        if not self.record_past:
            self._free_before(self.length - self.sliding_window + 1)

    def _free_before(self, position: int) -> None:
        pages = (position - self.dropped) // PAGE_TOKENS
        if pages > 0:
            self._numbers = None
            for table in self.tables:
                for page in table[:pages]:
                    self.pages.release(page)
                del table[:pages]
            self.dropped += pages * PAGE_TOKENS


class PackedIndexedLayer(DynamicIndexedLayer, PackedLayer):  # type: ignore[misc]
    """A layer of sparse attention whose indexer keeps keys of its own: K and V packed, the indexer's keys as they are."""

    def __init__(self, name: str, k: KVType, v: KVType, *, steps: Steps | None = None) -> None:
        PackedLayer.__init__(self, name, k, v, steps=steps)
        self.indexer_keys = self.indexer_position_ids = None
        self.is_indexer_initialized = False

    @property
    def nbytes(self) -> int:
        """Bytes of the pages and of the indexer's keys."""
        indexer = self.indexer_keys.nbytes if self.indexer_keys is not None else 0
        return super().nbytes + indexer
