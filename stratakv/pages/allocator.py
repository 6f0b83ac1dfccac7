"""Which page belongs to whom: ids, reference counts, and the pages that are kept for their prefix. Pure, no memory here."""

from __future__ import annotations

import heapq
import sys
from collections import OrderedDict


class PageAllocator:
    """`capacity` pages with ids 0 .. capacity - 1, the lowest free id first; by default as many as are asked for.

    A page is free, used (one reference or more) or cached: published under a key, without references, given up in the order
    of its last use when no page is free.
    """

    def __init__(self, capacity: int = sys.maxsize) -> None:
        self.capacity = capacity
        self._free: list[int] = []  # a heap of those that came back
        self._next = 0  # the lowest id that was never given
        self._references: dict[int, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._page_of: dict[bytes, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def used(self) -> int:
        """Pages with references."""
        return len(self._references)

    @property
    def cached(self) -> int:
        """Pages without references that are kept under a key."""
        return len(self._cached)

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free) + self.capacity - self._next

    @property
    def available(self) -> int:
        """Pages that `allocate` could give."""
        return self.free + len(self._cached)

    def allocate(self) -> int | None:
        """A page with one reference; None when all are used. The least recently used cached page is given up if need be."""
        if self._free:
            page = heapq.heappop(self._free)
        elif self._next < self.capacity:
            page = self._next
            self._next += 1
        elif self._cached:
            page, _ = self._cached.popitem(last=False)
            self._forget(page)
        else:
            return None
        self._references[page] = 1
        return page

    def share(self, page: int) -> None:
        """One reference more, to a used or a cached page."""
        if page in self._references:
            self._references[page] += 1
        else:
            del self._cached[page]
            self._references[page] = 1

    def shared(self, page: int) -> bool:
        """Whether a used page has more than one reference."""
        return self._references[page] > 1

    def release(self, page: int, *, soon: bool = False) -> None:
        """One reference less; the last one makes the page cached if it has a key, else free. soon: to be given up before
        all that are cached."""
        self._references[page] -= 1
        if self._references[page]:
            return
        del self._references[page]
        if page in self._key_of:
            self._cached[page] = None
            self._cached.move_to_end(page, last=not soon)
        else:
            heapq.heappush(self._free, page)

    def publish(self, page: int, key: bytes) -> None:
        """Let `lookup` find a used page under this key. The first page of a key keeps it."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key] = page
            self._key_of[page] = key

    def lookup(self, key: bytes) -> int | None:
        """The page under this key, or None. Take a reference before anything is allocated."""
        return self._page_of.get(key)

    def discard(self, key: bytes) -> None:
        """Forget what is cached under this key; a page in use stays with its users, and is kept for nobody after them."""
        page = self._page_of.get(key)
        if page is None:
            return
        self._forget(page)
        if page in self._cached:
            del self._cached[page]
            heapq.heappush(self._free, page)

    def clear_cached(self) -> None:
        """Give up all cached pages."""
        while self._cached:
            page, _ = self._cached.popitem()
            self._forget(page)
            heapq.heappush(self._free, page)

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
