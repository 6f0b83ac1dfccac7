"""Memory that the C library keeps after it was freed, given back."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


class Heap:
    """Keeps the C library's heap near what is in use, where it is glibc's.

    Holes that large temporaries leave don't fit the next ones, as aligned blocks don't fit into holes of their own size, and stay
    resident.
    """

    def __init__(self, spare: int) -> None:
        """spare: bytes that the heap may keep."""
        linux = sys.platform == "linux"
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if linux else None
        self._spare, self._least = spare, 0

    def trim(self) -> None:
        """Give back what lies free, the first time and where more than `spare` has come since: pages that come
        anew cost time."""
        if self._trim is None or _anonymous() - self._least <= self._spare:
            return
        self._trim(0)
        self._least = _anonymous()


def _anonymous() -> int:
    """Bytes of this process that no file holds."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
