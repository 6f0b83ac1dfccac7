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
# Query tokens of a chunk that see so many tokens or fewer read packed rows as decoding does, in float32, in the step's one
# compiled call. They see one unit of pages (attend.cpp), so that their sums are the same to the bit however a prompt was cut
NEAR = 2048
# Those that see more are decoded in whole blocks for torch, unless they are so few
SHORT_CHUNK = 64
# So many query tokens at a time: their scores stay in the first-level cache, and tokens after them aren't looked at.
# 512 tokens of SmolLM2 (turbo4, two cores of Zen 5), ms in pieces of 512, 128, 64 and 32, and by torch: at a prompt's begin 333,
# 243, 217, 201, 321; after 512 tokens 548, 406, 344, 327, 421; after 1,536 966, 711, 604, 574, 621. Integers would take less,
# with errors of 6e-5: enough to move a code here and there, and with it greedy tokens
PIECE = 32


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
    """A step as the compiled kernels take it, made once for all its layers: chunks of prompts are cut into pieces, each a
    sequence with the same block table."""

    step: Step

    @staticmethod
    def of(step: Step) -> Split:
        """The step's split."""
        return step.once(Split, lambda: Split(_cut(step)))

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Where the arrays slots, pages, page_start, query_start, first and last lie."""
        one = self.step
        arrays = one.slots, one.pages, one.page_start, one.query_start, one.first, one.last
        return tuple(address(array) for array in arrays)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The addresses, the number of sequences, and `decoding`: what the compiled step asks for, where that isn't None."""
        return *self.addresses, len(self.step), self.decoding or 0

    @cached_property
    def decoding(self) -> int | None:
        """How many sequences there are before the pieces of chunks, where these are the last ones and torch has nothing
        to do: what one compiled call can take. None for other steps."""
        step = self.step
        if _decodes(step):
            return len(step) if step.mask is None else None
        chunks = np.flatnonzero(self._prefill)
        count = len(self.step) - len(chunks)
        good = self.step.mask is None and (chunks >= count).all() and self._short[chunks].all()
        return count if good else None

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """Long chunks of prompts, for torch."""
        return tuple(self._chunk(s) for s in np.flatnonzero(self._prefill & ~self._short).tolist())

    @cached_property
    def short_chunks(self) -> Part:
        """Pieces of chunks."""
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
        return _prompts(self.step, self._counts)

    @cached_property
    def _short(self) -> NDArray[np.bool_]:
        short: NDArray[np.bool_] = self._counts <= PIECE
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
            together=None,
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


def _decodes(step: Step) -> bool:
    """Whether a rectangle has few query tokens a sequence: told at once, a decoding step's time is in microseconds."""
    return step.rectangle is not None and step.prefill is None and len(step.slots) <= FEW_QUERY_TOKENS * len(step)


def _prompts(step: Step, counts: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which sequences are chunks of prompts: those with many query tokens, or as `prefill` says."""
    came = counts if step.together is None else step.together
    many: NDArray[np.bool_] = came > FEW_QUERY_TOKENS if step.prefill is None else step.prefill
    return many & (counts > 0)


def _cut(step: Step) -> Step:
    """The step with its chunks in pieces; a chunk's tokens that are torch's stay together, and are more than a piece."""
    if step.mask is not None or _decodes(step):
        return step
    counts = np.diff(step.query_start)
    prompts = _prompts(step, counts)
    if not (prompts & (counts > PIECE)).any():
        return step
    of: list[int] = []  # sequence of each piece
    ends: list[int] = []
    for s, (begin, end) in enumerate(zip(step.query_start[:-1].tolist(), step.query_start[1:].tolist(), strict=True)):
        cuts = [end]
        if prompts[s]:
            far = step.last[begin:end] - step.first[begin:end] > NEAR
            near = begin + int(far.argmax()) if far.any() else end
            near = near if end - near > SHORT_CHUNK else end
            cuts = [*range(begin + PIECE, near, PIECE), *([near] if begin < near < end else []), end]
        of += [s] * len(cuts)
        ends += cuts
    sizes = np.diff(step.page_start)[of]
    page_start = running(sizes)
    return replace(
        step,
        pages=step.pages[np.repeat(step.page_start[of] - page_start[:-1], sizes) + np.arange(page_start[-1])],
        page_start=page_start,
        query_start=np.array([0, *ends], dtype=np.int32),
        prefill=prompts[of],
        together=None,
        rectangle=None,
    )


def address(array: NDArray[Any]) -> int:
    """Of an array's first value."""
    where: int = array.__array_interface__["data"][0]
    return where
