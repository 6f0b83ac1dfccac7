"""The pages of one sequence, by position."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from stratakv.pages.allocator import PageAllocator


class BlockTable:
    """The pages of one sequence in layers that keep the same tokens: which of its pages are there, and their ids.

    pages: ids by page of the sequence, in ascending order. borrowed: those that an earlier prompt left.
    """

    def __init__(self) -> None:
        self.pages: dict[int, int] = {}
        self.borrowed: frozenset[int] = frozenset()
        self._arrays: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def indices(self) -> NDArray[np.int64]:
        """Which pages of the sequence are there."""
        return self._both[0]

    @property
    def ids(self) -> NDArray[np.int64]:
        """Their ids, in the same order."""
        return self._both[1]

    @property
    def _both(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._arrays is None:
            both = np.array(list(self.pages.items()), dtype=np.int64).reshape(-1, 2)
            self._arrays = both[:, 0].copy(), both[:, 1].copy()
        return self._arrays

    def adopt(self, pages: dict[int, int]) -> None:
        """Begin with shared pages."""
        self.pages, self.borrowed, self._arrays = pages, frozenset(pages), None

    def hold(self, pool: PageAllocator, indices: Iterable[int]) -> bool:
        """Have these pages, later ones than those that are there; False, with what could be had, when the pool is empty."""
        for index in indices:
            if index in self.pages:
                continue
            page = pool.allocate()
            if page is None:
                return False
            self.pages[index], self._arrays = page, None
        return True

    def drop(self, pool: PageAllocator, keep: Callable[[int], bool], soon: Callable[[int], bool] | None = None) -> None:
        """Give back pages that are not to be kept. soon: which of them may be taken before all others that are cached."""
        gone = [index for index in self.pages if not keep(index)]
        for index in gone:
            pool.release(self.pages.pop(index), soon=soon is not None and soon(index))
            self._arrays = None

    def release(self, pool: PageAllocator) -> None:
        """Give back all pages, the last ones first: of a prefix, the end is given up before its beginning."""
        for page in reversed(self.pages.values()):
            pool.release(page)
        self.pages, self.borrowed, self._arrays = {}, frozenset(), None
