"""The sequences of one step: their block tables, their query tokens, and what each query token sees. Shared by all layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.once import Once


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Equally long sequences. tables: int64 [sequences, pages]; start, tokens: which tokens are there to be seen,
    counted from the tables' first page."""

    tables: NDArray[np.int64]
    start: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Step(Once):
    """Ragged: sequence s has the query tokens query_start[s] .. query_start[s + 1] and the block table
    pages[page_start[s] : page_start[s + 1]].

    pages: int64 [all tables' pages], numbers of a pool's pages. page_start: int64 [sequences + 1]. query_start: int32
    [sequences + 1]. first, last: int32 [query tokens]: each query token sees the tokens first .. last - 1 of its
    sequence, counted from the first token of its table's first page. slots: int64 [query tokens], where the query
    tokens' own K and V go: page * page_tokens + place within the page. Arrays are contiguous.

    prefill: bool [sequences], which ones are chunks of prompts; None: a kernel tells by their number of tokens. An
    engine that says it itself gets the same arithmetic for the same tokens, however a prompt is cut. together: int64
    [sequences], how many query tokens they came with, where they are blocks of a longer run; None: their own number.

    rectangle: where all sequences are equally long. mask: with a rectangle, for queries whose tokens lie not all side by side:
    boolean (True: may attend) or additive, [sequences or 1, 1 or q_heads, query tokens of each, rectangle.tokens]; what first and
    last say doesn't count then.
    """

    pages: NDArray[np.int64]
    page_start: NDArray[np.int64]
    query_start: NDArray[np.int32]
    first: NDArray[np.int32]
    last: NDArray[np.int32]
    slots: NDArray[np.int64]
    prefill: NDArray[np.bool_] | None = None
    together: NDArray[np.int64] | None = None
    rectangle: Rectangle | None = None
    mask: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.query_start) - 1

    @staticmethod
    def causal(
        tables: Sequence[Sequence[int] | NDArray[np.int64]],
        lengths: Sequence[int],
        queries: Sequence[int],
        *,
        window: int | None = None,
        first: Sequence[int] | None = None,
        dropped: Sequence[int] | None = None,
        page_tokens: int = PAGE_TOKENS,
        prefill: NDArray[np.bool_] | None = None,
    ) -> Step:
        """Sequences whose query tokens are their last ones, each seeing all tokens up to its own.

        tables: page numbers of each sequence. lengths: tokens of each, the query tokens among them. queries: how many of them
        are queries, 0 allowed. window: a query sees itself and the window - 1 tokens before it. first: by query token, the first
        token of its sequence that it sees, where that is no window's. dropped: tokens of the pages before each table's first
        page that are gone (a multiple of page_tokens), as windows let them go.
        """
        counts = np.asarray(queries, dtype=np.int64)
        gone = np.zeros_like(counts) if dropped is None else np.asarray(dropped, dtype=np.int64)
        starts = running(counts)
        # position of each query token, counted from its table's first page
        position = np.repeat(np.asarray(lengths, dtype=np.int64) - gone - counts - starts[:-1], counts)
        position += np.arange(starts[-1])
        if first is not None:
            begin = np.asarray(first, dtype=np.int64) - np.repeat(gone, counts)
        else:
            begin = np.zeros_like(position) if window is None else np.maximum(position - window + 1, 0)
        parts = [np.asarray(table, dtype=np.int64) for table in tables]
        pages = np.concatenate([np.empty(0, dtype=np.int64), *parts])
        page_start = running(np.array([len(part) for part in parts], dtype=np.int64))
        own = np.full(len(position), -1, dtype=np.int64)
        held = position // page_tokens < np.repeat(np.diff(page_start), counts)
        at, place = (np.repeat(page_start[:-1], counts) + position // page_tokens)[held], position[held] % page_tokens
        own[held] = pages[at] * page_tokens + place
        return Step(
            pages,
            page_start,
            starts.astype(np.int32),
            begin.astype(np.int32),
            (position + 1).astype(np.int32),
            own,
            prefill,
        )

    @staticmethod
    def even(
        tables: NDArray[np.int64],
        length: int,
        tokens: int,
        *,
        window: int | None = None,
        dropped: int = 0,
        page_tokens: int = PAGE_TOKENS,
    ) -> Step:
        """The same for equally long sequences, as a rectangle: `tokens` new ones each, after which they have `length`.

        tables: int64 [sequences, pages]. What is there to be seen are the tokens that the first new one sees, and all after them.
        """
        count, pages = tables.shape
        end = length - dropped
        seen = 0 if window is None else max(length - tokens - window + 1 - dropped, 0)
        if tokens == 1:  # a decoding step's time is in these microseconds
            first, last = np.array([seen] * count, dtype=np.int32), np.array([end] * count, dtype=np.int32)
            slots = tables[:, (end - 1) // page_tokens] * page_tokens + (end - 1) % page_tokens
        else:
            own = np.arange(end - tokens, end, dtype=np.int64)
            visible = np.zeros_like(own) if window is None else np.maximum(own - (window - 1), 0)
            first, last = (np.tile(ends, count).astype(np.int32) for ends in (visible, own + 1))
            slots = (tables[:, own // page_tokens] * page_tokens + own % page_tokens).reshape(-1)
        return Step(
            tables.reshape(-1),
            _even_starts(count, pages),
            _query_starts(count, tokens),
            first,
            last,
            slots,
            rectangle=Rectangle(tables, seen, end - seen),
        )

    def under(self, mask: torch.Tensor) -> Step:
        """The rectangle's step where the queries see what a mask says; for one mask always the same step."""
        # the mask is kept, so that its id stays its own
        return self.once(("mask", id(mask)), lambda: (mask, self._under(mask)))[1]

    def seeing_all(self) -> Step:
        """The rectangle's step where every query sees all tokens, later ones too."""
        return self.once("all", self._seeing_all)

    def _seeing_all(self) -> Step:
        shape = _rectangle(self)
        first = np.full_like(self.first, shape.start)
        return replace(self, first=first, last=np.full_like(self.last, shape.start + shape.tokens))

    def _under(self, mask: torch.Tensor) -> Step:
        shape = _rectangle(self)
        found = intervals(mask)
        if found is None:
            return replace(self, mask=mask)
        queries = len(self.first) // len(self)
        first, last = (np.broadcast_to(ends, (len(self), queries)).reshape(-1) + shape.start for ends in found)
        return replace(self, first=first.astype(np.int32), last=last.astype(np.int32))


def intervals(mask: torch.Tensor) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """A boolean mask [batch or 1, 1, q_tokens, tokens] as int32 [batch or 1, q_tokens] first and last; None for one
    with holes, for an additive one, and for one that tells heads apart."""
    if mask.dtype != torch.bool or mask.dim() != 4 or mask.shape[1] != 1:
        return None
    seen = mask[:, 0].to(torch.int32)
    count = seen.sum(-1, dtype=torch.int32)
    first = seen.argmax(-1).to(torch.int32)
    last = (mask.shape[-1] - seen.flip(-1).argmax(-1)).to(torch.int32)
    last = torch.where(count > 0, last, first)
    if not bool((last - first == count).all()):
        return None
    return first.cpu().numpy(), last.cpu().numpy()


# In additive masks as good as minus infinity; softmaxes of rows that hold nothing else stay finite
MASKED = -1e30


def sees_nothing(mask: torch.Tensor) -> torch.Tensor:
    """Which queries a mask, boolean or additive, hides everything from: a bool less its last dimension."""
    if mask.dtype == torch.bool:
        return ~mask.any(-1)
    return (mask <= max(MASKED, torch.finfo(mask.dtype).min)).all(-1)


@lru_cache(maxsize=64)
def _even_starts(count: int, size: int) -> NDArray[np.int64]:
    """Where equally large parts of arrays begin, and where they end: page_start."""
    return np.arange(count + 1, dtype=np.int64) * size


@lru_cache(maxsize=64)
def _query_starts(count: int, tokens: int) -> NDArray[np.int32]:
    """The same as query_start."""
    return _even_starts(count, tokens).astype(np.int32)


def running(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[0, counts[0], counts[0] + counts[1], ...]"""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])


def _rectangle(step: Step) -> Rectangle:
    if step.rectangle is None:
        raise ValueError("a mask is for equally long sequences: this step's have lengths of their own")
    return step.rectangle
