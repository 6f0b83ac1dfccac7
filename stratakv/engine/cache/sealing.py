"""A layer's sealed pages: what its pages become when they leave the spans, and when."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stratakv.engine.cache.tables import Tables
from stratakv.errors import UserError
from stratakv.kernels.choice import kernel_for
from stratakv.kernels.converting import convert
from stratakv.kernels.spans import due
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
    """name: how errors call the layer. fine: the layer's pages that are written. end: the first page that isn't sealed.

    A page that is about to leave the span is in both; its bytes are made once, from the fine ones, and kept as long as the page
    is full.
    """

    def __init__(self, name: str, seals: Seals, fine: Tables) -> None:
        self.name, self.seals, self.spans, self.fine = name, seals, seals.spans, fine
        layout = fine.pool.layout
        sealed = replace(layout, k=seals.k, v=seals.v)
        self.tables = Tables(GrowingPool(sealed, fine.pool.device), len(fine))
        self.kernel, self.fine_kernel = (kernel_for(each, fine.pool.device) for each in (sealed, layout))
        self.end = self.spans.first
        self._written = self.end
        self._waiting: list[tuple[int, int]] = []

    def make_room(self, end: int) -> None:
        """Pages up to this one have numbers; what they hold is written by `seal`."""
        for index in range(self.end, end):
            if index in self.fine.indices:  # others are gone, out of a window
                self._waiting += self.tables.add_like(index, self.fine.column(index))
        self.end = max(self.end, end)

    def seal(self) -> None:
        """Write what there is room for. UserError where the types can't store it; it is not sealed then."""
        pairs, self._waiting = self._waiting, []
        try:
            if pairs:
                convert(self.fine.pool, self.tables.pool, self.kernel, pairs, self.name)
        except UserError:
            self.forget_room()
            raise
        self._written = self.end

    def forget_room(self) -> None:
        """What `make_room` made, and `seal` didn't write, is gone: the step that asked for it has failed."""
        self._waiting = []
        if self.end > self._written:
            self.tables.drop(lambda index: index >= self._written)
            self.end = self._written

    def seal_due(self, length: int) -> None:
        """A step is over, after which there are so many tokens: seal what is due. UserError as in `seal`."""
        self.forget_room()
        end = due(self.spans, length, self.seals.turn)
        if end > self.end:
            self.make_room(end)
            self.seal()

    def free(self, length: int) -> None:
        """Free the fine pages that are sealed and that no later query sees fine."""
        first, left = self.spans.first, min(length // PAGE_TOKENS - self.spans.recent, self.end)
        if any(
            first <= index < left for index in self.fine.indices[: first + 1]
        ):  # the oldest of them is behind the first pages
            self.fine.drop(lambda index: first <= index < left)

    def crop(self, length: int) -> None:
        """There are only so many tokens: pages that are recent again are written as fine ones, from their sealed bytes."""
        block, whole = length // PAGE_TOKENS, -(-length // PAGE_TOKENS)
        self.forget_room()
        self.fine.drop(lambda index: index >= whole)
        pairs: list[tuple[int, int]] = []
        for index in range(max(self.spans.first, block - self.spans.recent), whole):
            if index not in self.fine.indices and index in self.tables.indices:
                pairs += self.fine.add_like(index, self.tables.column(index))
        convert(self.tables.pool, self.fine.pool, self.fine_kernel, pairs, self.name)
        self.tables.drop(lambda index: index >= block)
        self.end = self._written = max(self.spans.first, min(self._written, block))
