"""The memory of one layer's pages, told apart by their numbers: for many sequences of different lengths."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.pages.layout import PageLayout
from stratakv.pages.memory import Mapping
from stratakv.pages.once import Once
from stratakv.pages.sending import sent

# Address space of a layer whose sequences may grow: 2 million tokens of 8 heads of 128 in f32
RESERVED = 16 * 2**30
_FIRST_PAGES = 8


class Pool(Once):
    """Pages of one layer. memory: uint8 [capacity, page_bytes]; what a page holds before it is written doesn't matter.

    The stride between pages is the memory's own: they may lie in a larger tensor, an engine's for example. A page's
    bytes lie side by side; ValueError where they don't.
    """

    def __init__(self, layout: PageLayout, memory: torch.Tensor) -> None:
        if memory.dtype != torch.uint8 or memory.shape[1:] != (layout.page_bytes,) or memory.stride(1) != 1:
            raise ValueError(
                f"a pool's memory is uint8 [pages, {layout.page_bytes}], each page's bytes side by side, not "
                f"{memory.dtype} {list(memory.shape)} with strides {list(memory.stride())}"
            )
        self.layout, self.device = layout, memory.device
        self._set(memory)
        self._positions, self._gather = _index_of(layout, self.device)

    @staticmethod
    def fixed(layout: PageLayout, capacity: int, device: torch.device) -> Pool:
        """A pool of its own memory. On a CPU pages take memory when they are written."""
        size = capacity * layout.page_bytes
        if device.type == "cpu":
            mapping = Mapping(size)
            mapping.advise()
            memory = mapping.memory
        else:
            memory = torch.empty(size, dtype=torch.uint8, device=device)
        return Pool(layout, memory.view(capacity, layout.page_bytes))

    def _set(self, memory: torch.Tensor) -> None:
        layout = self.layout
        self.memory = memory
        self.base, self.stride = memory.data_ptr(), memory.stride(0)  # page p begins at base + p * stride
        shape, strides = (len(memory), layout.kv_heads, layout.tile_bytes), (self.stride, layout.tile_bytes, 1)
        self.tiles = memory.as_strided(shape, strides, memory.storage_offset())

    @property
    def capacity(self) -> int:
        """Pages that there is room for."""
        return len(self.memory)

    def reserve(self, pages: int) -> None:
        """Make room for the pages 0 to pages - 1. IndexError where there can't be."""
        if pages > self.capacity:
            raise IndexError(f"page {pages - 1}: the pool has {self.capacity}")

    def copy(self, source: int, target: int) -> None:
        """Page `target` becomes what `source` is."""
        self.memory[target] = self.memory[source]

    def read(self, pages: torch.Tensor) -> torch.Tensor:
        """Canonical bytes of whole pages (int64 [pages], numbers), uint8 [pages, kv_heads, page_tokens, k_bytes + v_bytes]."""
        tiles = self.tiles[pages]
        if self.device.type == "cpu":  # numpy gathers bytes 40 times as fast as torch does
            rows = torch.from_numpy(np.take(tiles.numpy(), self.layout.positions.reshape(-1), axis=2))
        else:
            rows = tiles.index_select(2, self._gather)
        return rows.view(len(pages), self.layout.kv_heads, self.layout.page_tokens, -1)

    def write(self, pages: torch.Tensor, packed: torch.Tensor) -> None:
        """The inverse of `read`."""
        shape = len(pages), self.layout.kv_heads, self.layout.tile_bytes
        tiles = torch.empty(shape, dtype=torch.uint8, device=self.device)
        tiles[:, :, self._gather.long()] = packed.reshape(len(pages), self.layout.kv_heads, -1)
        self.tiles[pages] = tiles

    def read_tokens(self, tables: NDArray[np.int64], start: int, tokens: int) -> torch.Tensor:
        """Canonical bytes of tokens start to start + tokens - 1 of equally long block tables (page numbers, [tables, pages]),
        uint8 [tables, kv_heads, tokens, k_bytes + v_bytes]; start is counted from the tables' first page."""
        size = self.layout.page_tokens
        first, end = start // size, -(-(start + tokens) // size)
        chosen = np.ascontiguousarray(tables[:, first:end])
        pages = self.read(sent(chosen.reshape(-1), self.device))
        rows: torch.Tensor = pages.unflatten(0, chosen.shape).transpose(1, 2).flatten(2, 3)
        return rows[:, :, start - first * size :][:, :, :tokens]

    def write_tokens(self, slots: NDArray[np.int64], packed: torch.Tensor) -> None:
        """Canonical bytes [tokens, kv_heads, k_bytes + v_bytes] to their slots, int64 [tokens]: page * page_tokens + place within
        the page; a negative one isn't stored."""
        kept, where = (sent(each, self.device) for each in (np.flatnonzero(slots >= 0), slots[slots >= 0]))
        positions = self._positions[where % self.layout.page_tokens]
        heads = torch.arange(self.layout.kv_heads, device=self.device)
        pages = where // self.layout.page_tokens
        self.tiles[pages[:, None, None], heads[None, :, None], positions[:, None, :]] = packed[kept]


@lru_cache(maxsize=256)
def _index_of(layout: PageLayout, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where canonical bytes lie in a tile: int64 [page_tokens, k_bytes + v_bytes], and flat as int32, which halves a gather's
    index traffic. Shared by pools of equal layouts: of f16 and head_dim 256 a layer's own would take 768 KiB."""
    with torch.inference_mode(False):
        positions = torch.from_numpy(layout.positions.copy()).to(device)
        return positions, positions.reshape(-1).to(torch.int32)


class GrowingPool(Pool):
    """A pool that nobody knows the size of beforehand.

    On a CPU address space is taken at once, so that growth moves nothing. Beyond it, where a system doesn't give so much, and on
    other devices capacity doubles when it is spent, which copies what is there. reserved: bytes of address space.
    """

    def __init__(self, layout: PageLayout, device: torch.device, reserved: int = RESERVED) -> None:
        self._mapping: Mapping | None = None
        self._used = 0
        pages = max(reserved // layout.page_bytes, 1) if device.type == "cpu" else _FIRST_PAGES
        try:
            memory = self._take(layout, device, pages)
        except OSError:  # a system that counts what is taken, not what is used
            memory = self._take(layout, device, _FIRST_PAGES)
        super().__init__(layout, memory)

    def reserve(self, pages: int) -> None:
        """See Pool."""
        if pages <= self._used:
            return
        if pages > self.capacity:
            larger = self._take(self.layout, self.device, max(2 * self.capacity, pages))
            larger[: self._used] = self.memory[: self._used]
            self._set(larger)
        if self._mapping is not None:
            size = self.layout.page_bytes
            self._mapping.grow(self._used * size, (pages - self._used) * size)
        self._used = pages

    def _take(self, layout: PageLayout, device: torch.device, pages: int) -> torch.Tensor:
        if device.type != "cpu":
            return torch.empty(pages, layout.page_bytes, dtype=torch.uint8, device=device)
        self._mapping = Mapping(pages * layout.page_bytes)
        return self._mapping.memory.view(pages, layout.page_bytes)
