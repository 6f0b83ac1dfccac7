"""Offsets that 32 bits don't hold, in the interpreted Triton kernels: on sparse files, of which next to nothing is touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from row_pages import row_layout

from stratakv.kernels.choice import TORCH
from stratakv.kernels.kernel import Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kernels.triton import appending
from stratakv.kernels.triton.kernel import Triton
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool

FAR = 1 << 30


def sparse(path: Path, size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_file(str(path), shared=True, size=size, dtype=dtype)


def states(layout: PageLayout, tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tokens, layout.kv_heads, layout.k_dim, generator=generator).to(torch.float16)


def test_pages_beyond_4_gib(tmp_path: Path) -> None:
    layout, tables, length = row_layout("turbo4", "tcq2", (32, 32)), [np.array([4, 3])], PAGE_TOKENS + 3
    memory = sparse(tmp_path / "pool", 4 * FAR + layout.page_bytes, torch.uint8)
    x, slots = states(layout, 4), Step.causal(tables, [length], [4]).slots
    step = Step.causal(tables, [length], [2], window=3)
    found = []
    for kernel, pool in (
        (Triton(), Pool(layout, memory.as_strided((5, layout.page_bytes), (FAR, 1)))),
        (TORCH, Pool.fixed(layout, 5, torch.device("cpu"))),
    ):
        kernel.append(pool, x, -x, slots, new_codes())
        found.append(kernel.attend(x[:2].float().repeat(1, 2, 1), pool, step, Options(0.2)).out)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=5e-3)


@pytest.mark.parametrize("types", [("turbo4", "q8_0"), ("tcq2", "f16")], ids=str)
def test_heads_of_states_beyond_4_gib(types: tuple[str, str], tmp_path: Path) -> None:
    """As those of a very long prompt lie, one head after another."""
    layout = row_layout(*types, (32, 32), 3)
    file = sparse(tmp_path / "states", 2 * FAR + 1024, torch.float16)
    x, near = file.as_strided((4, 3, 32), (32, FAR, 1)), states(layout, 4)
    x.copy_(near)
    pools = [Pool.fixed(layout, 1, torch.device("cpu")) for _ in range(2)]
    for pool, each in zip(pools, (x, near), strict=True):
        pool.memory.fill_(0)
        Triton().append(pool, each, each, np.arange(4), new_codes())
    assert torch.equal(pools[0].memory, pools[1].memory)
    outs = [
        Triton().attend(each, pools[0], Step.causal([np.array([0])], [4], [4]), Options(0.2)).out for each in (x, near)
    ]
    assert torch.equal(outs[0], outs[1])


def test_long_prompts_are_encoded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = row_layout("tcq2", "tcq2", (32, 32))
    monkeypatch.setattr(appending, "_VALUES", 4 * 2 * 32)
    x, pools = states(layout, 6), []
    for kernel in (Triton(), TORCH):
        pools.append(Pool.fixed(layout, 1, torch.device("cpu")))
        pools[-1].memory.fill_(0)
        kernel.append(pools[-1], x, -x, np.arange(6), new_codes())
    assert torch.equal(pools[0].memory, pools[1].memory)
