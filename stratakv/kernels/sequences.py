"""The sequences of one step: their block tables, their query tokens, and what each query token sees. Shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stratakv.pages.layout import PAGE_TOKENS

# Sequences with more query tokens than this are chunks of prompts
FEW_QUERY_TOKENS = 8
# Chunks of so few query tokens, or of so few pairs of a query and a token that it may see, read packed rows as decoding does, in
# float32, in the step's one compiled call; others decode whole blocks for torch. A prompt's end of 16 to 384 tokens on SmolLM2
# (turbo4, two cores, Zen 5), ms to the first token in the one way and the other: 64 tokens 27 against 55 alone, 52 against 80
# after 512 tokens, 254 against 276 after 6,000; 256 tokens 141 against 174 alone, 262 against 237 after 512; 128 after 6,000 604
# against 451. Integers would take a sixth (1 token) to a third, with errors of 6e-5: enough to move a code here and there, and
# with it greedy tokens
SHORT_CHUNK = 64
FEW_PAIRS = 2**16


@dataclass(frozen=True, eq=False)
class Chunk:
    """One sequence with many query tokens, its last ones, each seeing all tokens up to its own (of the last `window`).

    pages: int64 [pages], its table. queries: which query tokens of the step are its own. tokens: how many it has in its pages.
    """

    pages: NDArray[np.int64]
    queries: slice
    tokens: int
    window: int | None


@dataclass(frozen=True, eq=False)
class Sequences:
    """Ragged: sequence s has the query tokens query_start[s] .. query_start[s + 1] and the block table
    pages[page_start[s] : page_start[s + 1]].

    pages: int64 [all tables' pages], numbers of a pool's pages or addresses. page_start: int64 [sequences + 1]. query_start:
    int32 [sequences + 1]. first, last: int32 [query tokens]: each query token sees the tokens first .. last - 1 of its sequence,
    counted from the first token of its table's first page. Arrays are contiguous.

    prefill: bool [sequences], which ones are chunks of prompts; None: those with more than FEW_QUERY_TOKENS. An engine that says
    it itself gets the same arithmetic for the same tokens, however a prompt is cut.
    """

    pages: NDArray[np.int64]
    page_start: NDArray[np.int64]
    query_start: NDArray[np.int32]
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    prefill: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.query_start) - 1

    @staticmethod
    def causal(
        tables: Sequence[Sequence[int] | NDArray[np.int64]],
        lengths: Sequence[int],
        queries: Sequence[int],
        *,
        window: int | None = None,
        dropped: Sequence[int] | None = None,
    ) -> Sequences:
        """Sequences whose query tokens are their last ones, each seeing all tokens up to its own.

        tables: page numbers of each sequence. lengths: tokens of each, the query tokens among them. queries: how many of them
        are queries, 0 allowed. window: a query sees itself and the window - 1 tokens before it. dropped: tokens of the pages
        before each table's first page that are gone (a multiple of PAGE_TOKENS), as windows let them go.
        """
        counts = np.asarray(queries, dtype=np.int64)
        ends = np.asarray(lengths, dtype=np.int64)
        if dropped is not None:
            ends = ends - np.asarray(dropped, dtype=np.int64)
        starts = _starts(counts)
        # position of each query token, counted from its table's first page
        position = np.repeat(ends - counts - starts[:-1], counts) + np.arange(starts[-1])
        first = np.zeros_like(position) if window is None else np.maximum(position - window + 1, 0)
        parts = [np.asarray(table, dtype=np.int64) for table in tables]
        return Sequences(
            np.concatenate([np.empty(0, dtype=np.int64), *parts]),
            _starts(np.array([len(part) for part in parts], dtype=np.int64)),
            starts.astype(np.int32),
            first.astype(np.int32),
            (position + 1).astype(np.int32),
        )

    def slots(self) -> NDArray[np.int64]:
        """Where the query tokens themselves are stored, int64 [query tokens]: page * PAGE_TOKENS + place within the page.

        For query tokens that see themselves last, as `causal` makes them.
        """
        position = self.last.astype(np.int64) - 1
        table = np.repeat(self.page_start[:-1], np.diff(self.query_start))
        slots: NDArray[np.int64] = self.pages[table + position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
        return slots

    @cached_property
    def decoding(self) -> int | None:
        """How many sequences there are before the short chunks, where these are the last ones and there are no long ones."""
        chunks = np.flatnonzero(self._prefill)
        count = len(self) - len(chunks)
        return count if (chunks >= count).all() and self._short[chunks].all() else None

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """Long chunks of prompts: sequences with many query tokens (or as `prefill` says), causal, with one window or none."""
        found = (self._chunk(s) for s in np.flatnonzero(self._prefill & ~self._short).tolist())
        return tuple(chunk for chunk in found if chunk)

    @cached_property
    def short_chunks(self) -> Part:
        """Chunks of few query tokens, or of few pairs of a query and what it sees."""
        return self._part(self._prefill & self._short)

    @cached_property
    def others(self) -> Part:
        """All but the chunks: decoding, and long ones that are not causal."""
        long = {chunk.queries.start for chunk in self.chunks}
        rest = ~self._prefill | ~self._short
        starts = self.query_start[:-1].tolist()
        return self._part(rest & np.array([start not in long for start in starts], dtype=bool) | (self._counts == 0))

    @property
    def _counts(self) -> NDArray[np.int32]:
        return np.diff(self.query_start)

    @property
    def _prefill(self) -> NDArray[np.bool_]:
        many: NDArray[np.bool_] = self._counts > FEW_QUERY_TOKENS if self.prefill is None else self.prefill
        return many & (self._counts > 0)

    @cached_property
    def _short(self) -> NDArray[np.bool_]:
        counts = self._counts.astype(np.int64)
        seen = np.zeros(len(self), dtype=np.int64)
        seen[counts > 0] = self.last[self.query_start[1:][counts > 0] - 1]
        short: NDArray[np.bool_] = (counts <= SHORT_CHUNK) | (counts * seen <= FEW_PAIRS)
        return short

    def _part(self, mine: NDArray[np.bool_]) -> Part:
        kept = np.flatnonzero(mine).tolist()
        tables = [self.pages[self.page_start[s] : self.page_start[s + 1]] for s in kept]
        tokens = np.flatnonzero(np.repeat(mine, self._counts))
        part = Sequences(
            np.concatenate([np.empty(0, dtype=np.int64), *tables]),
            _starts(np.array([len(table) for table in tables], dtype=np.int64)),
            _starts(self._counts[kept].astype(np.int64)).astype(np.int32),
            self.first[tokens],
            self.last[tokens],
        )
        return Part(part, tokens)

    def _chunk(self, s: int) -> Chunk | None:
        queries = slice(int(self.query_start[s]), int(self.query_start[s + 1]))
        first, last = self.first[queries], self.last[queries]
        sees = int((last - first).max())
        window = sees if first[-1] > 0 else None
        expected = np.zeros_like(last) if window is None else np.maximum(last - sees, 0)
        if (np.diff(last) != 1).any() or (first != expected).any():
            return None
        pages = self.pages[self.page_start[s] : self.page_start[s + 1]]
        return Chunk(np.ascontiguousarray(pages), queries, int(last[-1]), window)


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a step's sequences. tokens: int64, which of the step's query tokens are theirs."""

    sequences: Sequences
    tokens: NDArray[np.int64]


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[0, counts[0], counts[0] + counts[1], ...]"""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
