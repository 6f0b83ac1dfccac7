"""Steps over two kinds of pages: fine ones, which new tokens are written to, and sealed ones.

A query at position p, in page b, sees fine the first pages of its sequence and those from b - recent on, all others sealed. For
the kernels these are two steps over two pools. In the fine one each block of positions, a page's, is a sequence of its own, whose
table is the pages that the block sees fine: what a query sees of them lies side by side there. In the sealed one a query sees the
beginning of a table, up to what its block has left behind. Positions are in K already, so no kernel asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.step import Rectangle, Step, intervals, running
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.once import Once
from stratakv.profile.spans import Spans

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pages(Once):
    """Pages of one kind. indices: int64 [pages], ascending, which pages of a sequence they are. numbers: int64 [.., pages],
    the pool's."""

    indices: Ints
    numbers: Ints


class Seen(NamedTuple):
    """What query tokens see. rows: which of a step's query tokens these are, None for all. sealed: None where they see none."""

    rows: Ints | None
    fine: Step
    sealed: Step | None


@dataclass(frozen=True, eq=False)
class Cut:
    """What positions one after another see of a sequence's pages. All arrays int64.

    blocks: for each block of positions how many of them there are, and the columns of the fine pages that they see. sealed:
    the columns of the sealed pages that any sees. The rest [positions]: which tokens of these pages each sees, and its own
    place, a column of the fine pages and a token of that page.
    """

    blocks: list[tuple[int, Ints]]
    first: Ints
    last: Ints
    sealed: Ints
    sealed_first: Ints
    sealed_last: Ints
    column: Ints
    place: Ints

    @staticmethod
    def of(spans: Spans, fine: Ints, sealed: Ints, start: int, first: Ints, last: Ints) -> Cut:
        """fine, sealed: indices of the pages that there are. start: the first position. first, last: int64 [positions], the
        tokens of the sequence that each sees."""
        own = np.arange(start, start + len(first))
        block = own // PAGE_TOKENS
        last = np.maximum(first, last)
        blocks: list[tuple[int, Ints]] = []
        ends = np.empty((2, len(own)), dtype=np.int64)
        for b in range(int(block[0]), int(block[-1]) + 1):
            rows = slice(max(b * PAGE_TOKENS - start, 0), min((b + 1) * PAGE_TOKENS - start, len(own)))
            low, high = int(first[rows].min()), int(last[rows].max())
            seen = fines(spans, fine, b) & (fine >= low // PAGE_TOKENS) & (fine * PAGE_TOKENS < high)
            columns = np.flatnonzero(seen)
            blocks.append((rows.stop - rows.start, columns))
            ends[0, rows], ends[1, rows] = (within(fine[columns], end[rows]) for end in (first, last))
        limit = np.minimum(last, np.maximum(block - spans.recent, 0) * PAGE_TOKENS)
        columns = np.flatnonzero(
            (sealed * PAGE_TOKENS < int(limit.max())) & (sealed >= int(first.min()) // PAGE_TOKENS)
        )
        sealed_last = within(sealed[columns], limit)
        sealed_first = np.minimum(within(sealed[columns], first), sealed_last)
        place = np.searchsorted(fine, block), own % PAGE_TOKENS
        return Cut(blocks, ends[0], ends[1], columns, sealed_first, sealed_last, *place)


def fines(spans: Spans, indices: Ints, block: int) -> NDArray[np.bool_]:
    """Which pages are fine for queries of a block; later ones than its own too, for queries that see those."""
    return (indices < spans.first) | (indices >= block - spans.recent)


def due(spans: Spans, length: int, turn: float) -> int:
    """The page before which all are sealed once there are so many tokens.

    turn: of the one who seals, from 0 to 1. While a page's tokens come, the last ones for which a page is fine, the layers seal
    it one after another, so that no token waits for all of them. With 1 all layers have done their part; without recent pages a
    page is sealed as soon as it is full.
    """
    pages, rest = divmod(length, PAGE_TOKENS)
    return max(spans.first, pages - spans.recent + (rest >= turn * PAGE_TOKENS) if spans.recent else pages)


def next_due(spans: Spans, end: int, turn: float) -> int:
    """The least number of tokens for which `due` gives more than `end`, a page that isn't one of the first."""
    if not spans.recent:
        return PAGE_TOKENS * (end + 1)
    return PAGE_TOKENS * (end + spans.recent) + ceil(turn * PAGE_TOKENS)


def within(indices: Ints, positions: Ints) -> Ints:
    """How many tokens of these pages, one behind another, lie before each position."""
    page = positions // PAGE_TOKENS
    at = np.searchsorted(indices, page)
    there = np.append(indices, -1)[at] == page
    return at * PAGE_TOKENS + np.where(there, positions % PAGE_TOKENS, 0)


def two_steps(runs: Sequence[tuple[Cut, Ints, Ints]], prefill: NDArray[np.bool_] | None = None) -> Seen:
    """The steps of runs of query tokens: each with its cut, and the numbers of its sequence's fine and sealed pages. prefill:
    bool [runs], as Step's."""
    cuts = [cut for cut, *_ in runs]
    counts = np.array([len(cut.first) for cut in cuts], dtype=np.int64)
    blocks = np.array([count for cut in cuts for count, _ in cut.blocks], dtype=np.int64)
    of = np.repeat(np.arange(len(cuts)), [len(cut.blocks) for cut in cuts])  # the run of each block
    fine = _step(
        [numbers[columns] for cut, numbers, _ in runs for _, columns in cut.blocks],
        blocks,
        [cut.first for cut in cuts],
        [cut.last for cut in cuts],
        np.concatenate([numbers[cut.column] * PAGE_TOKENS + cut.place for cut, numbers, _ in runs]),
        None if prefill is None else prefill[of],
        counts[of],
    )
    if not any(cut.sealed_last.any() for cut in cuts):
        return Seen(None, fine, None)
    sealed = _step(
        [numbers[cut.sealed] for cut, _, numbers in runs],
        counts,
        [cut.sealed_first for cut in cuts],
        [cut.sealed_last for cut in cuts],
        np.full(int(counts.sum()), -1, dtype=np.int64),
        prefill,
        counts,
    )
    return Seen(None, fine, sealed)


def _step(
    tables: list[Ints],
    counts: Ints,
    first: list[Ints],
    last: list[Ints],
    slots: Ints,
    prefill: NDArray[np.bool_] | None,
    together: Ints,
) -> Step:
    return Step(
        np.concatenate(tables),
        running(np.array([len(table) for table in tables], dtype=np.int64)),
        running(counts).astype(np.int32),
        np.concatenate(first).astype(np.int32),
        np.concatenate(last).astype(np.int32),
        slots,
        prefill=prefill,
        together=together,
    )


@dataclass(frozen=True, eq=False)
class Mixture(Once):
    """Equally long sequences whose last `tokens` tokens are a step's queries.

    fine, sealed: their pages, numbers [sequences, pages]. length: tokens of each, the queries among them. window: a query sees
    itself and the window - 1 tokens before it.
    """

    spans: Spans
    fine: Pages
    sealed: Pages
    length: int
    tokens: int
    window: int | None

    def __len__(self) -> int:
        return len(self.fine.numbers)

    @property
    def start(self) -> int:
        """The first token that is there to be seen."""
        return 0 if self.window is None else max(self.length - self.tokens - self.window + 1, 0)

    def causal(self) -> tuple[Seen, ...]:
        """Each query sees the tokens up to its own."""
        return self.once("causal", self._causal)

    def under(self, mask: torch.Tensor) -> tuple[Seen, ...]:
        """Queries see what a mask says, as in Step: for one mask always the same steps. Where it has holes, block by block."""
        # the mask is kept, so that its id stays its own
        return self.once(("mask", id(mask)), lambda: (mask, self._under(mask)))[1]

    def seeing_all(self) -> tuple[Seen, ...]:
        """Every query sees all tokens, later ones too."""
        shape = 1, self.tokens
        return self._seeing(np.zeros(shape, dtype=np.int64), np.full(shape, self.length - self.start))

    def blocks(self) -> list[tuple[int, slice]]:
        """Number and query tokens of each block of positions, a page's."""
        begin = self.length - self.tokens
        return [
            (b, slice(max(b * PAGE_TOKENS - begin, 0), min((b + 1) * PAGE_TOKENS - begin, self.tokens)))
            for b in range(begin // PAGE_TOKENS, (self.length - 1) // PAGE_TOKENS + 1)
        ]

    def rectangles(self, block: int) -> list[tuple[Rectangle, Ints]]:
        """What is there for the queries of a block, fine and sealed: tables, and the positions of the tokens, ascending."""
        found = []
        fine = fines(self.spans, self.fine.indices, block), fines(self.spans, self.sealed.indices, block)
        for pages, chosen in zip((self.fine, self.sealed), (fine[0], ~fine[1]), strict=True):
            indices, numbers = pages.indices, pages.numbers
            columns = np.flatnonzero(chosen & ((indices + 1) * PAGE_TOKENS > self.start))
            positions = (indices[columns, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)).reshape(-1)
            there = (positions >= self.start) & (positions < self.length)
            skipped = int((positions < self.start).sum())
            shape = Rectangle(np.ascontiguousarray(numbers[:, columns]), skipped, int(there.sum()))
            found.append((shape, positions[there]))
        return found

    def _causal(self) -> tuple[Seen, ...]:
        if self.tokens == 1 and self.window is None:  # a decoding step's time is in these microseconds
            block = (self.length - 1) // PAGE_TOKENS
            if self.fine.once(block, lambda: self._sees_all_fine(block)):
                numbers = self.fine.numbers
                fine = Step.even(numbers, numbers.shape[1] * PAGE_TOKENS - (-self.length % PAGE_TOKENS), 1)
                return (Seen(None, fine, self.sealed.once(block, lambda: self._behind(block))),)
        position = np.arange(self.length - self.tokens, self.length)
        first = np.zeros_like(position) if self.window is None else np.maximum(position - self.window + 1, 0)
        return self._seeing(first[None] - self.start, position[None] + 1 - self.start)

    def _sees_all_fine(self, block: int) -> bool:
        """Whether the last token of a block sees all fine pages, of which the block is the last one."""
        indices = self.fine.indices
        return bool(indices[-1] == block and fines(self.spans, indices, block).all())

    def _behind(self, block: int) -> Step | None:
        """What one query a sequence in a block sees of sealed pages: the same for all tokens of the block."""
        count = int(np.searchsorted(self.sealed.indices, block - self.spans.recent))
        tables = np.ascontiguousarray(self.sealed.numbers[:, :count])
        return Step.even(tables, count * PAGE_TOKENS, 1) if count else None

    def _seeing(self, first: NDArray[Any], last: NDArray[Any]) -> tuple[Seen, ...]:
        """first, last: [sequences or 1, tokens], counted from `start`."""
        begin = self.length - self.tokens
        cuts = [
            Cut.of(
                self.spans,
                self.fine.indices,
                self.sealed.indices,
                begin,
                *(end.astype(np.int64) + self.start for end in ends),
            )
            for ends in zip(first, last, strict=True)
        ]
        return (
            two_steps([(cuts[s % len(cuts)], self.fine.numbers[s], self.sealed.numbers[s]) for s in range(len(self))]),
        )

    def _under(self, mask: torch.Tensor) -> tuple[Seen, ...]:
        found = intervals(mask)
        return self._masked(mask) if found is None else self._seeing(*found)

    def _masked(self, mask: torch.Tensor) -> tuple[Seen, ...]:
        found = []
        for block, queries in self.blocks():
            rows = np.concatenate([s * self.tokens + np.arange(queries.start, queries.stop) for s in range(len(self))])
            steps: list[Step | None] = []
            for shape, positions in self.rectangles(block):
                if not shape.tokens:
                    steps.append(None)
                    continue
                end, count = shape.start + shape.tokens, queries.stop - queries.start
                step = Step.even(shape.tables, end, count)
                columns = torch.from_numpy(positions - self.start).to(mask.device)
                part = mask[..., queries, :].index_select(-1, columns)
                steps.append(replace(step, rectangle=shape, mask=part))
            fine, sealed = steps
            assert fine is not None
            found.append(Seen(rows, fine, sealed))
        return tuple(found)
