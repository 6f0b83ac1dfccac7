"""Pages in rows, for tests of the GPU's kernels: ragged sequences of random states, everything else in memory poisoned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.kernel import Attended, Kernel, Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kernels.torch_kernel import Torch
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool


def row_layout(k: str, v: str, dims: tuple[int, int], heads: int = 2, page_tokens: int = PAGE_TOKENS) -> PageLayout:
    return PageLayout(kv_type(k), kv_type(v), *dims, heads, page_tokens, "rows")


@dataclass(frozen=True)
class RowPages:
    """Sequences of those lengths, each with its block table."""

    pool: Pool
    tables: list[NDArray[np.int64]]
    lengths: Sequence[int]

    def attend(
        self, kernel: Kernel, q: torch.Tensor, queries: Sequence[int], window: int | None = None, **options: Any
    ) -> Attended:
        """The last tokens ask, causally. q: [query tokens, q_heads, k_dim]."""
        size = self.pool.layout.page_tokens
        step = Step.causal(self.tables, self.lengths, queries, window=window, page_tokens=size)
        return kernel.attend(q, self.pool, step, Options(**{"scale": q.shape[-1] ** -0.5, **options}), lse=True)


def row_pages(
    k: str,
    v: str,
    dims: tuple[int, int],
    lengths: Sequence[int],
    seed: int = 0,
    page_tokens: int = PAGE_TOKENS,
    heads: int = 2,
) -> RowPages:
    """Written in plain torch; pages are shuffled, and bytes that nobody wrote are 0xFF: nan as floats and scales."""
    layout = row_layout(k, v, dims, heads, page_tokens)
    counts = [-(-length // layout.page_tokens) for length in lengths]
    numbers = np.random.default_rng(seed).permutation(sum(counts) + 1)
    tables = np.split(numbers[: sum(counts)], np.cumsum(counts)[:-1])
    pool = Pool.fixed(layout, sum(counts) + 1, torch.device("cpu"))
    pool.memory.fill_(0xFF)
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(sum(lengths), layout.kv_heads, dim, generator=generator) for dim in dims]
    slots = Step.causal(tables, lengths, lengths, page_tokens=page_tokens).slots
    Torch().append(pool, states[0], states[1], slots, new_codes())
    return RowPages(pool, tables, lengths)
