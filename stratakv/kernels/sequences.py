"""The sequences of one step: their block tables, their query tokens, and what each query token sees. Shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from stratakv.cache.layout import PAGE_TOKENS

# Sequences with more query tokens than this are chunks of prompts
FEW_QUERY_TOKENS = 8


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
    def chunks(self) -> tuple[Chunk, ...]:
        """Chunks of prompts: sequences with many query tokens (or as `prefill` says), causal, with one window or none."""
        many = np.diff(self.query_start) > FEW_QUERY_TOKENS if self.prefill is None else self.prefill
        found = (self._chunk(s) for s in np.flatnonzero(many).tolist())
        return tuple(chunk for chunk in found if chunk)

    @cached_property
    def others(self) -> Sequences:
        """All but the chunks; their query tokens are `other_tokens`."""
        chunked = {chunk.queries.start for chunk in self.chunks}
        kept = [s for s, start in enumerate(self.query_start[:-1].tolist()) if start not in chunked or self._empty(s)]
        tables = [self.pages[self.page_start[s] : self.page_start[s + 1]] for s in kept]
        return Sequences(
            np.concatenate([np.empty(0, dtype=np.int64), *tables]),
            _starts(np.array([len(table) for table in tables], dtype=np.int64)),
            _starts(np.diff(self.query_start)[kept].astype(np.int64)).astype(np.int32),
            self.first[self.other_tokens],
            self.last[self.other_tokens],
        )

    @cached_property
    def other_tokens(self) -> NDArray[np.int64]:
        """Numbers of the query tokens that belong to no chunk."""
        own = np.ones(len(self.first), dtype=bool)
        for chunk in self.chunks:
            own[chunk.queries] = False
        return np.flatnonzero(own)

    def _empty(self, s: int) -> bool:
        return bool(self.query_start[s] == self.query_start[s + 1])

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


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[0, counts[0], counts[0] + counts[1], ...]"""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
