"""The compiled decode kernels against the torch body on the same pages: all types, both sides, many shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from packed_views import Packed, pages

from stratakv import KVCache, UserError, load_model
from stratakv.kernels.choice import TORCH, kernel_name, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.cpu.layout import knows
from stratakv.kernels.native import native
from stratakv.kernels.status import new_codes
from stratakv.kvtypes import kv_type, type_names
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool

KERNELS = [name for name in kernel_names() if name != "torch"]
TYPES = [name for name in type_names() if knows(kv_type(name))]
pytestmark = pytest.mark.skipif(not KERNELS, reason="installed without a C++ compiler: there is no kernel to test")


def both(packed: Packed, q: torch.Tensor, kernel: str, *, precise: bool = False, **options):
    """(the kernel's output, the torch body's)."""
    step = packed.step(q.shape[2])
    out = packed.attend(CpuKernel(kernel, precise), q, step, **options).out
    return out, packed.attend(TORCH, q, step, **options).out


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out - expected).norm() / expected.norm())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dims", [(64, 64), (80, 80), (96, 96), (128, 128), (192, 128), (256, 256), (512, 64)], ids=str)
def test_every_type_on_either_side(kernel: str, dims: tuple[int, int]) -> None:
    for index, name in enumerate(TYPES):
        for k, v in ((name, "q8_0"), ("q8_0", name)):
            groups, q_tokens = (1, 2, 3, 4, 7, 8, 16)[index % 7], 1 + index % 3
            view = pages(k, v, dims, 200, batch=1)
            q = 2 * torch.randn(1, 2 * groups, q_tokens, dims[0], generator=torch.Generator().manual_seed(index))
            for precise, limit in ((False, 1e-2), (True, 1e-3)):
                out, expected = both(view, q, kernel, precise=precise)
                assert error(out, expected) <= limit, (k, v, groups, q_tokens, precise)
                assert torch.cosine_similarity(out.flatten(), expected.flatten(), dim=0) >= 0.9999


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 129, 1000, 20_000, 100_000])
def test_lengths(kernel: str, tokens: int) -> None:
    view = pages("turbo4", "turbo3", (128, 128), tokens, batch=1)
    q = torch.randn(1, 8, 1, 128, generator=torch.Generator().manual_seed(tokens))
    out, expected = both(view, q, kernel)
    assert error(out, expected) <= 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
def test_softcap_sinks_and_scale(kernel: str) -> None:
    view, q = pages("turbo4", "turbo4", (128, 128), 300), torch.randn(2, 8, 2, 128)
    for options in (
        {"softcap": 3.0},
        {"sinks": torch.randn(8)},
        {"scale": 0.5},
        {"softcap": 2.0, "sinks": 4 * torch.ones(8)},
    ):
        out, expected = both(view, q, kernel, precise=True, **options)
        assert error(out, expected) <= 1e-3, options


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_dominant_key_equal_keys_and_huge_logits(kernel: str) -> None:
    dominant = pages("q8_0", "turbo4", (128, 128), 500, batch=1)
    q = torch.randn(1, 4, 1, 128)
    out, expected = both(dominant, q, kernel, scale=50.0)  # logits in the hundreds: one key takes all
    assert error(out, expected) <= 1e-2
    out, expected = both(dominant, q, kernel, scale=1000.0)
    assert torch.isfinite(out).all() and torch.cosine_similarity(out.flatten(), expected.flatten(), dim=0) > 0.99
    out, expected = both(dominant, q, kernel, scale=1000.0, precise=True)
    assert error(out, expected) <= 1e-2
    equal = pages("q8_0", "turbo4", (128, 128), 400, batch=1)
    out, expected = both(equal, torch.zeros(1, 4, 1, 128), kernel)  # all weights equal
    assert error(out, expected) <= 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("others", [1e-4, 1e-3, 2e-3, 1e-2, 0.1])
def test_a_sink_beside_many_that_share_the_rest(kernel: str, others: float) -> None:
    """One token outweighs each other one by far, and all of them together don't: weights of one byte would lose the rest."""
    layout = PageLayout(kv_type("q8_0"), kv_type("turbo4"), 128, 128, 1)
    k = torch.zeros(1, 128, 128)
    k[:, 0, 0] = 1.0
    v = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0)) + 1.0  # values with a common part
    pool = Pool.fixed(layout, 1, torch.device("cpu"))
    TORCH.append(pool, k.transpose(0, 1), v.transpose(0, 1), np.arange(128), new_codes())
    view = Packed(pool, np.zeros((1, 1), dtype=np.int64), 0, 128)
    q = torch.zeros(1, 4, 1, 128)
    q[..., 0] = -float(np.log(others))
    out, expected = both(view, q, kernel, scale=1.0)
    assert error(out, expected) <= 1e-2


