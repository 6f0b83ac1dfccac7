"""Memory for pages on the CPU: slabs of their own, apart from the heap.

On the heap, pages would settle in the holes that a prompt's large temporaries leave, and those would then not fit there again:
measured, each new 32 MiB of cache grew the process by 220. A slab is an anonymous mapping, cut into pages of one size, in huge
pages where the system offers them, and given back when its last page is free.
"""

from __future__ import annotations

import mmap

import torch

# Address space only: what no page has used takes no memory. Few large slabs: the few hundred bytes on the heap that belong to
# each pin a hole of a temporary's size there.
SLAB_BYTES = 64 * 2**20


class Slab:
    """One mapping, cut into slots of `page_bytes`."""

    def __init__(self, page_bytes: int) -> None:
        size = max(SLAB_BYTES // page_bytes, 1) * page_bytes
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self.memory = torch.frombuffer(mapping, dtype=torch.uint8)
        self.address = self.memory.data_ptr()
        self.page_bytes = page_bytes
        self.slots = size // page_bytes
        self.free = list(range(self.slots - 1, -1, -1))  # the lowest slot comes first: slabs fill up from their start


class Slot:
    """A page's place in a slab; the place is free again when nothing refers to the slot any more."""

    __slots__ = ("index", "slab")

    def __init__(self, slab: Slab) -> None:
        self.slab, self.index = slab, slab.free.pop()

    @property
    def address(self) -> int:
        """Where the bytes begin."""
        return self.slab.address + self.index * self.slab.page_bytes

    @property
    def data(self) -> torch.Tensor:
        """The bytes, uint8 [page_bytes]. Made when asked for: a small tensor kept for each page would pin the heap around it."""
        start = self.index * self.slab.page_bytes
        return self.slab.memory[start : start + self.slab.page_bytes]

    def __del__(self) -> None:
        slab = self.slab
        slab.free.append(self.index)
        slabs = _OPEN.get(slab.page_bytes, [])
        if len(slab.free) == slab.slots and slab in slabs:
            slabs.remove(slab)
        elif slab not in slabs:
            slabs.append(slab)


# page size -> slabs with a free slot
_OPEN: dict[int, list[Slab]] = {}


def take(page_bytes: int) -> Slot:
    """A slot of page_bytes; its bytes are undefined. Caches of one process share slabs."""
    slabs = _OPEN.setdefault(page_bytes, [])
    if not slabs:
        slabs.append(Slab(page_bytes))
    slot = Slot(slabs[-1])
    if not slabs[-1].free:
        slabs.pop()
    return slot
