"""How a CPU takes a step: single tokens in integers, short chunks of prompts in float32, long ones block by block."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratakv.kernels.step import Step, running

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
    """One sequence with many query tokens, its last ones. pages: int64 [pages], its table. queries: which query tokens
    of the step are its own. tokens: how many it has in its pages.

    causal: each sees all tokens up to its own, of the last `window`; otherwise first and last, int32 [queries], say what it sees.
    """

    pages: NDArray[np.int64]
    queries: slice
    tokens: int
    causal: bool
    window: int | None
    first: NDArray[np.int32]
    last: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a step's sequences. tokens: int64, which of the step's query tokens are theirs."""

    step: Step
    tokens: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Split:
    """A step as the compiled kernels take it, made once for all its layers."""

    step: Step

    @staticmethod
    def of(step: Step) -> Split:
        """The step's split."""
        return step.once(Split, lambda: Split(step))

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where the arrays slots, pages, page_start, query_start, first and last lie."""
        one = self.step
        arrays = one.slots, one.pages, one.page_start, one.query_start, one.first, one.last
        return tuple(address(array) for array in arrays)

    @cached_property
    def decoding(self) -> int | None:
        """How many sequences there are before the short chunks, where these are the last ones and there are no long
        ones: what one compiled call can take. None for other steps."""
        step = self.step
        if step.rectangle is not None and step.prefill is None and len(step.slots) <= FEW_QUERY_TOKENS * len(step):
            return len(step) if step.mask is None else None
        chunks = np.flatnonzero(self._prefill)
        count = len(self.step) - len(chunks)
        good = self.step.mask is None and (chunks >= count).all() and self._short[chunks].all()
        return count if good else None

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """Long chunks of prompts: sequences with many query tokens (or as `prefill` says)."""
        return tuple(self._chunk(s) for s in np.flatnonzero(self._prefill & ~self._short).tolist())

    @cached_property
    def short_chunks(self) -> Part:
        """Chunks of few query tokens, or of few pairs of a query and what it sees."""
        return self._part(self._prefill & self._short)

    @cached_property
    def others(self) -> Part:
        """All but the chunks: decoding."""
        return self._part(~self._prefill)

    @cached_property
    def _counts(self) -> NDArray[np.int32]:
        return np.diff(self.step.query_start)

    @cached_property
    def _prefill(self) -> NDArray[np.bool_]:
        prefill = self.step.prefill
        many: NDArray[np.bool_] = self._counts > FEW_QUERY_TOKENS if prefill is None else prefill
        return many & (self._counts > 0)

    @cached_property
    def _short(self) -> NDArray[np.bool_]:
        counts = self._counts.astype(np.int64)
        seen = np.zeros(len(self.step), dtype=np.int64)
        seen[counts > 0] = self.step.last[self.step.query_start[1:][counts > 0] - 1]
        short: NDArray[np.bool_] = (counts <= SHORT_CHUNK) | (counts * seen <= FEW_PAIRS)
        return short

    def _part(self, mine: NDArray[np.bool_]) -> Part:
        step, kept = self.step, np.flatnonzero(mine).tolist()
        tables = [step.pages[step.page_start[s] : step.page_start[s + 1]] for s in kept]
        tokens = np.flatnonzero(np.repeat(mine, self._counts))
        part = replace(
            step,
            pages=np.concatenate([np.empty(0, dtype=np.int64), *tables]),
            page_start=running(np.array([len(table) for table in tables], dtype=np.int64)),
            query_start=running(self._counts[kept].astype(np.int64)).astype(np.int32),
            first=step.first[tokens],
            last=step.last[tokens],
            slots=step.slots[tokens],
            prefill=None,
            rectangle=None,
        )
        return Part(part, tokens)

    def _chunk(self, s: int) -> Chunk:
        step = self.step
        queries = slice(int(step.query_start[s]), int(step.query_start[s + 1]))
        first, last = step.first[queries], step.last[queries]
        sees = int((last - first).max())
        window = sees if first[-1] > 0 else None
        expected = np.zeros_like(last) if window is None else np.maximum(last - sees, 0)
        causal = not ((np.diff(last) != 1).any() or (first != expected).any())
        pages = np.ascontiguousarray(step.pages[step.page_start[s] : step.page_start[s + 1]])
        return Chunk(pages, queries, int(last.max()), causal, window, first, last)


def address(array: NDArray[Any]) -> int:
    """Of an array's first value."""
    where: int = array.__array_interface__["data"][0]
    return where
