"""Steps of many unlike sequences over one pool of pages: compiled kernels against the torch body, encoding included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from no_waiting import no_waiting

from stratakv.kernels.choice import TORCH, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.cpu.split import Split
from stratakv.kernels.kernel import Attended, Kernel, Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kvtypes import NON_FINITE, TOO_LARGE, kv_type, type_names
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool

COMPILED: list[Kernel] = [CpuKernel(name) for name in kernel_names() if name != "torch"]
KERNELS = [*COMPILED, TORCH]
compiled = pytest.mark.parametrize("kernel", COMPILED, ids=lambda kernel: kernel.name)
every = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


class Sequences:
    """Sequences with interleaved pages in one pool whose unwritten bytes are all ones (nan as floats).

    apart: the pages lie in a larger tensor, with others' bytes between them."""

    def __init__(
        self,
        k: str,
        v: str,
        lengths: list[int],
        dims: tuple[int, int] = (64, 64),
        heads: int = 2,
        page_tokens: int = PAGE_TOKENS,
        apart: bool = False,
    ) -> None:
        self.layout = PageLayout(kv_type(k), kv_type(v), *dims, heads, page_tokens)
        counts = [-(-length // page_tokens) for length in lengths]
        order = np.random.default_rng(0).permutation(sum(counts) + 3)
        self.tables = [list(order[sum(counts[:s]) :][:count]) for s, count in enumerate(counts)]
        size = self.layout.page_bytes
        self.memory = torch.full((len(order), size + 3 * 64 * apart), 255, dtype=torch.uint8)
        self.pool = Pool(self.layout, self.memory[:, 64 : 64 + size] if apart else self.memory)
        self.lengths = lengths

    def step(self, queries: list[int], lengths: list[int] | None = None, **options: Any) -> Step:
        options = {"page_tokens": self.layout.page_tokens, **options}
        return Step.causal(self.tables, lengths or self.lengths, queries, **options)

    def fill(self, kernel: Kernel = TORCH, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = sum(self.lengths), self.layout.kv_heads
        k, v = (torch.randn(*shape, dim, generator=generator) for dim in (self.layout.k_dim, self.layout.v_dim))
        kernel.append(self.pool, k, v, self.step(self.lengths).slots, new_codes())

    def query(self, tokens: int, q_heads: int = 4) -> torch.Tensor:
        return torch.randn(tokens, q_heads, self.layout.k_dim, generator=torch.Generator().manual_seed(1))

    def attend(
        self, kernel: Kernel, queries: list[int], *, window: int | None = None, lse: bool = False, **options: Any
    ) -> Attended:
        chosen = Options(**{"scale": self.layout.k_dim**-0.5, **options})
        step = self.step(queries, window=window)
        return kernel.attend(self.query(sum(queries)), self.pool, step, chosen, lse=lse)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


@compiled
@pytest.mark.parametrize(
    "options", [{}, {"window": 150}, {"softcap": 3.0}, {"sinks": torch.linspace(-1, 2, 4)}], ids=str
)
def test_a_step_of_unlike_sequences(kernel: Kernel, options: dict[str, Any]) -> None:
    lengths, queries = [1, 700, 128, 129, 40, 300, 513], [1, 1, 3, 129, 0, 40, 8]
    for k, v in (("q8_0", "turbo4"), ("turbo3", "q4_0"), ("f16", "f16"), ("turbo4", "turbo2")):
        given = Sequences(k, v, lengths)
        given.fill()
        expected_bytes = given.memory.clone()
        given.memory.fill_(255)
        given.fill(kernel)
        assert torch.equal(given.memory, expected_bytes)
        out, sums = given.attend(kernel, queries, lse=True, **options)
        expected, expected_sums = given.attend(TORCH, queries, lse=True, **options)
        assert out.shape == expected.shape and out.is_contiguous()
        assert torch.equal(out, given.attend(kernel, queries, **options).out)
        assert sums is not None and expected_sums is not None
        starts = np.cumsum([0, *queries])
        for s, count in enumerate(queries):
            if count:
                here = slice(starts[s], starts[s + 1])
                # chunks of prompts, long or short, are computed finely
                assert error(out[here], expected[here]) <= (1e-3 if count > 8 else 1e-2), (k, v, s)
                torch.testing.assert_close(sums[here], expected_sums[here], rtol=1e-3, atol=5e-3)


@every
@pytest.mark.parametrize("types", [("q8_0", "turbo4"), ("f32", "f16")], ids=str)
def test_pages_in_a_larger_tensor(kernel: Kernel, types: tuple[str, str]) -> None:
    """As in an engine's tensor of blocks: the stride is the pool's, and what lies between its pages is left alone."""
    lengths, queries = [300, 1, 513], [1, 1, 400]
    close, apart = Sequences(*types, lengths), Sequences(*types, lengths, apart=True)
    for one in (close, apart):
        one.fill(kernel)
    size = close.layout.page_bytes
    assert apart.pool.stride == size + 3 * 64
    assert torch.equal(apart.memory[:, 64 : 64 + size], close.memory)
    assert (apart.memory[:, :64] == 255).all() and (apart.memory[:, 64 + size :] == 255).all()
    assert torch.equal(apart.attend(kernel, queries).out, close.attend(kernel, queries).out)


@pytest.mark.parametrize("page_tokens", [16, 64, 128])
def test_pages_of_other_sizes(page_tokens: int) -> None:
    lengths, queries = [300, 1, 513], [1, 1, 400]
    usual = Sequences("turbo4", "q5_1", lengths)
    usual.fill()
    for apart in (False, True):
        given = Sequences("turbo4", "q5_1", lengths, page_tokens=page_tokens, apart=apart)
        assert given.layout.name == f"tile{page_tokens}-v1"
        given.fill()
        out, expected = (one.attend(TORCH, queries, window=200).out for one in (given, usual))
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    for kernel in COMPILED:
        why = kernel.refuses(given.layout, given.pool.device)
        assert (why is None) is (page_tokens == 128) and (why is None or f"not of tile{page_tokens}-v1" in why)


def test_a_layout_of_odd_pages_is_refused() -> None:
    with pytest.raises(ValueError, match="pages of 24 tokens: allowed are multiples of 16"):
        PageLayout(kv_type("f16"), kv_type("f16"), 64, 64, 1, 24)


@compiled
@pytest.mark.parametrize("types", [("turbo4", "turbo4"), ("q8_0", "turbo2"), ("f16", "turbo3")])
@pytest.mark.parametrize("before", [900, 4500])
@pytest.mark.parametrize("window", [None, 300, 2300])
def test_a_prompt_gives_the_same_to_the_bit_however_it_is_cut(
    kernel: Kernel, types: tuple[str, str], before: int, window: int | None
) -> None:
    given = Sequences(*types, [before + 200])
    given.fill()
    q = given.query(200)

    def piece(begin: int, end: int) -> torch.Tensor:
        cut = given.step([end - begin], [before + end], prefill=np.ones(1, dtype=bool), window=window)
        return kernel.attend(q[begin:end], given.pool, cut, Options(0.125)).out

    whole = piece(0, 200)
    for size in (1, 7, 64, 130):
        pieces = torch.cat([piece(begin, min(begin + size, 200)) for begin in range(0, 200, size)])
        assert torch.equal(pieces, whole), size


@compiled
def test_chunks_before_others_and_their_sums(kernel: Kernel) -> None:
    given = Sequences("turbo4", "turbo4", [2500, 40, 300])
    given.fill()
    q = given.query(700 + 1 + 100)
    step = given.step([700, 1, 100], prefill=np.array([True, False, True]))
    split = Split.of(step)
    assert split.decoding is None
    assert split.others.tokens.tolist() == [700] and len(split.chunks.tokens) == 800
    found, expected = (of.attend(q, given.pool, step, Options(0.125), lse=True) for of in (kernel, TORCH))
    assert error(found.out[:700], expected.out[:700]) <= 1e-3 and error(found.out, expected.out) <= 1e-2
    assert found.lse is not None and expected.lse is not None
    torch.testing.assert_close(found.lse, expected.lse, rtol=1e-3, atol=1e-3)


def test_steps_that_one_compiled_call_can_take() -> None:
    def decoding(counts: list[int], prompts: list[bool], before: int = 0) -> int | None:
        tables = [[s] for s in range(len(counts))]
        lengths = [before + count for count in counts]
        return Split.of(Step.causal(tables, lengths, counts, prefill=np.array(prompts))).decoding

    assert decoding([1, 1, 1], [False, False, False]) == 3
    assert decoding([1, 1, 32, 5], [False, False, True, True]) == 2
    assert decoding([7], [True]) == 0
    assert decoding([1, 2500], [False, True]) == 1
    assert decoding([1, 64], [False, True], before=9000) == 1
    assert decoding([5, 1], [True, False]) is None  # short chunks come last
    assert decoding([1, 0], [False, True]) == 2


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_and_out(kernel: Kernel, dtype: torch.dtype) -> None:
    given = Sequences("turbo4", "turbo4", [200, 30], dims=(128, 128))
    given.fill()
    step = given.step([1, 20])
    # as projections have it: q, k and v of a token side by side
    q = torch.randn(21, 3, 4, 128, generator=torch.Generator().manual_seed(1)).to(dtype)[:, 0]
    out = kernel.attend(q, given.pool, step, Options(0.1)).out
    expected = TORCH.attend(q.float(), given.pool, step, Options(0.1)).out
    assert out.dtype == dtype and error(out.float(), expected) <= 1e-2


@every
def test_pages_before_a_window_may_be_gone(kernel: Kernel) -> None:
    given = Sequences("turbo4", "turbo4", [700, 300])
    given.fill()
    expected = given.attend(kernel, [1, 20], window=200).out
    late = [given.tables[0][3:], given.tables[1]]
    step = Step.causal(late, given.lengths, [1, 20], window=200, dropped=[3 * PAGE_TOKENS, 0])
    out = kernel.attend(given.query(21), given.pool, step, Options(64**-0.5)).out
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    first = [
        length - queries + i - 199
        for length, queries in zip(given.lengths, (1, 20), strict=True)
        for i in range(queries)
    ]
    told = Step.causal(late, given.lengths, [1, 20], first=first, dropped=[3 * PAGE_TOKENS, 0])
    for ours, theirs in ((told.first, step.first), (told.last, step.last), (told.slots, step.slots)):
        assert (ours == theirs).all()


@every
def test_tokens_without_a_slot_are_not_stored(kernel: Kernel) -> None:
    given = Sequences("q8_0", "turbo3", [100])
    states = torch.randn(5, 2, 64)
    kernel.append(given.pool, states, states, np.full(5, -1), new_codes())
    assert (given.memory == 255).all()


@every
def test_what_can_t_be_stored_names_its_side(kernel: Kernel) -> None:
    given = Sequences("q8_0", "turbo3", [100])
    good, slots = torch.randn(2, 2, 64), np.arange(2)
    bad = good.clone()
    bad[1, 1, 7] = torch.inf
    for k, v, codes in (
        (good, good, [0, 0]),
        (bad, good, [NON_FINITE, 0]),
        (good, bad, [0, NON_FINITE]),
        (good, good * 1e12, [0, TOO_LARGE]),
    ):
        status = new_codes()
        kernel.append(given.pool, k, v, slots, status)
        assert status.tolist() == codes
        kernel.append(given.pool, good, good, slots, status)
        assert status.tolist() == codes, "what was written stays until the step's end"


def test_appending_never_waits_for_the_device() -> None:
    for asks in (bool, torch.Tensor.tolist, torch.Tensor.cpu):
        with pytest.raises(AssertionError, match="_local_scalar_dense|tolist|cpu"), no_waiting():
            asks(torch.ones(()))
    states = torch.randn(5, 2, 64)
    for name in type_names():
        given = Sequences(name, name, [100])
        for values in (states, states * torch.inf, states * 1e30):
            with no_waiting():
                TORCH.append(given.pool, values, states, np.array([3, -1, 7, 8, 9]), new_codes())


@compiled
def test_every_type_in_one_pool(kernel: Kernel) -> None:
    for name in type_names():
        given = Sequences(name, name, [130, 1, 64], dims=(128, 64))
        given.fill(kernel)
        out, expected = (given.attend(each, [1, 1, 2]).out for each in (kernel, TORCH))
        assert error(out, expected) <= 1e-2, name


@every
def test_queries_beyond_their_tables_are_refused(kernel: Kernel) -> None:
    given = Sequences("q8_0", "q8_0", [100])
    given.fill()
    given.lengths = [129]
    with pytest.raises(ValueError, match="doesn't hold"):
        given.attend(kernel, [1])


@compiled
def test_sums_are_the_same_in_any_company(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token of one sequence: alone, beside long ones, and with other numbers of threads, to the last bit."""
    lengths = [1500, 3000, 900, 5]
    steps = (([1, 0, 0, 0], 1), ([1, 1, 1, 1], 1), ([1, 1, 40, 3], 1), ([1, 1, 1, 1], 3))
    for k, v in (("q8_0", "turbo4"), ("f32", "f32")):
        given = Sequences(k, v, lengths)
        given.fill()
        for window in (None, 700):
            found = []
            for queries, threads in steps:
                monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
                found.append(given.attend(kernel, queries, window=window).out[0])
            assert all(torch.equal(one, found[0]) for one in found), (k, v, window)
