"""What has to be read to score continuations, and which of it can be read at once: plain lists of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# A batch may compute so many times the tokens that its rows take alone, each going on from what it shares with the one before
_MOST_PADDING = 1.25


@dataclass
class Row:
    """Tokens to read once, however many continuations they score.

    tokens: all but the last one of context and continuation. wanted: (request, its continuation's ids); of each the last
    prediction is the row's last.
    """

    tokens: tuple[int, ...]
    wanted: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    @property
    def first(self) -> int:
        """Position of the first prediction that is wanted."""
        return len(self.tokens) - max(len(ids) for _, ids in self.wanted)


@dataclass(frozen=True)
class Batch:
    """Rows for one call, and how many tokens at their beginning are the same in all; each row has more than those."""

    rows: tuple[Row, ...]
    stem: int


def rows_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int) -> list[Row]:
    """Rows for (context, continuation), in an order that has those with the same beginning side by side.

    longest: tokens that the model reads at most; longer contexts lose their beginning. A continuation has at most as many.
    Choices that differ in their last token alone are one row; without a continuation there is none.
    """
    found: dict[tuple[int, ...], Row] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not continuation:
            continue
        tokens = tuple((*context, *continuation)[-(longest + 1) :][:-1])
        found.setdefault(tokens, Row(tokens)).wanted.append((index, tuple(continuation)))
    return sorted(found.values(), key=lambda row: row.tokens)


def batches(rows: Sequence[Row], most: int, *, shared: bool = True) -> list[Batch]:
    """Rows, as `rows_of` orders them, in batches of up to `most`.

    A row joins the one before it only where padding, and losing a longer common beginning, cost no more than a quarter: the
    choices of one question do, and questions of like length. shared: False where rows can't go on from what others have read.
    """
    found: list[list[Row]] = []
    for row in rows:
        if found and len(found[-1]) < most and _worth_it([*found[-1], row], shared):
            found[-1].append(row)
        else:
            found.append([row])
    return [Batch(tuple(each), _stem(each) if shared else 0) for each in found]


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens at their beginning are the same."""
    count = min(len(left), len(right))
    return next((at for at in range(count) if left[at] != right[at]), count)


def _stem(rows: Sequence[Row]) -> int:
    return min(common(rows[0].tokens, rows[-1].tokens), *(row.first for row in rows))


def _worth_it(rows: Sequence[Row], shared: bool) -> bool:
    stem = _stem(rows) if shared else 0
    padded = len(rows) * (max(len(row.tokens) for row in rows) - stem)
    alone = len(rows[0].tokens) - stem
    for before, row in pairwise(rows):
        held = min(common(before.tokens, row.tokens), row.first) if shared else 0
        alone += len(row.tokens) - held
    return padded <= _MOST_PADDING * alone
