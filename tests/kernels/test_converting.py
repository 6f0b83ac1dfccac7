"""Pages that change their types: no wait for the device, and what can't be stored is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from no_waiting import no_waiting

from stratakv.kernels.choice import TORCH, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.status import new_codes
from stratakv.kvtypes import NON_FINITE, TOO_LARGE, kv_type, type_names
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.pages.pool import Pool

PAGES = 11  # more than are converted at once


def pool(name: str, v: str = "", dims: tuple[int, int] = (64, 64), heads: int = 1) -> Pool:
    return Pool.fixed(PageLayout(kv_type(name), kv_type(v or name), *dims, heads), PAGES, torch.device("cpu"))


def test_nothing_waits_for_the_device() -> None:
    states = torch.randn(PAGES * PAGE_TOKENS, 1, 64)
    states[PAGE_TOKENS] = 1e6
    source = pool("f32")
    TORCH.append(source, states, states, np.arange(len(states)), new_codes())
    pairs = [(page, PAGES - 1 - page) for page in range(PAGES)]
    assert int(kv_type("f16").encode_with_status(states)[1]) == TOO_LARGE
    for name in type_names():
        target, status = pool(name), new_codes()
        with no_waiting():
            TORCH.convert(source, target, pairs, status)
            TORCH.convert(target, pool("f32"), pairs, new_codes())
        _, code = target.layout.k.encode_with_status(states)
        assert status.tolist() == [int(code)] * 2, name
        found = target.read(torch.tensor([PAGES - 1]))[0, 0, :, : target.layout.k_bytes]
        assert torch.equal(found, target.layout.k.encode(states[:PAGE_TOKENS, 0])), name


@pytest.mark.parametrize("name", [name for name in kernel_names() if name != "torch"])
@pytest.mark.parametrize("dims", [(64, 128), (256, 80)], ids=str)
def test_compiled_kernels_write_the_same_bytes(name: str, dims: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(PAGES * PAGE_TOKENS, 3, dim, generator=generator) for dim in dims]
    pairs = [(page, PAGES - 1 - page) for page in range(1, PAGES)]
    for types in (("turbo8", "q8_0"), ("f16", "f32"), ("tcq4", "turbo3"), ("q4_0_rot", "q5_1"), ("q8_0", "turbo8")):
        source = pool(*types, dims, 3)
        TORCH.append(source, *states, np.arange(PAGES * PAGE_TOKENS), new_codes())
        for other in (
            ("turbo4", "tcq4"),
            ("tcq3", "q8_0"),
            ("q5_0_rot", "f16"),
            ("turbo8", "turbo2"),
            ("bf16", "q4_1"),
        ):
            targets = [pool(*other, dims, 3) for _ in range(2)]
            for kernel, target in zip((CpuKernel(name), TORCH), targets, strict=True):
                target.memory.fill_(255)
                kernel.convert(source, target, pairs, new_codes())
            assert torch.equal(targets[0].memory, targets[1].memory), (types, other)


@pytest.mark.parametrize("name", [name for name in kernel_names() if name != "torch"])
def test_compiled_kernels_say_what_they_can_t_store(name: str) -> None:
    states = torch.randn(PAGE_TOKENS, 1, 64)
    k, v = states.clone(), states.clone()
    k[70] = 1e6
    v[3, 0, 5] = torch.inf
    for given, expected in (
        ((k, states), [TOO_LARGE, 0]),
        ((states, k), [0, TOO_LARGE]),
        ((states, v), [0, NON_FINITE]),
    ):
        source, status = pool("f32"), new_codes()
        source.memory.zero_()
        slots = np.arange(PAGE_TOKENS)
        packed = torch.cat([x.view(torch.uint8).view(PAGE_TOKENS, 1, -1) for x in given], dim=-1)
        source.write_tokens(slots, packed)
        CpuKernel(name).convert(source, pool("f16"), [(0, 1)], status)
        assert status.tolist() == expected
