"""Parts of a history in unlike types, in one call or apart and merged by their log-sum-exp: as one attention over both."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stratakv.kernels.choice import TORCH, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.cpu.split import Split
from stratakv.kernels.kernel import Kernel, Options, Part, attend_apart, merged
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kernels.torch_kernel import dense_attention
from stratakv.kvtypes import kv_type
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool

KERNELS: list[Kernel] = [*(CpuKernel(name, True) for name in kernel_names() if name != "torch"), TORCH]
OLD, NEW, QUERIES = 700, 90, 40  # tokens of the two parts; the last ones ask


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("options", [Options(0.2), Options(0.2, 3.0, torch.linspace(-1, 2, 4))], ids=["plain", "sinks"])
@pytest.mark.parametrize("queries", [1, QUERIES])
def test_two_parts_are_one_attention(kernel: Kernel, options: Options, queries: int) -> None:
    types = ("turbo4", "turbo3"), ("q8_0", "f16")
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(OLD + NEW, 2, 64, generator=generator) for _ in range(2))
    q = torch.randn(queries, 4, 64, generator=generator)
    parts, decoded = [], []
    for (k_name, v_name), begin, end in zip(types, (0, OLD), (OLD, OLD + NEW), strict=True):
        layout = PageLayout(kv_type(k_name), kv_type(v_name), 64, 64, 2)
        count = -(-(end - begin) // layout.page_tokens)
        pool = Pool.fixed(layout, count, torch.device("cpu"))
        tables = np.arange(count)[None]
        slots = Step.even(tables, end - begin, end - begin).slots
        kernel.append(pool, k[begin:end], v[begin:end], slots, new_codes())
        step = Step.even(tables, end - begin, queries)
        if begin == 0:
            step = step.seeing_all()
        sinks = options.sinks if begin else None  # once
        parts.append(kernel.attend(q, pool, step, Options(options.scale, options.softcap, sinks), lse=True))
        stored = layout.k.encode(k[begin:end]), layout.v.encode(v[begin:end])
        decoded.append((layout.k.decode(stored[0], 64), layout.v.decode(stored[1], 64)))
    both = [torch.cat(side).transpose(0, 1)[None] for side in zip(*decoded, strict=True)]
    expected, sums = dense_attention(q.transpose(0, 1)[None], *both, None, True, options, lse=True)
    out, total = merged(parts)
    torch.testing.assert_close(out, expected[0].transpose(0, 1), rtol=1e-4, atol=1e-4)
    assert sums is not None and total is not None
    torch.testing.assert_close(total, sums[0].T, rtol=1e-4, atol=1e-4)


def test_a_part_that_sees_nothing_adds_nothing() -> None:
    layout = PageLayout(kv_type("f32"), kv_type("f32"), 64, 64, 1)
    pool = Pool.fixed(layout, 1, torch.device("cpu"))
    states, q = torch.randn(9, 1, 64), torch.randn(1, 1, 64)
    TORCH.append(pool, states, states, np.arange(9), new_codes())
    for kernel in KERNELS:
        some = kernel.attend(q, pool, Step.causal([[0]], [9], [1]), Options(1.0), lse=True)
        empty = Step.causal([[0]], [9], [1], window=0)
        nothing = kernel.attend(q, pool, empty, Options(1.0), lse=True)
        assert not nothing.out.any() and nothing.lse is not None and bool(torch.isneginf(nothing.lse).all())
        for order in ([some, nothing], [nothing, some]):
            torch.testing.assert_close(merged(order).out, some.out)
    with pytest.raises(ValueError, match="lse=True"):
        merged([kernel.attend(q, pool, empty, Options(1.0))])


COMPILED = [CpuKernel(name) for name in kernel_names() if name != "torch"]
compiled = pytest.mark.parametrize("kernel", COMPILED, ids=lambda kernel: kernel.name)
PAIRS = [
    ("turbo8", "turbo8", "tcq4", "turbo4"),  # V in one basis
    ("q8_0", "f16", "turbo3", "turbo4"),  # in two
    ("turbo8", "q8_0", "q4_0_rot", "q4_0"),
]
pairs = pytest.mark.parametrize("types", PAIRS, ids="-".join)


class Both:
    """Sequences whose history lies in pages of two kinds: `old` tokens of each in sealed ones, the rest written."""

    def __init__(self, types: tuple[str, ...], old: list[int], new: list[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lengths = new, old
        self.tables: list[list[np.ndarray]] = []
        self.pools = []
        for lengths, names in zip(self.lengths, (types[:2], types[2:]), strict=True):
            counts = [-(-length // 128) for length in lengths]
            ends = np.cumsum([0, *counts])
            order = np.random.default_rng(0).permutation(ends[-1])
            self.tables.append([order[ends[s] : ends[s + 1]] for s in range(len(lengths))])
            layout = PageLayout(*map(kv_type, names), 64, 64, 2)
            pool = Pool.fixed(layout, max(ends[-1], 1), torch.device("cpu"))
            pool.memory.fill_(255)
            k, v = (torch.randn(sum(lengths), 2, 64, generator=generator) for _ in range(2))
            TORCH.append(pool, k, v, Step.causal(self.tables[-1], lengths, lengths).slots, new_codes())
            self.pools.append(pool)

    def parts(self, queries: list[int], prompts: list[bool], skip: int = 0) -> tuple[Part, Part]:
        """The last queries of each sequence, without so many of them at the end."""
        prefill, (new, old) = np.array(prompts), self.lengths
        written = Step.causal(self.tables[0], [n - skip for n in new], queries, prefill=prefill)
        sealed = Step.causal(self.tables[1], old, queries, prefill=prefill)
        counts = np.repeat(old, queries).astype(np.int32)  # all of it is seen by each
        sealed = replace(sealed, first=np.zeros_like(counts), last=counts)
        return Part(self.pools[0], written), Part(self.pools[1], sealed)


def query(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 8, 64, generator=torch.Generator().manual_seed(1))


@compiled
@pairs
@pytest.mark.parametrize(
    "options", [Options(0.125), Options(0.2, 3.0, torch.linspace(-1, 2, 8))], ids=["plain", "sinks"]
)
def test_one_call_over_both_kinds(kernel: CpuKernel, types: tuple[str, ...], options: Options) -> None:
    both = Both(types, [1300, 0, 128, 640, 384], [300, 40, 129, 256, 200])
    queries = [1, 2, 1, 100, 129]
    parts = both.parts(queries, [False, False, False, True, True])
    q = query(sum(queries))
    expected = attend_apart(q, [(TORCH, part) for part in parts], options).out
    for each in (kernel, replace(kernel, precise=True)):
        out = each.attend_both(q, *parts, options)
        for here, limit in ((slice(0, 4), 1e-3 if each.precise else 1e-2), (slice(4, None), 1e-3)):
            assert (out[here] - expected[here]).norm() / expected[here].norm() <= limit


@compiled
@pairs
def test_tokens_get_the_same_to_the_bit_in_any_company_and_pieces(kernel: CpuKernel, types: tuple[str, ...]) -> None:
    both, q, options = Both(types, [900, 2560], [300, 290]), query(121), Options(0.125)
    together = kernel.attend_both(q, *both.parts([1, 120], [False, True]), options)
    alone = kernel.attend_both(q[:1], *both.parts([1, 0], [False, True]), options)
    assert torch.equal(alone, together[:1])
    for begin in range(0, 120, 40):
        parts = both.parts([0, 40], [False, True], skip=80 - begin)
        assert torch.equal(kernel.attend_both(q[1 + begin : 41 + begin], *parts, options), together[1 + begin :][:40])


def test_blocks_and_runs_are_cut_alike() -> None:
    """Written pages in blocks of 128 positions, sealed ones in whole runs."""
    tables = [np.arange(3)] * 3
    blocks = Step.causal(tables, [300, 300, 300], [5, 100, 1], prefill=np.array([True, True, False]))
    runs = Step.causal([np.arange(2), np.arange(2)], [256, 250], [105, 1], prefill=np.array([True, False]))
    split = Split.of(blocks, runs)
    ends = [5, 37, 69, 101, 105, 106]
    assert [step.query_start.tolist() for step in split.steps] == [[0, *ends]] * 2
    assert split.decoding is None  # who decodes comes first
    assert [np.diff(step.page_start).tolist() for step in split.steps] == [[3] * 6, [2] * 6]
    assert split.others.tokens.tolist() == [105] and split.chunks.tokens.tolist() == list(range(105))


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("sinks", [None, torch.linspace(-1, 2, 4)], ids=["plain", "sinks"])
def test_a_query_that_sees_nothing_has_the_sink_alone(kernel: Kernel, sinks: torch.Tensor | None) -> None:
    """Torch said minus infinity beside a sink: merged with another part the sink was lost."""
    pool = Pool.fixed(PageLayout(kv_type("f32"), kv_type("f32"), 16, 16, 2), 1, torch.device("cpu"))
    k, v, q = torch.randn(3, 9, 4, 16, generator=torch.Generator().manual_seed(3)).unbind()
    kernel.append(pool, k[:, :2], v[:, :2], np.arange(9), new_codes())
    step = Step.causal([[0]], [9], [2])
    step = replace(step, first=np.array([0, 4], np.int32), last=np.array([8, 4], np.int32))
    found = kernel.attend(q[:2], pool, step, Options(0.25, sinks=sinks), lse=True)
    assert found.lse is not None and not found.out[1].any()
    assert torch.equal(found.lse[1], torch.full((4,), -torch.inf) if sinks is None else sinks)
    none = kernel.attend(q[:0], pool, Step.causal([], [], []), Options(0.25), lse=True)
    assert none.out.shape == (0, 4, 16) and none.lse is not None and none.lse.shape == (0, 4)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize("softcap", [None, 20.0])
def test_additive_masks_of_minus_infinity(kernel: Kernel, softcap: float | None) -> None:
    """A block of 1,024 tokens, or a query, that such a mask hides was not a number."""
    tokens, tables = 1500, np.arange(12)[None]
    pool = Pool.fixed(PageLayout(kv_type("f32"), kv_type("f32"), 16, 16, 2), 12, torch.device("cpu"))
    generator = torch.Generator().manual_seed(4)
    k, v = torch.randn(2, tokens, 2, 16, generator=generator)
    q = torch.randn(4, 4, 16, generator=generator)
    kernel.append(pool, k, v, np.arange(tokens), new_codes())
    seen = torch.rand(1, 1, 4, tokens, generator=generator) < 0.5
    seen[..., :1100], seen[:, :, 2] = False, False
    added = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    step, options = Step.even(tables, tokens, 4), Options(0.25, softcap)
    ours, theirs = (kernel.attend(q, pool, step.under(mask), options, lse=True) for mask in (added, seen))
    assert torch.allclose(ours.out, theirs.out, atol=1e-5) and not ours.out[2].any()
    assert ours.lse is not None and theirs.lse is not None and torch.allclose(ours.lse, theirs.lse, atol=1e-5)
