"""The pages of one sequence, by position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stratakv.pages.allocator import PageAllocator
from stratakv.pages.layout import PAGE_TOKENS


class BlockTable:
    """The pages of one sequence in layers that keep the same tokens, by position; `dropped` pages at the front are gone."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.dropped = 0
        self._ids: NDArray[np.int64] | None = None

    @property
    def ids(self) -> NDArray[np.int64]:
        """The pages' ids, from the first one that is still there."""
        if self._ids is None:
            self._ids = np.array(self.pages, dtype=np.int64)
        return self._ids

    def page_at(self, index: int) -> int | None:
        """The id of a sequence's page number `index`, None when it isn't there."""
        at = index - self.dropped
        return self.pages[at] if 0 <= at < len(self.pages) else None

    def adopt(self, dropped: int, pages: list[int]) -> None:
        """Begin with shared pages, the first of them the sequence's page number `dropped`."""
        self.dropped, self.pages, self._ids = dropped, pages, None

    def missing(self, tokens: int) -> int:
        """Pages to allocate before the table holds so many tokens."""
        return max(0, -(-tokens // PAGE_TOKENS) - self.dropped - len(self.pages))

    def extend(self, pool: PageAllocator, tokens: int) -> bool:
        """Make room for so many tokens; False, with what could be had, when the pool is empty."""
        for _ in range(self.missing(tokens)):
            page = pool.allocate()
            if page is None:
                return False
            self.pages.append(page)
            self._ids = None
        return True

    def drop_before(self, pool: PageAllocator, position: int) -> None:
        """Give back pages that lie wholly before a position."""
        count = min(position // PAGE_TOKENS - self.dropped, len(self.pages))
        if count > 0:
            for page in self.pages[:count]:
                pool.release(page)
            del self.pages[:count]
            self.dropped += count
            self._ids = None

    def release(self, pool: PageAllocator) -> None:
        """Give back all pages, the last ones first: of a prefix, the end is given up before its beginning."""
        for page in reversed(self.pages):
            pool.release(page)
        self.pages, self.dropped, self._ids = [], 0, None
