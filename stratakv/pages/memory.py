"""Memory for pages on the CPU: address space first, memory only for what is written, in huge pages where the system has them.

Pages lie apart from the heap, where they would settle in the holes that a prompt's large temporaries leave, and those would then
not fit there again: measured, each new 32 MiB of cache grew the process by 220.
"""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

HUGE = 2 * 2**20
_NORESERVE = (
    0x4000 if hasattr(mmap, "MADV_HUGEPAGE") else 0
)  # Linux's MAP_NORESERVE, which the module lacks before 3.13
_COLLAPSE = 25  # Linux's MADV_COLLAPSE


class Mapping:
    """`size` bytes of address space, zeros. memory: uint8 [size]. OSError where the system doesn't give so many."""

    def __init__(self, size: int) -> None:
        self._mapping = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        self.memory = torch.frombuffer(self._mapping, dtype=torch.uint8)[:size]
        self._first = -self.memory.data_ptr() % HUGE  # where the first huge page could begin
        self._told = 0  # bytes that are in huge pages, or will be

    def advise(self) -> None:
        """All of it in huge pages: each is taken whole when its first byte is written."""
        self._advise(0, len(self._mapping))

    def grow(self, used: int, more: int) -> None:
        """`used` bytes from the start on have been written, and `more` after them will be, now: huge pages for what they fill."""
        if not hasattr(mmap, "MADV_HUGEPAGE") or used + more < self._told + HUGE:
            return
        filled = self._first + (used - self._first) // HUGE * HUGE
        end = self._first + (used + more - self._first) // HUGE * HUGE
        begin = max(self._told, self._first)
        try:
            if filled > begin:
                self._mapping.madvise(_COLLAPSE, begin, filled - begin)
        except OSError:  # an older kernel, or no huge page free
            self._advise(begin, filled)
        self._advise(max(begin, filled), end)
        self._told = max(self._told, end)

    def _advise(self, begin: int, end: int) -> None:
        """Huge pages for these bytes, where the system has any: some are built or set up without."""
        if hasattr(mmap, "MADV_HUGEPAGE") and end > begin:
            with suppress(OSError):
                self._mapping.madvise(mmap.MADV_HUGEPAGE, begin, end - begin)
