"""The Triton kernels, interpreted, against the torch body on the same pages: all types, both sides, many shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton
from row_pages import RowPages, row_layout, row_pages
from tiny_models import tiny_model
from triton.runtime.build import compile_module_from_src

from stratakv import KVCache, use
from stratakv.kernels.choice import TORCH, kernel_for, kernel_name, kernel_names, order_of
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.kernel import Options
from stratakv.kernels.status import new_codes
from stratakv.kernels.step import Step
from stratakv.kernels.triton.kernel import Triton, _without_launcher
from stratakv.kvtypes import type_names
from stratakv.pages.layout import PAGE_TOKENS
from stratakv.pages.pool import Pool

CPU = torch.device("cpu")
TRITON = Triton()
TYPES = [name for name in type_names() if TRITON.refuses(row_layout(name, "f16", (128, 128)), CPU) is None]
# Queries, weights, K and V are rounded to f16, by 2^-11 of themselves at most: sums of products lose 4e-4 to 7e-4
LIMIT = 1e-3


def compare(
    given: RowPages, queries: Sequence[int], groups: int, dtype: torch.dtype = torch.float32, **options: Any
) -> None:
    generator = torch.Generator().manual_seed(groups)
    dim = given.pool.layout.k_dim
    q = 2 * torch.randn(sum(queries), given.pool.layout.kv_heads * groups, dim, generator=generator)
    found, expected = (given.attend(kernel, q.to(dtype), queries, **options) for kernel in (TRITON, TORCH))
    assert found.out.dtype == dtype and found.out.is_contiguous()
    close = max(LIMIT, 2 * torch.finfo(dtype).eps)
    assert float((found.out.float() - expected.out.float()).norm() / expected.out.float().norm()) <= close
    assert found.lse is not None and expected.lse is not None
    torch.testing.assert_close(found.lse, expected.lse, rtol=0, atol=5e-3)


def test_all_types_are_read() -> None:
    assert tuple(TYPES) == type_names()


@pytest.mark.parametrize("name", TYPES)
def test_every_type_on_either_side(name: str) -> None:
    for k, v in ((name, "q8_0"), ("turbo4", name)):
        compare(row_pages(k, v, (128, 128), [200]), [1], 4)


@pytest.mark.parametrize("k", TYPES)
def test_every_pair(k: str) -> None:
    for v in TYPES:
        compare(row_pages(k, v, (64, 64), [20]), [1], 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_every_type_in_some_pairs(name: str) -> None:
    """With an eighth of the others at each head_dim, another eighth at each."""
    for at, dim in enumerate((64, 96, 128, 256)):
        across(name, TYPES[(at + TYPES.index(name)) % 8 :: 8], dim)


@pytest.mark.sweep
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("name", TYPES)
def test_every_pair_at_every_dim(name: str, dim: int) -> None:
    across(name, TYPES, dim)


def across(name: str, others: Sequence[str], dim: int) -> None:
    for index, other in enumerate(others):
        if TRITON.refuses(row_layout(name, other, (dim, dim)), CPU) is None:
            compare(row_pages(name, other, (dim, dim), [140]), [1 + index % 3], (1, 2, 4, 7, 8, 16)[index % 6])


@pytest.mark.parametrize("dim", [64, 256])
@pytest.mark.parametrize("types", [("tcq2", "tcq6"), ("tcq4", "tcq5"), ("tcq3", "tcq4")], ids=str)
def test_trellis_types_at_other_dims(types: tuple[str, str], dim: int) -> None:
    compare(row_pages(*types, (dim, dim), [130]), [1], 2)


@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (192, 128), (256, 256)], ids=str)
@pytest.mark.parametrize(
    "types", [("turbo3", "turbo5"), ("q5_0", "q4_1"), ("turbo6", "q8_0"), ("bf16", "f16")], ids=str
)
def test_other_dims(dims: tuple[int, int], types: tuple[str, str]) -> None:
    why = TRITON.refuses(row_layout(*types, dims), CPU)
    assert why is None
    compare(row_pages(*types, dims, [130]), [1], 2)


@pytest.mark.parametrize(
    ("types", "dims"),
    [(("f32", "f32"), (192, 192)), (("f32", "turbo4"), (256, 128)), (("q8_0", "f32"), (160, 256))],
    ids=str,
)
def test_f32_at_wide_heads(types: tuple[str, str], dims: tuple[int, int]) -> None:
    """Multiplied 64 values at a time; rows as columns and as rows, and few query tokens of many."""
    for groups, queries in ((2, 1), (12, 1), (1, 12)):
        compare(row_pages(*types, dims, [140]), [queries], groups, window=90)


@pytest.mark.parametrize("groups", [*range(1, 17), 20, 48, 71])
def test_query_heads_of_a_kv_head(groups: int) -> None:
    compare(row_pages("turbo4", "turbo3", (64, 64), [150, 20]), [1, 3], groups)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 128, 129, 256, 257, 1500])
def test_lengths(length: int) -> None:
    compare(row_pages("turbo4", "q8_0", (64, 64), [length]), [1], 4)


@pytest.mark.parametrize("window", [None, 70])
def test_ragged_sequences_prompts_among_them(window: int | None) -> None:
    given = row_pages("q4_0", "turbo4", (64, 64), [300, 5, 128, 77, 200])
    compare(given, [1, 5, 0, 40, 70], 4, window=window)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_queries_in_half_precision(dtype: torch.dtype) -> None:
    compare(row_pages("turbo4", "turbo4", (128, 128), [200]), [2], 4, dtype)


@pytest.mark.parametrize(
    "options",
    [{"softcap": 3.0}, {"sinks": torch.linspace(-2, 4, 8)}, {"scale": 0.5}, {"softcap": 2.0, "sinks": torch.ones(8)}],
)
def test_softcap_sinks_and_scale(options: dict[str, Any]) -> None:
    compare(row_pages("turbo4", "turbo4", (64, 64), [300, 40]), [1, 2], 4, **options)


def test_large_queries_and_a_dominant_key() -> None:
    given = row_pages("q8_0", "turbo4", (128, 128), [300])
    q = 1e6 * torch.randn(1, 8, 128, generator=torch.Generator().manual_seed(0))
    found, expected = (given.attend(kernel, q, [1], scale=1e-5).out for kernel in (TRITON, TORCH))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("v", ["f16", "q4_1", "turbo4"])
@pytest.mark.parametrize("norm", [1.0, 0.02])
def test_small_weights_of_many_tokens_beside_a_large_one(v: str, norm: float) -> None:
    """One token takes nearly all the weight and has no values, as the first one of a text often does: what is left are
    products of small weights and norms, which f16 alone would lose."""
    tokens, generator = 512, torch.Generator().manual_seed(0)
    pool = Pool.fixed(row_layout("f16", v, (64, 64), 1), tokens // PAGE_TOKENS, CPU)
    k, q = torch.zeros(tokens, 1, 64), torch.zeros(1, 2, 64)
    k[0, 0, 0], k[1:, 0, 1], q[..., 0], q[..., 1] = 8.0, torch.randn(tokens - 1, generator=generator), 13.0, 4.0
    values = torch.randn(tokens, 1, 64, generator=generator) + torch.randn(64, generator=generator)
    values *= norm / values.norm(dim=-1, keepdim=True)
    values[0] = 0
    TORCH.append(pool, k, values, np.arange(tokens), new_codes())
    step = Step.causal([np.arange(tokens // PAGE_TOKENS)], [tokens], [1])
    found, expected = (kernel.attend(q, pool, step, Options(0.125)).out for kernel in (TRITON, TORCH))
    assert float((found - expected).norm() / expected.norm()) <= LIMIT


@pytest.mark.parametrize(
    ("k", "v", "dim"),
    [
        *(("f16", v, 64) for v in ("f16", "f32", "bf16", "q8_0", "q4_1", "turbo4")),
        ("f32", "q8_0", 192),
        ("turbo4", "turbo4", 64),
    ],
)
def test_what_no_query_sees_may_be_anything(k: str, v: str, dim: int) -> None:
    """Tokens before a window and after the last token are nan."""
    given = row_pages(k, v, (dim, 64), [200])
    poison = given.pool.tiles.clone()
    rows = given.pool.read(torch.from_numpy(given.tables[0]))
    rows[0, :, :80], rows[1, :, 70:] = 0xFF, 0xFF  # the second page holds the tokens 128 to 199
    given.pool.write(torch.from_numpy(given.tables[0]), rows)
    assert not torch.equal(poison, given.pool.tiles)
    step = Step.causal(given.tables, [200], [1])
    step = replace(step, first=np.array([100], np.int32), last=np.array([198], np.int32))
    q = torch.randn(1, 4, dim, generator=torch.Generator().manual_seed(0))
    found, expected = (kernel.attend(q, given.pool, step, Options(0.125)).out for kernel in (TRITON, TORCH))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("last", [50, 300])
@pytest.mark.parametrize("sinks", [None, torch.linspace(-2, 4, 4)])
def test_a_query_that_sees_nothing(last: int, sinks: torch.Tensor | None) -> None:
    """Beside one that sees whole tiles, too. Its log-sum-exp is the sink's: parts are merged by it."""
    given = row_pages("turbo4", "q8_0", (64, 64), [300])
    step = Step.causal(given.tables, [300], [2])
    step = replace(step, first=np.array([7, 0], np.int32), last=np.array([7, last], np.int32))
    q = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0))
    found, expected = (
        kernel.attend(q, given.pool, step, Options(0.125, sinks=sinks), lse=True) for kernel in (TRITON, TORCH)
    )
    assert found.lse is not None and expected.lse is not None
    assert not found.out[0].any()
    torch.testing.assert_close(found.lse, expected.lse, rtol=0, atol=5e-3)


