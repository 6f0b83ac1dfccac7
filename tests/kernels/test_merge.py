"""Parts of a history in unlike types, attended apart and merged by their log-sum-exp: as one attention over both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratakv.kernels.choice import TORCH, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.kernel import Kernel, Options, merged
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