@pytest.mark.parametrize("kernel", KERNELS)
def test_windows_paddings_and_an_empty_one(kernel: str) -> None:
    view, q = pages("turbo4", "q8_0", (64, 64), 400), torch.randn(2, 4, 1, 64)
    step = replace(view.step(1), first=np.array([130, 300], np.int32), last=np.array([390, 300], np.int32))
    out = view.attend(CpuKernel(kernel, True), q, step, scale=0.1).out
    expected = view.attend(TORCH, q, step, scale=0.1).out
    assert error(out[:1], expected[:1]) <= 1e-3
    assert torch.equal(out[1], torch.zeros_like(out[1])) and torch.equal(expected[1], out[1])


def test_a_query_beyond_the_table_is_refused() -> None:
    view, q = pages("turbo4", "turbo4", (64, 64), 100), torch.randn(2, 4, 1, 64)
    step = replace(view.step(1), last=np.full(2, 129, np.int32))
    with pytest.raises(ValueError, match="doesn't hold"):
        view.attend(CpuKernel(KERNELS[0]), q, step)


class Watched:
    """The compiled module, which says what ran."""

    def __init__(self, module: Any) -> None:
        self.module, self.ran = module, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def attend(self, *args: Any, **kwargs: Any) -> str:
        self.ran.append(self.module.attend(*args, **kwargs))
        return self.ran[-1]


def test_the_forced_kernel_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the compiled body says of itself: a build that runs another one whatever is asked for fails here."""
    loaded = load_model("embedded", packed=False)
    watched = Watched(native())
    monkeypatch.setattr(CpuKernel, "_module", watched)
    ids = torch.tensor([[0, 5, 6, 7]])
    logits = {}
    for name in kernel_names():
        monkeypatch.setenv("STRATAKV_KERNEL", name)
        cache = KVCache(loaded.model.config, "turbo4")
        watched.ran.clear()
        with torch.no_grad():
            loaded.model(ids, past_key_values=cache)
            logits[name] = loaded.model(ids[:, :1], past_key_values=cache).logits
        assert watched.ran == ([] if name == "torch" else 24 * [name])  # 12 layers, twice
    for name in KERNELS:
        torch.testing.assert_close(logits[name], logits["torch"], rtol=0, atol=0.05)
    monkeypatch.setenv("STRATAKV_KERNEL", "avx1024")
    with pytest.raises(UserError, match="avx1024: not a kernel of this machine"):
        kernel_name()


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_of_all_layers_runs_the_forced_kernel(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model("embedded")
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    stack, ran = loaded.model.model.forward.__self__, []
    run = stack.layers.run

    class Layers:
        def run(self, *args: Any) -> Any:
            outcome = run(*args)
            ran.append(outcome[-1])
            return outcome

    monkeypatch.setattr(stack, "layers", Layers())
    with torch.inference_mode():
        loaded.model(torch.tensor([[0, 5, 6]]), past_key_values=KVCache(loaded.model.config, "turbo4"))
        cache = KVCache(loaded.model.config, "turbo4")
        for layer in cache.layers:
            layer.update(torch.randn(1, 2, 5, 128), torch.randn(1, 2, 5, 128))
        loaded.model(torch.tensor([[7]]), past_key_values=cache)
    assert ran == [kernel]


def test_a_forked_child_attends_too() -> None:
    import multiprocessing

    view, q = pages("turbo4", "turbo4", (64, 64), 300), torch.randn(2, 4, 1, 64)
    both(view, q, KERNELS[0])  # the parent's threads exist now
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_child_error).get(timeout=60) <= 1e-2


def _child_error() -> float:
    torch.set_num_threads(2)
    view, q = pages("turbo4", "turbo4", (64, 64), 300), torch.randn(2, 4, 1, 64)
    return error(*both(view, q, KERNELS[0]))
