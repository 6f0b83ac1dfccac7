"""The pages of a cache layer's sequences, which are equally long, in one pool."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

import numpy as np

from stratakv.kernels.spans import Pages
from stratakv.pages.allocator import PageAllocator
from stratakv.pages.pool import Pool


class Tables:
    """Page numbers by sequence. indices: which pages of a sequence these are, ascending, alike for all sequences.

    Sequences may share pages: whoever writes to some calls `extend` before.
    """

    def __init__(self, pool: Pool, sequences: int) -> None:
        self.pool, self.pages = pool, PageAllocator()
        self.numbers: list[list[int]] = [[] for _ in range(sequences)]
        self.indices: list[int] = []
        self._arrays: Pages | None = None  # None when they have changed
        self._before: tuple[int, Pages] | None = None
        self._room: tuple[int, int] | None = None  # pages that are there, and shared by nobody

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        return self.pages.used * self.pool.layout.page_bytes

    @property
    def arrays(self) -> Pages:
        """The same as arrays, [sequences, pages]."""
        if self._arrays is None:
            numbers = np.array(self.numbers, dtype=np.int64).reshape(len(self.numbers), len(self.indices))
            self._arrays = Pages(np.array(self.indices, dtype=np.int64), numbers)
        return self._arrays

    @arrays.setter
    def arrays(self, equal: Pages) -> None:
        """Arrays that are equal to its own: layers that hold the same ones are known to be alike at once."""
        self._arrays = equal

    def before(self, end: int) -> Pages:
        """The same of the pages before this one: always the same arrays while only later ones change."""
        if self._before is None or self._before[0] != end:
            count = bisect_left(self.indices, end)
            here = self.arrays
            self._before = end, Pages(here.indices[:count], np.ascontiguousarray(here.numbers[:, :count]))
        return self._before[1]

    def alike(self, end: int, equal: Pages) -> None:
        """Arrays for `before` that are equal to its own."""
        self._before = end, equal

    def add(self, index: int) -> None:
        """A page more for each sequence, its own."""
        self._insert(index, [self._fresh() for _ in self.numbers])

    def add_like(self, index: int, others: list[int]) -> Iterator[tuple[int, int]]:
        """A page more for each sequence, one for all that share the page which `others` numbers; pairs of those numbers
        and the new ones, each once."""
        new: dict[int, int] = {}
        for other in others:
            if other in new:
                self.pages.share(new[other])
            else:
                new[other] = self._fresh()
        self._insert(index, [new[other] for other in others])
        self._room = None
        return iter(new.items())

    def column(self, index: int) -> list[int]:
        """All sequences' numbers of one of their pages."""
        at = self.indices.index(index)
        return [table[at] for table in self.numbers]

    def extend(self, first: int, end: int) -> None:
        """Pages from `first` to the one before `end` are about to be written: those that lack are added, and those that
        sequences share are copied."""
        room = self._room  # a decoding step's time is in these microseconds
        if room is not None and room[0] <= first and end <= room[1]:
            return
        held = self.indices[-1] + 1 if self.indices else 0
        for index in range(max(first, held), end):  # pages between the first ones and these may be sealed
            self.add(index)
        self._own(first)
        self._room = first, end

    def _own(self, first: int) -> None:
        begin = bisect_left(self.indices, first)
        for table in self.numbers:
            for at in range(begin, len(table)):
                if self.pages.shared(page := table[at]):
                    table[at] = self._fresh()
                    self.pool.copy(page, table[at])
                    self.pages.release(page)
                    self._arrays = self._before = None

    def drop(self, gone: Callable[[int], bool]) -> None:
        """Free the pages of which this is so."""
        left = [at for at, index in enumerate(self.indices) if not gone(index)]
        if len(left) == len(self.indices):
            return
        for table in self.numbers:
            kept = set(left)
            for at, page in enumerate(table):
                if at not in kept:
                    self.pages.release(page)
            table[:] = [table[at] for at in left]
        self.indices, self._arrays, self._before, self._room = [self.indices[at] for at in left], None, None, None

    def take(self, sequences: list[int]) -> None:
        """Sequence i becomes what sequence sequences[i] was; pages are shared, not copied."""
        before, self.numbers = self.numbers, [list(self.numbers[s]) for s in sequences]
        self._arrays = self._before = self._room = None
        for page in (page for table in self.numbers for page in table):
            self.pages.share(page)
        for page in (page for table in before for page in table):
            self.pages.release(page)

    def _insert(self, index: int, pages: list[int]) -> None:
        at = bisect_left(self.indices, index)
        self.indices.insert(at, index)
        for table, page in zip(self.numbers, pages, strict=True):
            table.insert(at, page)
        self._arrays = None
        if self._before is not None and index < self._before[0]:
            self._before = None

    def _fresh(self) -> int:
        page = self.pages.allocate()
        assert page is not None
        self.pool.reserve(page + 1)
        return page
