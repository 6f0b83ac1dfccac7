"""Attention under masks, block by block, against the torch body on the whole."""

from __future__ import annotations

import pytest
import torch
from packed_views import Packed, pages

from stratakv.kernels.choice import TORCH, kernel_names
from stratakv.kernels.cpu import masked
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.cpu.layout import knows
from stratakv.kernels.step import Step
from stratakv.kvtypes import kv_type, type_names

KERNELS = [name for name in kernel_names() if name != "torch"]
TYPES = [name for name in type_names() if knows(kv_type(name))]
pytestmark = pytest.mark.skipif(not KERNELS, reason="installed without a C++ compiler: there is no kernel to test")


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked, "BLOCK_TOKENS", 100)


def both(packed: Packed, q: torch.Tensor, step: Step, kernel: str = "", **options):
    """(the kernel's output, the torch body's)."""
    assert step.mask is not None
    out = packed.attend(CpuKernel(kernel or KERNELS[0]), q, step, **options).out
    return out, packed.attend(TORCH, q, step, **options).out


def holes(queries: int, tokens: int, batch: int = 1) -> torch.Tensor:
    """Causal, and every third token is out of sight."""
    seen = torch.ones(queries, tokens, dtype=torch.bool).tril(tokens - queries) & (torch.arange(tokens) % 3 > 0)
    return seen.expand(batch, 1, -1, -1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", TYPES)
def test_every_type(kernel: str, name: str) -> None:
    for dim in (64, 80, 128, 192, 256):
        view, q = pages(name, name, (dim, dim), 200, batch=2), torch.randn(2, 4, 30, dim)
        step = view.step(30).under(holes(30, 200, 2))
        torch.testing.assert_close(*both(view, q, step, kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"softcap": 4.0}, {"sinks": torch.linspace(-2, 3, 8)}], ids=str)
@pytest.mark.parametrize("dims", [(64, 64), (96, 64)], ids=str)
def test_options(dims: tuple[int, int], options) -> None:
    view, q = pages("turbo4", "q8_0", dims, 350, batch=1), torch.randn(1, 8, 150, dims[0])
    torch.testing.assert_close(*both(view, q, view.step(150).under(holes(150, 350)), **options), rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_and_additive_masks() -> None:
    view, q = pages("turbo4", "turbo4", (64, 64), 350, batch=2), torch.randn(2, 4, 50, 64)
    mask = holes(50, 350, 2) & torch.ones(50, 350, dtype=torch.bool).triu(100)
    mask[1, :, :, :220] = False
    mask[0, :, 7] = False
    step = view.step(50).under(mask)
    assert step is not view.step(50).under(mask)
    found, expected = both(view, q, step)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found[0, :, 7].any()
    bias = torch.randn(2, 4, 50, 350).masked_fill(~mask, -1e30)
    bias[0, :, 7] = 0.0
    torch.testing.assert_close(*both(view, q, view.step(50).under(bias)), rtol=1e-4, atol=1e-5)
