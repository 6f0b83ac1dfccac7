"""Two kinds of pages in the Triton kernels, interpreted: attention over both, and sealing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from row_pages import RowPages, row_layout, row_pages
from torch.utils._python_dispatch import TorchDispatchMode

from stratakv.kernels.choice import TORCH
from stratakv.kernels.kernel import Options, Part, attend_apart
from stratakv.kernels.spans import Cut, two_steps
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kernels.triton import attention, encoding, trellis_encoding
from stratakv.kernels.triton import kernel as module
from stratakv.kernels.triton.kernel import Triton
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.pool import Pool
from stratakv.profile.spans import Spans

TRITON = Triton()
OLD, NEW, QUERIES = [260, 0, 128], [70, 20, 131], [1, 2, 5]


def never(*_: object, **__: object) -> Any:
    raise AssertionError("not to be called")


def kinds(types: tuple[str, ...]) -> tuple[Part, Part]:
    """Written pages, and sealed ones, of which every query sees all."""
    fine = row_pages(types[0], types[1], (64, 64), NEW)
    sealed = row_pages(types[2], types[3], (64, 64), OLD, seed=1)
    step = Step.causal(sealed.tables, OLD, QUERIES)
    ends = np.repeat(OLD, QUERIES).astype(np.int32)
    step = replace(step, first=np.zeros_like(ends), last=ends)
    return Part(fine.pool, Step.causal(fine.tables, NEW, QUERIES)), Part(sealed.pool, step)


def query() -> torch.Tensor:
    return torch.randn(sum(QUERIES), 8, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("types", "options"),
    [
        (("turbo8", "turbo8", "tcq4", "turbo4"), Options(0.125)),
        (("q8_0", "turbo8", "turbo4", "tcq3"), Options(0.2, 3.0, torch.linspace(-1, 2, 8))),
    ],
    ids=["", "sinks"],
)
def test_one_merge_where_v_has_one_basis(
    types: tuple[str, ...], options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "attend_apart", never)
    parts, q = kinds(types), query()
    expected = attend_apart(q, [(TORCH, part) for part in parts], options).out
    found = TRITON.attend_both(q, *parts, options)
    assert float((found - expected).norm() / expected.norm()) <= 1e-3


def test_two_bases_are_merged_by_their_sums() -> None:
    parts, q, options = kinds(("q8_0", "f16", "turbo3", "turbo4")), query(), Options(0.2, sinks=torch.ones(8))
    expected = attend_apart(q, [(TORCH, part) for part in parts], options).out
    found = TRITON.attend_both(q, *parts, options)
    assert float((found - expected).norm() / expected.norm()) <= 1e-3


def test_a_prompt_that_seals_its_own_pages() -> None:
    """Its later tokens see sealed what its first ones see fine; one kernel call a kind of pages, two sequences."""
    spans, lengths, queries = Spans(recent=1, first=1), [300, 2 * PAGE_TOKENS + 3], [170, 3]
    fine = row_pages("turbo8", "q8_0", (64, 64), [3 * PAGE_TOKENS] * 2)
    sealed = row_pages("tcq3", "turbo4", (64, 64), [2 * PAGE_TOKENS] * 2, seed=1)
    runs = []
    for at, (length, count) in enumerate(zip(lengths, queries, strict=True)):
        last = np.arange(length - count, length) + 1
        cut = Cut.of(spans, np.arange(3), np.array([0, 1]), length - count, np.zeros_like(last), last)
        runs.append((cut, fine.tables[at], sealed.tables[at]))
    seen = two_steps(runs)
    assert seen.sealed is not None and seen.sealed.last.any()
    parts = Part(fine.pool, seen.fine), Part(sealed.pool, seen.sealed)
    q, options = torch.randn(sum(queries), 4, 64, generator=torch.Generator().manual_seed(0)), Options(0.125)
    found, expected = (kernel.attend_both(q, *parts, options) for kernel in (TRITON, TORCH))
    assert float((found - expected).norm() / expected.norm()) <= 1e-3


def test_nothing_waits_for_the_device_and_no_memory_grows_with_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values, asking for one is an error: all that surrounds the kernels runs there."""
    device = torch.device("meta")

    class Launched:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *_, **__: launches.append(grid)

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_meta and "empty" in str(func):
                made.append(out.numel())
            return out

    for names, where in (
        (("attend", "merge"), attention),
        (("append",), encoding),
        (("prepare", "paths", "finish"), trellis_encoding),
    ):
        for name in names:
            monkeypatch.setattr(where, name, Launched())
    launches: list[tuple[int, ...]] = []
    largest = []
    for pages in (100, 1000):
        made: list[int] = []
        pools = [
            Pool.fixed(row_layout(*types, (128, 128)), pages, device) for types in (("turbo8",) * 2, ("tcq4",) * 2)
        ]
        steps = [Step.causal([np.arange(pages)], [pages * PAGE_TOKENS], [1]) for _ in pools]
        parts = [Part(pool, step) for pool, step in zip(pools, steps, strict=True)]
        states, q = torch.empty(1, 2, 128, device=device), torch.empty(1, 8, 128, device=device)
        monkeypatch.setattr(module, "_splits", lambda programs, longest, shape, device: 64)
        with Sizes():
            for pool in pools:
                TRITON.append(pool, states, states, steps[0].slots, torch.empty(2, dtype=torch.int32, device=device))
            assert TRITON.attend_both(q, *parts, Options(0.1, sinks=torch.empty(8, device=device))).is_meta
            assert TRITON.attend(q, *parts[0], Options(0.1), lse=True).out.is_meta
        largest.append(max(made))
    assert largest[0] == largest[1] == 2 * 64 * 8 * 128  # splits of both kinds, query heads, head_dim
    assert len(launches) == 2 * (2 + 6 + 3 + 2)


