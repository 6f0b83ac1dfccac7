"""One class a kind of attention layer, each a transformers cache layer over packed pages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.cache_utils import CacheLayerMixin, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from stratakv.cache.handle import PackedStates, PackedView, view_of
from stratakv.cache.pages import BlockTable, Page, PageStore, addresses_of
from stratakv.cache.placed import Placed, PlacingLayer, address, seen
from stratakv.errors import UserError
from stratakv.kernels import cpu_encode
from stratakv.kernels.choice import compiled_kernel
from stratakv.kvtypes import KVType
from stratakv.pages.layout import PAGE_TOKENS, PageLayout


class PackedLayer(DynamicLayer, PlacingLayer):
    """A layer that keeps every token.

    name: how errors call the layer. k, v: the types of its K and V. All sequences of a batch are equally long (padding
    included), as everywhere in transformers.
    """

    def __init__(self, name: str, k: KVType, v: KVType) -> None:
        CacheLayerMixin.__init__(self)
        self.name, self.k_type, self.v_type = name, k, v
        self.store: PageStore | None = None
        self.tables: list[BlockTable] = []
        self.length = 0
        self.dropped = 0  # tokens of whole pages before the tables' first page
        self._last_view: PackedView | None = None
        self._last_changes = 0
        # addresses of all tables' pages, the store's changes when they were collected, and where they are
        self._pages: tuple[int, NDArray[np.int64], int] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated pages."""
        return self.store.nbytes if self.store else 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the page store from the first states' shapes [batch, kv_heads, tokens, head_dim]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        if key_states.shape[1] != value_states.shape[1]:
            raise UserError(
                f"{self.name}: {key_states.shape[1]} K heads but {value_states.shape[1]} V heads; pages hold equally many"
            )
        k_dim, v_dim = key_states.shape[-1], value_states.shape[-1]
        self.k_type.check(k_dim)
        self.v_type.check(v_dim)
        self.store = PageStore(PageLayout(self.k_type, self.v_type, k_dim, v_dim, key_states.shape[1]), self.device)
        self.tables = [[] for _ in range(key_states.shape[0])]
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the states to the pages; handles on all visible tokens come back.

        key_states, value_states: [batch, kv_heads, tokens, head_dim], after RoPE; nothing keeps a reference to them. Inf or
        nan, or values too large for the type, raise a UserError that names layer and side.
        """
        store = self._append(key_states, value_states)
        start = self._visible_start(key_states.shape[-2])
        view = self._view(store, start - self.dropped, self.length - start)
        handles = PackedStates(view, "k", self.dtype), PackedStates(view, "v", self.dtype)
        self._drop_unreachable()
        return handles

    def place(self, batch: int, tokens: int) -> Placed | None:
        """See PlacingLayer."""
        store = self.store
        if store is None or batch != len(self.tables) or (compiled := store.compiled) is None:
            return None
        start = self.length - self.dropped
        slots = self._slots([store.prepare(table, start, tokens) for table in self.tables], start, tokens)
        if self._pages is None or self._pages[0] != store.changes:
            pages = addresses_of(self.tables)
            self._pages = store.changes, pages, address(pages)
        _, pages, where = self._pages
        arrays, addresses = seen(batch, pages.shape[1], tokens, self.length, self.dropped, self._window)
        addresses = 0, 1, address(slots), where, *addresses
        return Placed(store.layout, compiled, batch, batch, addresses, (slots, pages, *arrays))

    def stored(self, tokens: int) -> None:
        """See PlacingLayer."""
        self.length += tokens
        self._drop_unreachable()

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
        self.length = max(0, self.length + tokens_to_remove)
        keep = -(-(self.length - self.dropped) // PAGE_TOKENS)
        self._last_view = None
        for table in self.tables:
            while len(table) > keep:
                self._store.release(table.pop())

    def reset(self) -> None:
        """Free all pages."""
        self._replace_tables([])
        self.store, self.length, self.dropped, self._last_view, self._pages = None, 0, 0, None, None
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

    @property
    def _store(self) -> PageStore:
        assert self.store is not None, f"{self.name} has not been initialized"
        return self.store

    def _view(self, store: PageStore, start: int, tokens: int) -> PackedView:
        if self._last_view is None or self._last_changes != store.changes:
            self._last_view, self._last_changes = view_of(store, self.tables, start, tokens), store.changes
        else:  # the same pages, as in 127 of 128 steps: thousands of addresses need not be collected again
            self._last_view = replace(self._last_view, start=start, tokens=tokens)
        return self._last_view

    def _visible_start(self, new_tokens: int) -> int:
        """Position of the first token that the new tokens' queries may see."""
        return 0

    def _drop_unreachable(self) -> None:
        """Free pages that no later query can see."""

    def _append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> PageStore:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != len(self.tables):
            raise ValueError(f"{self.name} holds {len(self.tables)} sequences, {key_states.shape[0]} were given")
        start, tokens = self.length - self.dropped, key_states.shape[-2]
        if kernel := compiled_kernel(self._store.layout, self.device):
            self._encode_into_pages(key_states, value_states, start, tokens, kernel)
        else:
            with self._naming("K"):
                k_packed = self.k_type.encode(key_states.detach())
            with self._naming("V"):
                v_packed = self.v_type.encode(value_states.detach())
            for table, rows in zip(self.tables, torch.cat([k_packed, v_packed], dim=-1), strict=True):
                self._store.write(table, start, rows)
        self.length += tokens
        return self._store

    def _encode_into_pages(
        self, key_states: torch.Tensor, value_states: torch.Tensor, start: int, tokens: int, kernel: str
    ) -> None:
        slots = self._slots([self._store.prepare(table, start, tokens) for table in self.tables], start, tokens)
        if tokens == 1:
            k, v = key_states.squeeze(2), value_states.squeeze(2)
        else:
            k, v = (x.transpose(1, 2).reshape(-1, x.shape[1], x.shape[3]) for x in (key_states, value_states))
        try:
            cpu_encode.append(k, v, self._store.layout, slots, kernel=kernel)
        except cpu_encode.CannotStoreError as error:
            raise self.refusal(error.side, error) from error

    @staticmethod
    def _slots(prepared: list[list[Page]], start: int, tokens: int) -> NDArray[np.int64]:
        """Where each sequence's tokens go, one sequence after another."""
        first = start % PAGE_TOKENS
        if tokens == 1:
            return np.array([pages[0].address * PAGE_TOKENS + first for pages in prepared], dtype=np.int64)
        position = np.arange(first, first + tokens)
        places = addresses_of(prepared)[:, position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
        return places.reshape(-1)

    @contextmanager
    def _naming(self, side: str) -> Iterator[None]:
        """Say where states came from that can't be stored."""
        try:
            yield
        except ValueError as error:
            raise self.refusal(side, error) from error

    def refusal(self, side: str, error: ValueError) -> UserError:
        """See PlacingLayer."""
        type_ = self.k_type if side == "K" else self.v_type
        return UserError(
            f"{self.name}, {side}: {error}; the model's own states can't be stored as {type_.name} "
            "(broken weights, an overflow in half precision, or a type with too small a range: try f32 or bf16)"
        )

    def _take(self, indices: list[int]) -> None:
        if self.store is not None:
            store = self._store
            self._replace_tables([[store.share(page) for page in self.tables[index]] for index in indices])

    def _replace_tables(self, tables: list[BlockTable]) -> None:
        self._last_view = None
        for page in (page for table in self.tables for page in table):
            self._store.release(page)
        self.tables = tables


class PackedSlidingLayer(PackedLayer, DynamicSlidingWindowLayer):
    """A sliding-window or chunked layer: pages wholly before the window are freed."""

    def __init__(self, name: str, k: KVType, v: KVType, sliding_window: int) -> None:
        PackedLayer.__init__(self, name, k, v)
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

    def _visible_start(self, new_tokens: int) -> int:
        return max(0, self.length - new_tokens - self.sliding_window + 1)

    def _drop_unreachable(self) -> None:
        if not self.record_past:
            self._free_before(self.length - self.sliding_window + 1)

    def _free_before(self, position: int) -> None:
        pages = (position - self.dropped) // PAGE_TOKENS
        if pages > 0:
            self._last_view = None
            for table in self.tables:
                for page in table[:pages]:
                    self._store.release(page)
                del table[:pages]
            self.dropped += pages * PAGE_TOKENS


class PackedIndexedLayer(DynamicIndexedLayer, PackedLayer):  # type: ignore[misc]
    """A layer of sparse attention whose indexer keeps keys of its own: K and V packed, the indexer's keys as they are."""

    def __init__(self, name: str, k: KVType, v: KVType) -> None:
        PackedLayer.__init__(self, name, k, v)
        self.indexer_keys = self.indexer_position_ids = None
        self.is_indexer_initialized = False

    @property
    def nbytes(self) -> int:
        """Bytes of the pages and of the indexer's keys."""
        indexer = self.indexer_keys.nbytes if self.indexer_keys is not None else 0
        return super().nbytes + indexer
