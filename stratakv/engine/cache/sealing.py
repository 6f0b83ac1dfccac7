"""A layer's sealed pages: what its pages become when they leave the spans, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from stratakv.engine.cache.tables import Tables
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.spans import due, next_due
from stratakv.kvtypes import KVType
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.pool import GrowingPool
from stratakv.profile.spans import Spans


@dataclass(frozen=True)
class Seals:
    """How a layer's pages are sealed. k, v: the types. turn: the layer's own, see kernels.spans.due."""

    spans: Spans
    k: KVType
    v: KVType
    turn: float = 1.0


class SealedPages:
    """fine: the layer's pages that are written. end: the first page that isn't sealed. waiting: what there is room for and isn't
    written yet, numbers of fine pages and of the sealed ones that they become. status: where it is said that the types can't
    store a page; the step's end reads it, and `undo` forgets what the step sealed.

    A page that is about to leave the span is in both; its bytes are made once, from the fine ones, and kept as long as the page
    is full.
    """

    def __init__(self, seals: Seals, fine: Tables, status: torch.Tensor) -> None:
        self.seals, self.spans, self.fine, self.status = seals, seals.spans, fine, status
        layout = fine.pool.layout
        sealed = replace(layout, k=seals.k, v=seals.v)
        self.tables = Tables(GrowingPool(sealed, fine.pool.device), len(fine))
        self.kernel, self.fine_kernel = (kernel_for(each, fine.pool.device) for each in (sealed, layout))
        self.waiting: list[tuple[int, int]] = []
        self._end_at(self.spans.first)
        self._written = self._kept = self.end  # pages whose bytes are there; those that a step before this one sealed

    def make_room(self, end: int) -> None:
        """Pages up to this one have numbers; what they hold is written by `seal`. What a step had that was placed and never
        stored is gone."""
        if self.end > self._written:
            self.forget_room()
        if end > self.end:
            for index in range(self.end, end):
                if index in self.fine.indices:  # others are gone, out of a window
                    self.waiting += self.tables.add_like(index, self.fine.column(index))
            self._end_at(end)

    def seal(self) -> None:
        """Write what there is room for."""
        if self.waiting:
            self.kernel.convert(self.fine.pool, self.tables.pool, self.waiting, self.status)
        self.written()

    def written(self) -> None:
        """What there was room for is written, or the status says why not."""
        if self.waiting:
            self.waiting = []
        self._written = self.end

    def forget_room(self) -> None:
        """What `make_room` made, and `seal` didn't write, is gone: the step that asked for it has failed."""
        if self.end > self._written:
            self._forget(self._written)

    def seal_due(self, length: int) -> None:
        """A step is over, after which there are so many tokens: seal what is due."""
        if length >= self._next:
            self.make_room(due(self.spans, length, self.seals.turn))
            self.seal()

    def free(self, length: int) -> None:
        """What is sealed stays. Free the fine pages that are, and that no later query sees fine."""
        self._kept = self._written
        first, left = self.spans.first, min(length // PAGE_TOKENS - self.spans.recent, self.end)
        pages = self.fine.indices
        if len(pages) > first and first <= pages[first] < left:  # the oldest of them is behind the first pages
            self.fine.drop(lambda index: first <= index < left)

    def undo(self) -> None:
        """The step doesn't count: nor does what it sealed."""
        self._forget(self._kept)

    def crop(self, length: int, status: torch.Tensor) -> bool:
        """There are only so many tokens: pages that are recent again are written as fine ones, from their sealed bytes. Whether
        there were any; status: where it is said that the fine types can't store them.
        """
        block, whole = length // PAGE_TOKENS, -(-length // PAGE_TOKENS)
        self.forget_room()
        self.fine.drop(lambda index: index >= whole)
        pairs: list[tuple[int, int]] = []
        for index in range(max(self.spans.first, block - self.spans.recent), whole):
            if index not in self.fine.indices and index in self.tables.indices:
                pairs += self.fine.add_like(index, self.tables.column(index))
        self.fine_kernel.convert(self.tables.pool, self.fine.pool, pairs, status)
        self._forget(max(self.spans.first, min(self._written, block)))
        return bool(pairs)

    def _forget(self, end: int) -> None:
        """Pages from this one on aren't sealed."""
        self.waiting = []
        if self.end > end:
            self.tables.drop(lambda index: index >= end)
        self._end_at(end)
        self._written, self._kept = end, min(self._kept, end)

    def _end_at(self, end: int) -> None:
        self.end, self._next = end, next_due(self.spans, end, self.seals.turn)