def test_a_step_s_second_layer_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA graphs need: once a step was run, running it again copies nothing to the device."""
    parts, q, options = kinds(("turbo8", "turbo8", "tcq4", "turbo4")), query(), Options(0.125)
    (pool, step), rows = parts[0], slice(0, 2)
    states = torch.randn(len(step.slots), 2, 64, generator=torch.Generator().manual_seed(2))
    status = new_codes()

    def layer() -> torch.Tensor:
        TRITON.append(pool, states[rows], states[rows], step.slots[rows], status)
        return TRITON.attend_both(q, *parts, options)

    first = layer()
    for name in ("from_numpy", "tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, never)
    assert torch.equal(layer(), first)


def test_sealed_pages_are_torch_s_to_the_bit() -> None:
    source, types, dim = row_pages("turbo8", "q8_0", (64, 64), [2 * PAGE_TOKENS], heads=1), ("turbo4", "q8_0"), 64
    targets = [Pool.fixed(row_layout(*types, (dim, dim), 1), 3, torch.device("cpu")) for _ in range(2)]
    pairs = [(int(page), 2 - at) for at, page in enumerate(source.tables[0])]
    for kernel, target in zip((TRITON, TORCH), targets, strict=True):
        target.memory.fill_(255)
        status = new_codes()
        kernel.convert(source.pool, target, pairs, status)
        assert status.tolist() == [0, 0]
    assert torch.equal(targets[0].memory, targets[1].memory)


@pytest.mark.parametrize("page_tokens", [16, 48])
def test_pages_of_other_sizes(page_tokens: int) -> None:
    """As other engines have them."""
    given: RowPages = row_pages("turbo3", "q5_1", (64, 64), [130, 20], page_tokens=page_tokens)
    q = torch.randn(4, 4, 64, generator=torch.Generator().manual_seed(0))
    found, expected = (given.attend(kernel, q, [1, 3]).out for kernel in (TRITON, TORCH))
    assert float((found - expected).norm() / expected.norm()) <= 1e-3
    states = torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(1))
    slots, pools = np.array([1, page_tokens + 15, -1, 2 * page_tokens]), []
    for kernel in (TRITON, TORCH):
        pools.append(Pool.fixed(given.pool.layout, 3, torch.device("cpu")))
        pools[-1].memory.fill_(0)
        kernel.append(pools[-1], states, states, slots, new_codes())
    assert torch.equal(pools[0].memory, pools[1].memory)
