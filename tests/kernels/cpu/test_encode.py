"""The compiled encoders give the torch bodies' bytes: every type, every kernel of this machine, odd values included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv import UserError
from stratakv.engine.cache.layers import PackedLayer
from stratakv.kernels.choice import kernel_names
from stratakv.kernels.encode import encode
from stratakv.kvtypes import kv_type, type_names

KERNELS = [name for name in kernel_names() if name != "torch"]
pytestmark = pytest.mark.skipif(not KERNELS, reason="installed without a C++ compiler: there is no kernel to test")


def stored(monkeypatch: pytest.MonkeyPatch, kernel: str, name: str, pieces: list[torch.Tensor]) -> torch.Tensor:
    """The canonical bytes that a layer holds after it was given the pieces [batch, heads, tokens, dim] as K and V."""
    with monkeypatch.context() as patch:
        patch.setenv("STRATAKV_KERNEL", kernel)
        layer = PackedLayer("layer", kv_type(name), kv_type(name))
        for piece in pieces:
            layer.update(piece, -piece)
    return layer.pool.read_tokens(np.array(layer.tables), 0, layer.length)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", type_names())
def test_bytes_equal_the_torch_body_s(kernel: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for dim in (8, 16, 64, 80, 96, 112, 128, 192, 256, 512):
        generator = torch.Generator().manual_seed(dim)
        pieces = [torch.randn(2, 2, tokens, dim, generator=generator) for tokens in (130, 1, 1, 60)]
        pieces[0][0, 0, :6] = 0
        pieces[0][0, 1, :6] *= 1e-30
        pieces[0][1, 0, :6] *= 1e-5
        pieces[0][1, 1, :6] *= 500
        pieces[0][1, 1, 7] = 0.5
        assert torch.equal(stored(monkeypatch, kernel, name, pieces), stored(monkeypatch, "torch", name, pieces)), dim


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(type_names()),
    values=st.lists(st.floats(-60000, 60000, width=32).map(lambda x: x / 64), min_size=32, max_size=32),
    dim=st.sampled_from([32, 96]),
)
def test_bytes_of_any_values(name: str, values: list[float], dim: int) -> None:
    x = torch.tensor(values * (dim // 32)).view(1, 1, 1, dim)
    with pytest.MonkeyPatch.context() as patch:
        expected = stored(patch, "torch", name, [x])
        for kernel in KERNELS:
            assert torch.equal(stored(patch, kernel, name, [x]), expected), kernel


@pytest.mark.parametrize("kernel", kernel_names())
def test_vectors_outside_of_a_cache(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    for name in ("turbo4", "tcq5", "q4_0_rot", "f16"):
        type_ = kv_type(name)
        for shape in ((3, 70, 64), (1, 128), (0, 64), (130, 80)):
            x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
            assert torch.equal(encode(type_, x), type_.encode(x)), (name, shape)
        for bad, words in ((float("nan"), "non-finite"), (1e30, "too large")):
            with pytest.raises(ValueError, match=words):
                encode(type_, torch.full((2, 64), bad))


@pytest.mark.parametrize("kernel", kernel_names())
@pytest.mark.parametrize("name", type_names())
def test_what_can_t_be_stored_is_refused(kernel: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_KERNEL", kernel)
    layer = PackedLayer("layer 7", kv_type(name), kv_type("f32"))
    good = torch.randn(1, 2, 5, 64)
    layer.update(good, good)
    for bad in (float("inf"), float("nan"), -float("inf")):
        states = good.clone()
        states[0, 1, 3, 9] = bad
        with pytest.raises(UserError, match=f"layer 7, K: non-finite.*{name}"):
            layer.update(states, good)
    if name not in ("f32", "bf16"):
        with pytest.raises(UserError, match="layer 7, K: .*too large"):
            layer.update(good * 1e12, good)
    assert layer.length == 5
    key, value = layer.update(good, good)
    assert torch.isfinite(key + 0).all() and torch.equal(value + 0, torch.cat([good, good], dim=2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_states_in_half_precision_and_not_contiguous(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 40, 3, 64, generator=torch.Generator().manual_seed(0)).to(dtype).transpose(1, 2)
    for kernel in KERNELS:
        assert torch.equal(stored(monkeypatch, kernel, "turbo3", [x]), stored(monkeypatch, "torch", "turbo3", [x]))


def test_heads_wider_than_the_kernels_know_are_stored_and_read_in_torch() -> None:
    x = torch.randn(1, 1, 3, 1056, generator=torch.Generator().manual_seed(0))
    layer = PackedLayer("layer", kv_type("q8_0"), kv_type("f32"))
    key, value = layer.update(x, x)
    assert torch.equal(value + 0, x) and torch.allclose(key + 0, x, atol=0.05)
