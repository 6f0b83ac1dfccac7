"""The pages of one layer: packed bytes, allocated one page at a time, shared by reference count, never moved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.cache.slabs import Slot, take
from stratakv.kernels.choice import compiled_kernel
from stratakv.kernels.cpu_layout import native_layout
from stratakv.pages.layout import PAGE_TOKENS, PageLayout


class Page:
    """One page: its bytes, where they are, and how many block tables point at it.

    place: what holds the bytes as long as anything refers to the page, a view of an earlier step for example: a slot of a slab,
    or a tensor on other devices. shape: kv_heads, tile_bytes.
    """

    __slots__ = ("address", "place", "references", "shape")

    def __init__(self, place: Slot | torch.Tensor, shape: tuple[int, int]) -> None:
        self.place, self.shape = place, shape
        self.address = place.address if isinstance(place, Slot) else place.data_ptr()
        self.references = 1

    @property
    def data(self) -> torch.Tensor:
        """The bytes, uint8 [kv_heads, tile_bytes]."""
        return (self.place.data if isinstance(self.place, Slot) else self.place).view(self.shape)


BlockTable = list[Page]
"""The pages of one sequence in one layer, by position."""


def addresses_of(tables: Sequence[Sequence[Page]]) -> NDArray[np.int64]:
    """Where the pages of equally long block tables are, [tables, pages]."""
    return np.array([[page.address for page in table] for table in tables], dtype=np.int64).reshape(len(tables), -1)


class PageStore:
    """Allocates, writes and reads the pages of one layer.

    Pages are taken one by one, so that growth copies nothing and a freed page goes back at once. `nbytes` is the sum of all
    that are taken.
    """

    def __init__(self, layout: PageLayout, device: torch.device) -> None:
        self.layout = layout
        self.device = device
        self.pages = 0
        self.changes = (
            0  # how often a page came, went or was shared: tables that were read before may differ from now on
        )
        self._positions = torch.from_numpy(layout.positions.copy()).to(device)
        # int32 halves the index traffic of a gather
        self._gather = self._positions.reshape(-1).to(torch.int32)

    @cached_property
    def compiled(self) -> Any:
        """The layout as compiled kernels know it; None where plain torch reads these pages."""
        return native_layout(self.layout) if compiled_kernel(self.layout, self.device) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all allocated pages."""
        return self.pages * self.layout.page_bytes

    def allocate(self) -> Page:
        """A new page with one reference; its bytes are undefined until written."""
        self.pages += 1
        self.changes += 1
        shape = self.layout.kv_heads, self.layout.tile_bytes
        if self.device.type == "cpu":
            return Page(take(self.layout.page_bytes), shape)
        return Page(torch.empty(self.layout.page_bytes, dtype=torch.uint8, device=self.device), shape)

    def share(self, page: Page) -> Page:
        """One more reference to a page."""
        page.references += 1
        self.changes += 1
        return page

    def release(self, page: Page) -> None:
        """One reference less; the last one frees the page."""
        page.references -= 1
        self.changes += 1
        if page.references == 0:
            self.pages -= 1

    def prepare(self, table: BlockTable, start: int, tokens: int) -> list[Page]:
        """Make room for tokens from position start on; returns the pages that they fall into, owned by this table alone."""
        first, end = start // PAGE_TOKENS, -(-(start + tokens) // PAGE_TOKENS)
        while len(table) < end:
            table.append(self.allocate())
        for index in range(first, end):
            if table[index].references > 1:
                table[index] = self._own_copy(table[index])
        return table[first:end]

    def write(self, table: BlockTable, start: int, packed: torch.Tensor) -> None:
        """Append canonical bytes to a sequence.

        table: the sequence's pages, extended in place; start: position of the first new token relative to the table's first
        page; packed: uint8 [kv_heads, tokens, k_bytes + v_bytes]. A shared page that the tokens fall into is copied first.
        """
        tokens, done = packed.shape[1], 0
        for page in self.prepare(table, start, tokens):
            offset = (start + done) % PAGE_TOKENS
            count = min(PAGE_TOKENS - offset, tokens - done)
            where = self._positions[offset : offset + count].reshape(-1)
            page.data[:, where] = packed[:, done : done + count].reshape(packed.shape[0], -1)
            done += count

    def read(self, tables: Sequence[BlockTable], start: int, tokens: int) -> torch.Tensor:
        """Canonical bytes of equally long sequences, uint8 [batch, kv_heads, tokens, k_bytes + v_bytes], from position start."""
        first, last = start // PAGE_TOKENS, -(-(start + tokens) // PAGE_TOKENS)
        layout, batch, pages = self.layout, len(tables), last - first
        width = layout.k_bytes + layout.v_bytes
        tiles = torch.stack([page.data for table in tables for page in table[first:last]])
        rows = tiles.view(-1, layout.tile_bytes).index_select(1, self._gather)
        rows = rows.view(batch, pages, layout.kv_heads, PAGE_TOKENS, width).transpose(1, 2)
        offset = start - first * PAGE_TOKENS
        return rows.reshape(batch, layout.kv_heads, pages * PAGE_TOKENS, width)[:, :, offset : offset + tokens]

    def _own_copy(self, page: Page) -> Page:
        fresh = self.allocate()
        fresh.data.copy_(page.data)
        self.release(page)
        return fresh
