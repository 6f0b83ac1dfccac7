"""How a CPU takes a step: single tokens in integers, chunks of prompts in float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratakv.kernels.step import Step, running

Ints = NDArray[np.int64]

# Sequences with more query tokens than this are chunks of prompts
FEW_QUERY_TOKENS = 8
# So many query tokens at a time: their scores stay in the first-level cache, and tokens after them aren't looked at. Prompts
# of 2,048 tokens in turbo4, two cores of Zen 5, least of three turns, s in pieces of 16, 32, 64 and 128: SmolLM2 1.08, 1.04,
# 1.02, 1.05, Gemma 3 0.89, 0.90, 0.99, 1.09. Integers would take less, with errors of 6e-5: enough to move a code here and
# there, and with it greedy tokens
PIECE = 32


@dataclass(frozen=True, eq=False)
class Part:
    """Some of a step's query tokens. steps: theirs, one for each kind of pages. tokens: int64, which ones these are."""

    steps: tuple[Step, ...]
    tokens: Ints


@dataclass(frozen=True, eq=False)
class Split:
    """A step as the compiled kernels take it, made once for all its layers: chunks of prompts are cut into pieces, each a
    sequence with the same block table.

    given: the step, and where there are two kinds of pages that of the other kind: of the same query tokens, in the same
    sequences or longer ones. steps: the same, cut alike.
    """

    given: tuple[Step, ...]
    steps: tuple[Step, ...]

    @staticmethod
    def of(step: Step, *more: Step) -> Split:
        """The steps' split."""
        key = (Split, *map(id, more))  # the split keeps them, so that their ids stay their own
        return step.once(key, lambda: Split((step, *more), _cut((step, *more))))

    def __len__(self) -> int:
        return len(self.steps[0])

    @cached_property
    def numbers(self) -> tuple[tuple[int, ...], ...]:
        """What the compiled step asks for, where `decoding` isn't None: addresses of slots and query_start, the number of
        sequences, and `decoding`; then for each kind of pages those of pages, page_start, first and last."""
        one = self.steps[0]
        shared = address(one.slots), address(one.query_start), len(one), self.decoding or 0
        return shared, *(step.once(_seen_at, partial(_seen_at, step)) for step in self.steps)

    @cached_property
    def decoding(self) -> int | None:
        """How many sequences there are before the pieces of chunks, where these are the last ones: what one compiled call
        can take. None for other steps."""
        if any(step.mask is not None for step in self.steps):
            return None
        if _decodes(self.steps[0]):
            return len(self)
        chunks = np.flatnonzero(self._prefill)
        count = len(self) - len(chunks)
        return count if (chunks >= count).all() else None

    @cached_property
    def chunks(self) -> Part:
        """Pieces of chunks of prompts."""
        return self._part(self._prefill)

    @cached_property
    def others(self) -> Part:
        """All but the chunks: decoding."""
        return self._part(~self._prefill)

    @cached_property
    def _prefill(self) -> NDArray[np.bool_]:
        return _prompts(self.steps[0], np.diff(self.steps[0].query_start))

    def _part(self, mine: NDArray[np.bool_]) -> Part:
        tokens = np.flatnonzero(np.repeat(mine, np.diff(self.steps[0].query_start)))
        return Part(tuple(_at(step, tokens) for step in self.steps), tokens)


def _seen_at(step: Step) -> tuple[int, ...]:
    """Addresses of what a step's queries see. Steps of sealed pages serve many tokens."""
    return address(step.pages), address(step.page_start), address(step.first), address(step.last)


def _decodes(step: Step) -> bool:
    """Whether a rectangle has few query tokens a sequence: told at once, a decoding step's time is in microseconds."""
    return step.rectangle is not None and step.prefill is None and len(step.slots) <= FEW_QUERY_TOKENS * len(step)


def _prompts(step: Step, counts: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which sequences are chunks of prompts: those with many query tokens, or as `prefill` says."""
    came = counts if step.together is None else step.together
    many: NDArray[np.bool_] = came > FEW_QUERY_TOKENS if step.prefill is None else step.prefill
    return many & (counts > 0)


def _cut(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps with their chunks in pieces."""
    one, runs = steps[0], steps[-1]
    if any(step.mask is not None for step in steps):
        return steps
    alike = one is runs or one.query_start is runs.query_start or np.array_equal(one.query_start, runs.query_start)
    if alike and all(map(_decodes, steps)):
        return steps
    counts = np.diff(one.query_start)
    prompts = _prompts(one, counts)
    if alike and not (prompts & (counts > PIECE)).any():
        return steps
    cuts: list[int] = []
    for s in np.flatnonzero(counts).tolist():
        begin, end = one.query_start[s : s + 2].tolist()
        cuts += range(begin, end, PIECE) if prompts[s] else [begin]
    begins = np.array(cuts, dtype=np.int64)
    owner = _owners(one, begins)
    sizes, tokens = np.diff([*cuts, len(one.slots)]), np.arange(len(one.slots))
    return tuple(_pieces(step, _owners(step, begins), sizes, tokens, prompts[owner]) for step in steps)


def _owners(step: Step, tokens: Ints) -> Ints:
    """The sequence of each query token."""
    return np.searchsorted(step.query_start, tokens, side="right") - 1


def _at(step: Step, tokens: Ints) -> Step:
    """Some of a step's query tokens, ascending."""
    of, sizes = np.unique(_owners(step, tokens), return_counts=True)
    return _pieces(step, of, sizes, tokens, _prompts(step, np.diff(step.query_start))[of])


def _pieces(step: Step, of: Ints, sizes: Ints, tokens: Ints, prefill: NDArray[np.bool_]) -> Step:
    """A step of these query tokens. of, sizes, prefill: for each of its sequences the one whose table it has, how many tokens
    are its own, and whether they are a prompt's."""
    held = np.diff(step.page_start)[of]
    page_start = running(held)
    return replace(
        step,
        pages=step.pages[np.repeat(step.page_start[of] - page_start[:-1], held) + np.arange(page_start[-1])],
        page_start=page_start,
        query_start=running(sizes).astype(np.int32),
        first=step.first[tokens],
        last=step.last[tokens],
        slots=step.slots[tokens],
        prefill=prefill,
        together=None,
        rectangle=None,
    )


def address(array: NDArray[Any]) -> int:
    """Of an array's first value."""
    where: int = array.__array_interface__["data"][0]
    return where
