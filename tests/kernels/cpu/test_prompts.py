"""Chunks of prompts against the torch body on the whole: causal, windows, softcap, sinks, bf16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packed_views import Packed, pages

from stratakv import KVCache, load_model
from stratakv.assets import judging_text
from stratakv.kernels.choice import TORCH, kernel_names
from stratakv.kernels.cpu.kernel import CpuKernel
from stratakv.kernels.cpu.layout import knows
from stratakv.kernels.step import Step
from stratakv.kvtypes import kv_type, type_names

KERNELS = [name for name in kernel_names() if name != "torch"]
TYPES = [name for name in type_names() if knows(kv_type(name))]
pytestmark = pytest.mark.skipif(not KERNELS, reason="installed without a C++ compiler: there is no kernel to test")


def both(packed: Packed, q: torch.Tensor, step: Step | None = None, kernel: str = "", **options):
    """(the kernel's output, the torch body's)."""
    step = step or packed.step(q.shape[2])
    out = packed.attend(CpuKernel(kernel or KERNELS[0]), q, step, **options).out
    return out, packed.attend(TORCH, q, step, **options).out


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", TYPES)
def test_every_type(kernel: str, name: str) -> None:
    for dim in (64, 80, 128, 192, 256):
        view, q = pages(name, name, (dim, dim), 200, batch=2), torch.randn(2, 4, 30, dim)
        torch.testing.assert_close(*both(view, q, kernel=kernel), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("q_tokens", [9, 500, 1300])
@pytest.mark.parametrize("options", [{}, {"softcap": 4.0}, {"sinks": torch.linspace(-2, 3, 8)}], ids=str)
def test_options(q_tokens: int, options) -> None:
    view, q = pages("turbo4", "q8_0", (64, 64), 1300, batch=1), torch.randn(1, 8, q_tokens, 64)
    torch.testing.assert_close(*both(view, q, **options), rtol=1e-4, atol=1e-5)


def test_different_dims_and_views_that_start_late() -> None:
    view, q = pages("q8_0", "turbo4", (512, 64), 300, batch=1), torch.randn(1, 4, 40, 512)
    torch.testing.assert_close(*both(view, q), rtol=1e-4, atol=1e-5)
    whole, q = pages("turbo4", "turbo3", (64, 64), 500, batch=1), torch.randn(1, 4, 40, 64)
    late = replace(whole, start=130, tokens=370)
    torch.testing.assert_close(*both(late, q), rtol=1e-4, atol=1e-5)


def test_queries_that_see_all_tokens_later_ones_too() -> None:
    view, q = pages("turbo4", "turbo4", (64, 64), 350, batch=2), torch.randn(2, 4, 50, 64)
    step = view.step(50).seeing_all()
    found, expected = both(view, q, step)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    everything = view.step(50).under(torch.ones(1, 1, 50, 350, dtype=torch.bool))
    assert everything.mask is None
    torch.testing.assert_close(found, both(view, q, everything)[1], rtol=1e-4, atol=1e-5)


def test_masks_that_are_windows_and_a_query_that_sees_nothing() -> None:
    view, q = pages("turbo4", "turbo4", (64, 64), 350, batch=2), torch.randn(2, 4, 50, 64)
    mask = torch.ones(2, 1, 50, 350, dtype=torch.bool).tril(300) & torch.ones(50, 350, dtype=torch.bool).triu(100)
    mask[1, :, :, :220] = False
    mask[0, :, 7] = False
    step = view.step(50).under(mask)
    assert step.mask is None
    found, expected = both(view, q, step)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not found[0, :, 7].any()


@pytest.mark.parametrize("window", [1, 40, 99, 250, 1000])
def test_windows(window: int) -> None:
    view, q = pages("turbo4", "turbo4", (64, 64), 350, batch=1), torch.randn(1, 4, 170, 64)
    step = Step.causal(list(view.tables), [350], [170], window=window)
    mask = torch.ones(170, 350, dtype=torch.bool).tril(180).triu(181 - window)
    expected = view.attend(TORCH, q, view.step(170).under(mask[None, None])).out
    torch.testing.assert_close(both(view, q, step)[0], expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_queries() -> None:
    view, q = pages("turbo4", "turbo4", (128, 128), 600, batch=1), torch.randn(1, 8, 100, 128)
    out, expected = both(view, q)
    half = view.attend(CpuKernel(KERNELS[0]), q.bfloat16()).out
    assert half.dtype == torch.bfloat16 and float((half - expected).norm() / expected.norm()) < 1e-2
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("profile", ["q8_0", "turbo4", "turbo2", "edges3"])
def test_divergence_is_the_torch_path_s(profile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """KLD of a profile through the kernels, prefill and decode, within 2 % or 1e-5 of the torch body's."""
    loaded = load_model("embedded", exact=True)  # 8-bit activations would hide 2 %
    ids = loaded.tokenizer(judging_text().read_text()[:4000], return_tensors="pt").input_ids[:, :400]

    @torch.no_grad()
    def log_probabilities(kernel: str, types: str) -> torch.Tensor:
        monkeypatch.setenv("STRATAKV_KERNEL", kernel)
        cache = KVCache(loaded.model.config, types)
        pieces = [ids[:, :300], *ids[:, 300:].split(4, dim=1)]
        return torch.cat([loaded.model(p, past_key_values=cache).logits for p in pieces], 1)[0].double().log_softmax(-1)

    def divergence(kernel: str) -> float:
        reference, changed = log_probabilities(kernel, "f16"), log_probabilities(kernel, profile)
        return float((reference.exp() * (reference - changed)).sum(-1).mean())

    expected = divergence("torch")
    for kernel in KERNELS:
        assert abs(divergence(kernel) - expected) <= max(0.02 * expected, 1e-5), kernel