def test_masks_with_holes_are_torch_s() -> None:
    given = row_pages("turbo4", "turbo4", (64, 64), [20])
    mask = torch.rand(1, 1, 3, 20, generator=torch.Generator().manual_seed(0)) > 0.5
    step = Step.even(np.stack(given.tables), 20, 3).under(mask)
    q = torch.randn(3, 4, 64)
    found, expected = (kernel.attend(q, given.pool, step, Options(0.125)).out for kernel in (TRITON, TORCH))
    assert torch.equal(found, expected)


def test_a_query_beyond_the_table_is_refused() -> None:
    given = row_pages("turbo4", "turbo4", (64, 64), [100])
    step = replace(Step.causal(given.tables, [100], [1]), last=np.array([129], np.int32))
    with pytest.raises(ValueError, match="doesn't hold"):
        TRITON.attend(torch.randn(1, 4, 64), given.pool, step, Options(0.125))


def test_what_is_refused_is_said() -> None:
    for layout, device, words in (
        (row_layout("turbo4", "turbo4", (512, 512)), CPU, "head_dim above 256"),
        (row_layout("turbo3", "turbo3", (24, 24)), CPU, "no whole words"),
        (row_layout("tcq4", "f16", (16, 16)), CPU, "no Triton kernel for tcq4 in blocks of 16"),
        (row_layout("tcq5", "f16", (80, 80)), CPU, "bits x are no whole words"),
        (replace(row_layout("f16", "f16", (64, 64)), order="tile"), CPU, f"not tile{PAGE_TOKENS}-v1"),
        (row_layout("f16", "f16", (64, 64)), torch.device("meta"), "not for meta"),
    ):
        assert words in str(TRITON.refuses(layout, device))
    for name in kernel_names()[:-1]:
        assert f"not of rows{PAGE_TOKENS}-v1" in str(CpuKernel(name).refuses(row_layout("f16", "f16", (64, 64)), CPU))


