"""Steps of many unlike sequences over one pool of pages: compiled kernels against the torch body, encoding included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stratakv.kernels import ragged
from stratakv.kernels.choice import kernel_names
from stratakv.kernels.cpu_encode import CannotStoreError
from stratakv.kernels.sequences import Sequences
from stratakv.kvtypes import kv_type, type_names
from stratakv.pages.layout import PAGE_TOKENS, PageLayout

KERNELS = [name for name in kernel_names() if name != "torch"]


class Pool:
    """Sequences with interleaved pages in one pool whose unwritten bytes are all ones (nan as floats)."""

    def __init__(self, k: str, v: str, lengths: list[int], dims: tuple[int, int] = (64, 64), heads: int = 2) -> None:
        self.layout = PageLayout(kv_type(k), kv_type(v), *dims, heads)
        counts = [-(-length // PAGE_TOKENS) for length in lengths]
        order = np.random.default_rng(0).permutation(sum(counts) + 3)
        self.tables = [list(order[sum(counts[:s]) :][:count]) for s, count in enumerate(counts)]
        self.pool = torch.full((len(order), self.layout.page_bytes), 255, dtype=torch.uint8)
        self.lengths = lengths

    def fill(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        everything = Sequences.causal(self.tables, self.lengths, self.lengths)
        shape = sum(self.lengths), self.layout.kv_heads
        k, v = (torch.randn(*shape, dim, generator=generator) for dim in (self.layout.k_dim, self.layout.v_dim))
        ragged.append(k, v, self.layout, self.pool, everything.slots())

    def attention(self, queries: list[int], q_heads: int = 4, window: int | None = None, **options: Any):
        sequences = Sequences.causal(self.tables, self.lengths, queries, window=window)
        generator = torch.Generator().manual_seed(1)
        q = torch.randn(sum(queries), q_heads, self.layout.k_dim, generator=generator)
        options = {"scale": self.layout.k_dim**-0.5, **options}
        return ragged.attention(q, self.layout, self.pool, sequences, **options)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


def with_kernel(monkeypatch: pytest.MonkeyPatch, name: str, run: Any) -> Any:
    with monkeypatch.context() as patch:
        patch.setenv("STRATAKV_KERNEL", name)
        return run()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    "options", [{}, {"window": 150}, {"softcap": 3.0}, {"sinks": torch.linspace(-1, 2, 4)}], ids=str
)
def test_a_step_of_unlike_sequences(kernel: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths, queries = [1, 700, 128, 129, 40, 300, 513], [1, 1, 3, 129, 0, 40, 8]
    for k, v in (("q8_0", "turbo4"), ("turbo3", "q4_0"), ("f16", "f16"), ("turbo4", "turbo2")):
        pool = Pool(k, v, lengths)
        with_kernel(monkeypatch, "torch", pool.fill)
        expected_bytes = pool.pool.clone()
        pool.pool.fill_(255)
        with_kernel(monkeypatch, kernel, pool.fill)
        assert torch.equal(pool.pool, expected_bytes)
        out = with_kernel(monkeypatch, kernel, lambda p=pool: p.attention(queries, **options))
        expected = with_kernel(monkeypatch, "torch", lambda p=pool: p.attention(queries, **options))
        assert out.shape == expected.shape and out.is_contiguous()
        starts = np.cumsum([0, *queries])
        for s, count in enumerate(queries):
            if count:
                here = slice(starts[s], starts[s + 1])
                # chunks of prompts, long or short, are computed finely
                assert error(out[here], expected[here]) <= (1e-3 if count > 8 else 1e-2), (k, v, s)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("types", [("turbo4", "turbo4"), ("q8_0", "turbo2"), ("f16", "turbo3")])
def test_a_prompt_gives_the_same_however_it_is_cut(
    kernel: str, types: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    pool = Pool(*types, [600])
    pool.fill()
    q = torch.randn(200, 4, 64, generator=torch.Generator().manual_seed(1))

    def piece(begin: int, end: int) -> torch.Tensor:
        one = Sequences.causal(pool.tables, [400 + end], [end - begin])
        cut = replace(one, prefill=np.ones(1, dtype=bool))
        return ragged.attention(q[begin:end], pool.layout, pool.pool, cut, scale=0.125)

    whole = piece(0, 200)
    for size in (1, 7, 64):
        pieces = torch.cat([piece(begin, min(begin + size, 200)) for begin in range(0, 200, size)])
        assert error(pieces, whole) <= 1e-3


def test_steps_that_one_compiled_call_can_take() -> None:
    def decoding(counts: list[int], prompts: list[bool], before: int = 0) -> int | None:
        tables = [[s] for s in range(len(counts))]
        one = Sequences.causal(tables, [before + count for count in counts], counts)
        return replace(one, prefill=np.array(prompts)).decoding

    assert decoding([1, 1, 1], [False, False, False]) == 3
    assert decoding([1, 1, 32, 5], [False, False, True, True]) == 2
    assert decoding([7], [True]) == 0
    assert decoding([1, 256], [False, True]) == 1  # which sees few tokens
    assert decoding([1, 64], [False, True], before=9000) == 1
    assert decoding([1, 257], [False, True]) is None  # a long chunk
    assert decoding([1, 65], [False, True], before=1000) is None
    assert decoding([5, 1], [True, False]) is None  # short chunks come last
    assert decoding([1, 0], [False, True]) == 2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(kernel: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    pool = Pool("turbo4", "turbo4", [200, 30], dims=(128, 128))
    pool.fill()
    sequences = Sequences.causal(pool.tables, pool.lengths, [1, 20])
    # as projections have it: q, k and v of a token side by side
    q = torch.randn(21, 3, 4, 128, generator=torch.Generator().manual_seed(1)).to(dtype)[:, 0]
    out = ragged.attention(q, pool.layout, pool.pool, sequences, scale=0.1)
    monkeypatch.setenv("STRATAKV_KERNEL", "torch")
    expected = ragged.attention(q.float(), pool.layout, pool.pool, sequences, scale=0.1)
    assert out.dtype == dtype and error(out.float(), expected) <= 1e-2


@pytest.mark.parametrize("kernel", kernel_names())
def test_pages_before_a_window_may_be_gone(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    pool = Pool("turbo4", "turbo4", [700, 300])
    pool.fill()
    expected = pool.attention([1, 20], window=200)
    late = [pool.tables[0][3:], pool.tables[1]]
    sequences = Sequences.causal(late, pool.lengths, [1, 20], window=200, dropped=[3 * PAGE_TOKENS, 0])
    q = torch.randn(21, 4, 64, generator=torch.Generator().manual_seed(1))
    out = ragged.attention(q, pool.layout, pool.pool, sequences, scale=64**-0.5)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("kernel", kernel_names())
def test_tokens_without_a_slot_are_not_stored(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    pool = Pool("q8_0", "turbo3", [100])
    states = torch.randn(5, 2, 64)
    ragged.append(states, states, pool.layout, pool.pool, np.full(5, -1))
    assert (pool.pool == 255).all()


@pytest.mark.parametrize("kernel", kernel_names())
def test_what_can_t_be_stored_names_its_side(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    pool = Pool("q8_0", "turbo3", [100])
    good, slots = torch.randn(2, 2, 64), np.arange(2)
    bad = good.clone()
    bad[1, 1, 7] = torch.inf
    for k, v, side, words in (
        (bad, good, "K", "non-finite"),
        (good, bad, "V", "non-finite"),
        (good, good * 1e12, "V", "too large"),
    ):
        with pytest.raises(CannotStoreError, match=words) as caught:
            ragged.append(k, v, pool.layout, pool.pool, slots)
        assert caught.value.side == side


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_type_in_one_pool(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in type_names():
        pool = Pool(name, name, [130, 1, 64], dims=(128, 64))
        with_kernel(monkeypatch, kernel, pool.fill)
        out = with_kernel(monkeypatch, kernel, lambda p=pool: p.attention([1, 1, 2]))
        expected = with_kernel(monkeypatch, "torch", lambda p=pool: p.attention([1, 1, 2]))
        assert error(out, expected) <= 1e-2, name


def test_queries_beyond_their_tables_are_refused() -> None:
    if not KERNELS:
        pytest.skip("installed without a C++ compiler: there is no kernel to test")
    pool = Pool("q8_0", "q8_0", [100])
    pool.fill()
    pool.lengths = [129]
    with pytest.raises(ValueError, match="doesn't hold"):
        pool.attention([1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_are_the_same_in_any_company(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token of one sequence: alone, beside long ones, and with other numbers of threads, to the last bit."""
    lengths = [1500, 3000, 900, 5]
    steps = (([1, 0, 0, 0], 1), ([1, 1, 1, 1], 1), ([1, 1, 40, 3], 1), ([1, 1, 1, 1], 3))
    for k, v in (("q8_0", "turbo4"), ("f32", "f32")):
        pool = Pool(k, v, lengths)
        pool.fill()
        for window in (None, 700):
            found = []
            for queries, threads in steps:
                monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
                found.append(
                    with_kernel(monkeypatch, kernel, lambda p=pool, q=queries, w=window: p.attention(q, window=w))[0]
                )
            assert all(torch.equal(one, found[0]) for one in found), (k, v, window)
