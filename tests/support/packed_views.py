"""Random packed pages, for tests of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stratakv.engine.cache.layers import PackedLayer
from stratakv.kernels.choice import TORCH
from stratakv.kernels.kernel import Attended, Kernel, Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Rectangle, Step
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool


@dataclass(frozen=True)
class Packed:
    """Equally long sequences in a pool: tokens start .. start + tokens of their tables."""

    pool: Pool
    tables: NDArray[np.int64]
    start: int
    tokens: int

    def step(self, queries: int) -> Step:
        """The last tokens ask, causally."""
        end = self.start + self.tokens
        step = Step.even(self.tables, end, queries, page_tokens=self.pool.layout.page_tokens)
        return replace(
            step,
            first=np.maximum(step.first, self.start).astype(np.int32),
            rectangle=Rectangle(self.tables, self.start, self.tokens),
        )

    def attend(
        self, kernel: Kernel, q: torch.Tensor, step: Step | None = None, *, lse: bool = False, **options: Any
    ) -> Attended:
        """q: [batch, q_heads, q_tokens, k_dim], and so comes the output. scale: 1 / sqrt(k_dim) unless given."""
        batch, q_heads, q_tokens, dim = q.shape
        rows = q.transpose(1, 2).reshape(-1, q_heads, dim)
        chosen = Options(**{"scale": dim**-0.5, **options})
        found = kernel.attend(rows, self.pool, step or self.step(q_tokens), chosen, lse=lse)
        return found._replace(out=found.out.view(batch, q_tokens, q_heads, -1).transpose(1, 2))


@contextmanager
def states_forgotten() -> Iterator[None]:
    """Within it, what was given to a layer's update() is nan once that returned."""
    stock = PackedLayer.update

    def update(
        self: PackedLayer, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found = stock(self, key, value, *args, **kwargs)
        key.fill_(torch.nan)
        value.fill_(torch.nan)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedLayer, "update", update)
        yield


def pages(k: str, v: str, dims: tuple[int, int], tokens: int, batch: int = 2, heads: int = 2, seed: int = 0) -> Packed:
    """Sequences of random states, written in plain torch; pages of unlike sequences are interleaved."""
    generator = torch.Generator().manual_seed(seed)
    layout = PageLayout(kv_type(k), kv_type(v), *dims, heads)
    count = -(-tokens // layout.page_tokens)
    tables = np.arange(batch * count, dtype=np.int64).reshape(count, batch).T.copy()
    pool = Pool.fixed(layout, batch * count, torch.device("cpu"))
    states = [torch.randn(batch * tokens, heads, dim, generator=generator) for dim in dims]
    TORCH.append(pool, states[0], states[1], Step.even(tables, tokens, tokens).slots, new_codes())
    return Packed(pool, tables, 0, tokens)
