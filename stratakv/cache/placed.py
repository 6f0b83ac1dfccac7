"""Where the new tokens of a step go in one layer's pages, and what their queries see: what compiled steps are given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratakv.pages.layout import PageLayout


@dataclass(slots=True)
class Placed:
    """One layer's part of a step. compiled: its page layout as compiled kernels know it. sequences: how many there are, the
    first `decoding` of which are attended as decoding is, the others, short chunks of prompts, in float32.

    addresses: base, stride, and where the arrays slots, pages, page_start, query_start, first and last lie, as
    `kernels.sequences.Sequences` and `kernels.ragged` have them; page p begins at base + p * stride. arrays: what keeps them.
    """

    layout: PageLayout
    compiled: Any
    sequences: int
    decoding: int
    addresses: tuple[int, ...]
    arrays: tuple[NDArray[Any], ...]


def address(array: NDArray[Any]) -> int:
    """Of an array's first value."""
    where: int = array.__array_interface__["data"][0]
    return where


class PlacingLayer(ABC):
    """A cache layer that a compiled step may write to and read from without `update`.

    ragged: a step's tokens may belong to many sequences, in one row of a batch, whatever the mask says.
    """

    ragged = False

    @abstractmethod
    def place(self, batch: int, tokens: int) -> Placed | None:
        """Make room for `tokens` more of each of `batch` sequences; None where only `update` will do."""

    @abstractmethod
    def stored(self, tokens: int) -> None:
        """They are there."""

    @abstractmethod
    def refusal(self, side: str, error: ValueError) -> Exception:
        """What to raise where states can't be stored. side: "K" or "V"."""


@lru_cache(maxsize=64)
def starts(batch: int, pages: int, tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """page_start and query_start of equally long sequences."""
    return np.arange(batch + 1, dtype=np.int64) * pages, np.arange(batch + 1, dtype=np.int32) * tokens


@lru_cache(maxsize=64)
def seen(
    batch: int, pages: int, tokens: int, start: int, dropped: int, window: int | None
) -> tuple[tuple[NDArray[Any], ...], tuple[int, ...]]:
    """page_start, query_start, first and last of equally long sequences whose queries stand at positions start, start + 1,
    ... and see all up to themselves, or the last `window`; and their addresses."""
    position = np.arange(start, start + tokens, dtype=np.int32)
    first = np.zeros_like(position) if window is None else np.maximum(position - (window - 1), 0)
    ends = np.tile(np.maximum(first - dropped, 0), batch), np.tile(position + 1 - dropped, batch)
    arrays = (*starts(batch, pages, tokens), *ends)
    return arrays, tuple(address(array) for array in arrays)
