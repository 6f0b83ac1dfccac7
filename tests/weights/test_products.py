"""Products of packed rows: right for every type, and a token's result is its own, to the bit, in any company."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from ggml_rows import BY_ROW, FLOATS, TILED, PackedRows, rounded
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.kernels.native import native
from stratakv.weights import ggml

pytestmark = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"needs ggml: {ggml.unavailable()}")
KERNELS = native().tile_kernels() if ggml.unavailable() is None else []


@pytest.fixture(params=KERNELS)
def tiles(request: Any) -> Iterator[str]:
    module: Any = native()
    assert module.use_tiles(request.param) and module.tiles_in_use() == request.param
    yield request.param
    assert module.use_tiles(KERNELS[0])


def test_tiles_are_there() -> None:
    """None that was there is lost; a new one needs no line in these tests."""
    usual = {
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "MXFP4",
    }
    assert usual | set(FLOATS) <= set(TILED) and not set(BY_ROW) & set(TILED)


@pytest.mark.parametrize("kind", TILED + BY_ROW)
def test_every_kernel_gives_what_the_rows_say(tiles: str, kind: str) -> None:
    rows = PackedRows(kind, 37, 512)
    x = torch.randn(70, 512, generator=torch.Generator().manual_seed(1))
    read = rounded(x) if kind in TILED and kind not in FLOATS else x
    expected = read.double() @ rows.values.double().t()
    error = float((rows(x) - expected).norm() / expected.norm())
    assert error < (1e-6 if kind in TILED else 0.02)


def test_rows_of_floats_may_have_any_length(tiles: str) -> None:
    for kind in ("F32", "F16", "BF16"):
        for columns in (1, 31, 33, 172):
            rows, x = PackedRows(kind, 9, columns), torch.randn(3, columns)
            torch.testing.assert_close(rows(x), x @ rows.values.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(len(KERNELS) < 3, reason="one instruction set beside the portable one")
@pytest.mark.parametrize("kind", TILED)
def test_instruction_sets_agree_to_the_bit(kind: str) -> None:
    module: Any = native()
    rows, x = PackedRows(kind, 50, 512), torch.randn(70, 512)  # many tokens and few, tiles side by side and alone
    results = []
    for name in KERNELS[:2]:
        assert module.use_tiles(name)
        results.append(rows(x))
    assert module.use_tiles(KERNELS[0])
    assert torch.equal(*results)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(TILED + BY_ROW),
    tokens=st.integers(1, 150),
    cuts=st.lists(st.integers(1, 149), max_size=4),
    threads=st.integers(1, 3),
)
def test_a_token_s_result_is_its_own(kind: str, tokens: int, cuts: list[int], threads: int) -> None:
    rows = PackedRows(kind, 50, 256)
    x = torch.randn(tokens, 256, generator=torch.Generator().manual_seed(tokens))
    borders = sorted({0, tokens, *(cut for cut in cuts if cut < tokens)})
    pieces = [rows(x[a:b], threads) for a, b in pairwise(borders)]
    assert torch.equal(torch.cat(pieces), rows(x, threads))
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows(x[order], threads), rows(x, threads)[order])


def test_more_tokens_than_are_packed_at_a_time() -> None:
    rows, x = PackedRows("Q4_K", 20, 256), torch.randn(1100, 256)
    assert torch.equal(rows(x, 2), torch.cat([rows(part) for part in x.split(7)]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0", "F16"])
def test_a_poisoned_token_is_alone_with_it(kind: str, bad: float) -> None:
    rows, x = PackedRows(kind, 20, 256), torch.randn(4, 256)
    good = rows(x)
    x[2, 100] = bad
    found = rows(x)
    assert not found[2].isfinite().any()
    assert torch.equal(found[[0, 1, 3]], good[[0, 1, 3]])


def test_zeros_and_tiny_activations() -> None:
    rows = PackedRows("Q4_0", 20, 64)
    assert torch.equal(rows(torch.zeros(2, 64)), torch.zeros(2, 20))
    assert rows(torch.full((1, 64), 1e-42)).isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["Q8_0", "Q6_K", "MXFP4", "IQ3_S"]),
    tokens=st.integers(1, 90),
    share=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_chosen_experts_are_the_products_of_each(kind: str, tokens: int, share: int, seed: int) -> None:
    experts, generator = 5, torch.Generator().manual_seed(seed)
    rows = PackedRows(kind, 24, 256, experts=experts)
    index = torch.randint(-1, experts + 1, (tokens, share), generator=generator)  # -1 and 5: of no expert
    x = torch.randn(tokens, 256, generator=generator)
    out = torch.empty(tokens, share, 24)
    arguments = index.data_ptr(), tokens * share, share, x.data_ptr(), out.data_ptr(), 24
    rows.matrix.multiply_chosen(experts, *arguments, 2)
    for expert in range(-1, experts + 1):
        token, position = torch.where(index == expert)
        if not 0 <= expert < experts:
            assert not out[token, position].any()
            continue
        alone = torch.empty(len(token), 24)
        mine = torch.full((len(token),), expert)
        states = x[token].contiguous()
        rows.matrix.multiply_chosen(experts, mine.data_ptr(), len(token), 1, states.data_ptr(), alone.data_ptr(), 24, 1)
        assert torch.equal(out[token, position], alone)
        values = rows.values.view(experts, 24, 256)[expert]
        expected = states @ values.t()
        assert float((alone - expected).norm()) <= 0.02 * float(expected.norm())


@pytest.mark.parametrize(("activation", "function"), [(0, "silu"), (1, "gelu"), (2, "tanh")])
def test_gates(tiles: str, activation: int, function: str) -> None:
    module: Any = native()
    both = torch.cat([torch.linspace(-100, 100, 999).view(1, -1), torch.randn(1, 999)], -1)
    out = torch.empty(1, 999)
    module.gate(activation, both.data_ptr(), 1, 999, out.data_ptr(), 2)
    x, up = both[:, :999].double(), both[:, 999:].double()
    exact = torch.nn.functional.silu(x) if function == "silu" else None
    if exact is None:
        exact = torch.nn.functional.gelu(x, approximate="tanh" if function == "tanh" else "none")
    torch.testing.assert_close(out.double(), exact * up, rtol=2e-6, atol=1e-5)
    both[0, 5] = float("nan")
    module.gate(activation, both.data_ptr(), 1, 999, out.data_ptr(), 2)
    assert out[0, 5].isnan() and out[0, 6].isfinite()
