"""The pages of one layer in one piece of memory, told apart by their numbers: for many sequences of different lengths."""

from __future__ import annotations

import mmap

import torch

from stratakv.pages.layout import PAGE_TOKENS, PageLayout


class Pool:
    """`capacity` pages of one layer. pool: uint8 [capacity, page_bytes], as `kernels.ragged` takes it.

    On a CPU address space is taken at once, memory only by pages that are written; huge pages where the system offers them.
    """

    def __init__(self, layout: PageLayout, capacity: int, device: torch.device) -> None:
        self.layout, self.device = layout, device
        size = capacity * layout.page_bytes
        if device.type == "cpu":
            mapping = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                mapping.madvise(mmap.MADV_HUGEPAGE)
            memory = torch.frombuffer(mapping, dtype=torch.uint8)[:size]
        else:
            memory = torch.empty(size, dtype=torch.uint8, device=device)
        self.pool = memory.view(capacity, layout.page_bytes)
        self._positions = torch.from_numpy(layout.positions.reshape(-1).copy()).to(device)

    def read(self, pages: torch.Tensor) -> torch.Tensor:
        """Canonical bytes of whole pages (int64 [pages], numbers), uint8 [pages, kv_heads, PAGE_TOKENS, bytes of K and V]."""
        rows = self._tiles()[pages].index_select(2, self._positions)
        return rows.view(len(pages), self.layout.kv_heads, PAGE_TOKENS, -1)

    def write(self, pages: torch.Tensor, packed: torch.Tensor) -> None:
        """The inverse of `read`."""
        tiles = torch.empty(
            len(pages), self.layout.kv_heads, self.layout.tile_bytes, dtype=torch.uint8, device=self.device
        )
        tiles[:, :, self._positions] = packed.reshape(len(pages), self.layout.kv_heads, -1)
        self._tiles()[pages] = tiles

    def _tiles(self) -> torch.Tensor:
        return self.pool.view(-1, self.layout.kv_heads, self.layout.tile_bytes)