@pytest.mark.parametrize(
    ("capability", "words"),
    [((8, 6), None), ((9, 0), None), ((12, 0), None), ((7, 5), "this GPU has 7.5"), ((13, 0), "this GPU has 13.0")],
)
def test_a_gpu_that_is_not_known_is_torch_s(
    capability: tuple[int, int], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("stratakv.kernels.triton.kernel._without_launcher", lambda: None)
    layout, gpu = row_layout("turbo4", "f16", (64, 64)), torch.device("cuda")
    why = TRITON.refuses(layout, gpu)
    assert why is None if words is None else words in str(why)
    assert kernel_for(layout, gpu) == (TRITON if words is None else TORCH)


@pytest.mark.parametrize(
    ("compiler", "words"),
    [(None, "(python3-dev): Failed to find C compiler"), ("/bin/false", "(python3-dev): /bin/false failed")],
)
def test_triton_that_can_t_compile_its_launcher_is_torch_s(
    compiler: str | None, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By Triton's own builder, as its driver for NVIDIA's GPUs calls it where there is one."""
    driver = SimpleNamespace()
    builder = property(lambda _: compile_module_from_src(f"// {tmp_path}", "cuda_utils"))
    driver.active = type("Active", (), {"utils": builder})()
    monkeypatch.setattr(triton.runtime, "driver", driver)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", compiler) if compiler else monkeypatch.delenv("CC", raising=False)
    layout, gpu = row_layout("turbo4", "f16", (64, 64)), torch.device("cuda")
    _without_launcher.cache_clear()
    try:
        assert words in str(TRITON.refuses(layout, gpu))
        assert kernel_for(layout, gpu) == TORCH
    finally:
        _without_launcher.cache_clear()


def test_it_runs_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", "triton")
    assert order_of(CPU) == "rows"
    assert kernel_for(row_layout("turbo4", "q8_0", (64, 64)), CPU) == TRITON
    assert kernel_for(row_layout("f32", "q8_0", (512, 512)), CPU) is TORCH
    monkeypatch.delenv("STRATAKV_KERNEL")
    assert order_of(CPU) == "tile" and order_of(torch.device("cuda")) == "rows"
    assert kernel_name(torch.device("cuda")) == "triton"
    monkeypatch.setenv("STRATAKV_KERNEL", "torch")
    assert kernel_name(torch.device("cuda")) == "torch"


def test_a_cache_over_pages_in_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' cache, from prompt to answers, through the interpreted kernels."""
    model = use(tiny_model("llama"))
    ids = torch.randint(0, 60, (1, 12), generator=torch.Generator().manual_seed(0))
    logits = []
    for name in ("triton", "torch"):
        monkeypatch.setenv("STRATAKV_KERNEL", name)
        cache = KVCache(model.config, "q8_0")
        with torch.no_grad():
            model(ids[:, :10], past_key_values=cache)
            logits.append(model(ids[:, 10:], past_key_values=cache).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=2e-2)


def test_no_query_tokens() -> None:
    given = row_pages("turbo4", "turbo4", (64, 64), [100])
    found = given.attend(TRITON, torch.randn(0, 4, 64), [0])
    assert found.out.shape == (0, 4, 64) and found.lse is not None and found.lse.shape == (0, 4)
