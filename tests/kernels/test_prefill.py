"""Attention of many queries block by block against the torch body on the whole: causal, masked, softcap, sinks, bf16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from packed_views import pages

from stratakv import KVCache, load_model
from stratakv.assets import judging_text
from stratakv.cache.handle import PackedView
from stratakv.kernels import prefill
from stratakv.kernels.attention import _torch_attention
from stratakv.kernels.choice import kernel_names
from stratakv.kernels.cpu_layout import knows
from stratakv.kvtypes import kv_type, type_names

KERNELS = [name for name in kernel_names() if name != "torch"]
TYPES = [name for name in type_names() if knows(kv_type(name))]
pytestmark = pytest.mark.skipif(not KERNELS, reason="installed without a C++ compiler: there is no kernel to test")


def both(view, q, **options):
    options = {"scale": q.shape[-1] ** -0.5, "mask": None, "causal": True, "softcap": None, "sinks": None, **options}
    q = view.store.layout.k.rotate(q)
    names = ("scale", "mask", "causal", "softcap", "sinks")
    return prefill.attend(q, tokens_of(view), **options), _torch_attention(q, view, *(options[name] for name in names))


def tokens_of(view: PackedView) -> prefill.Tokens:
    return prefill.Tokens(view.store.layout, view.addresses, view.start, view.tokens)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", TYPES)
def test_every_type(kernel: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    for dim in (64, 80, 128, 192, 256):
        view, q = pages(name, name, (dim, dim), 200, batch=2), torch.randn(2, 4, 30, dim)
        torch.testing.assert_close(*both(view, q), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("q_tokens", [9, 500, 1300])
@pytest.mark.parametrize("options", [{}, {"softcap": 4.0}, {"sinks": torch.linspace(-2, 3, 8)}], ids=str)
def test_blocks_are_merged(q_tokens: int, options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "BLOCK_TOKENS", 300)
    view, q = pages("turbo4", "q8_0", (64, 64), 1300, batch=1), torch.randn(1, 8, q_tokens, 64)
    torch.testing.assert_close(*both(view, q, **options), rtol=1e-4, atol=1e-5)


def test_different_dims_and_views_that_start_late() -> None:
    view, q = pages("q8_0", "turbo4", (512, 64), 300, batch=1), torch.randn(1, 4, 40, 512)
    torch.testing.assert_close(*both(view, q), rtol=1e-4, atol=1e-5)
    whole, q = pages("turbo4", "turbo3", (64, 64), 500, batch=1), torch.randn(1, 4, 40, 64)
    late = replace(whole, start=130, tokens=370)
    torch.testing.assert_close(*both(late, q), rtol=1e-4, atol=1e-5)


def test_masks_windows_and_paddings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "BLOCK_TOKENS", 100)
    view, q = pages("turbo4", "turbo4", (64, 64), 350, batch=2), torch.randn(2, 4, 50, 64)
    mask = torch.ones(2, 1, 50, 350, dtype=torch.bool).tril(300) & torch.ones(50, 350, dtype=torch.bool).triu(100)
    mask[1, :, :, :220] = False
    torch.testing.assert_close(*both(view, q, mask=mask), rtol=1e-4, atol=1e-5)
    bias = torch.randn(2, 4, 50, 350).masked_fill(~mask, -1e30)
    torch.testing.assert_close(*both(view, q, mask=bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [1, 40, 99, 250, 1000])
def test_windows_without_a_mask(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "BLOCK_TOKENS", 100)
    view, q = pages("turbo4", "turbo4", (64, 64), 350, batch=1), torch.randn(1, 4, 170, 64)
    out = prefill.attend(view.store.layout.k.rotate(q), tokens_of(view), scale=0.1, window=window)
    mask = torch.ones(170, 350, dtype=torch.bool).tril(180).triu(181 - window)
    expected = _torch_attention(view.store.layout.k.rotate(q), view, 0.1, mask, False, None, None)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_queries() -> None:
    view, q = pages("turbo4", "turbo4", (128, 128), 600, batch=1), torch.randn(1, 8, 100, 128)
    out, expected = both(view, q)
    half = prefill.attend(view.store.layout.k.rotate(q).bfloat16(), tokens_of(view), scale=128**-0.5)
    assert float((half - expected).norm() / expected.norm()) < 1e-2
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
