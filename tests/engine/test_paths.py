"""What `show` says about kernels is what runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from stratakv import KVCache, UserError, resolve, use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.cache.handle import PackedStates
from stratakv.engine.paths import attention_line, attention_paths, device_lines
from stratakv.kernels import choice


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt_oss", "qwen3_next", "falcon", "deepseek_v3", "gpt2"])
def test_decoded_layers_are_those_whose_handles_are_decoded(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = use(tiny_model(model_type))
    geometry = geometry_of(model.config)
    decoded: set[str] = set()
    real = PackedStates.decoded

    def spy(handle: PackedStates) -> torch.Tensor:
        decoded.add(str(id(handle.placed.pool)))
        return real(handle)

    monkeypatch.setattr(PackedStates, "decoded", spy)
    cache = KVCache(model.config, "f32")
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7, 8]]), past_key_values=cache)
        model(torch.tensor([[9]]), past_key_values=cache)
    really = [layer.layer for layer in geometry.kv_layers if str(id(cache.layers[layer.layer].pool)) in decoded]
    paths = attention_paths(model.config, resolve("f32", geometry))
    assert paths["decoded_layers"] == really and paths["torch_layers"] == []
    line = attention_line(paths, len(geometry.kv_layers))
    assert ("decoded tensors" in line) is bool(really)
    assert (paths["kernel"] in line) is (len(really) < len(geometry.kv_layers))


def test_what_this_machines_gpu_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("stratakv.kernels.triton.kernel._without_launcher", lambda: None)
    model = tiny_model("llama")
    geometry = geometry_of(model.config)
    numbers = [layer.layer for layer in geometry.kv_layers]

    def said(types: str) -> tuple[dict[str, Any], str]:
        """Triton's part, and its line."""
        paths = attention_paths(model.config, resolve(types, geometry))
        here = [each.name for each in choice.DEVICE_KERNELS if each.here()]
        assert [each["kernel"] for each in paths["devices"]] == here, "every kernel that there is to choose"
        at = here.index("triton")
        return paths["devices"][at], device_lines(paths, len(numbers))[at]

    found, line = said("f32")
    assert line.startswith("on the NVIDIA H100 pages are read with kernel triton")
    assert "not measured on a GPU" in line and found["torch_layers"] == []
    found, line = said("tcq4")
    assert found["torch_layers"] == numbers and "no Triton kernel for tcq4 in blocks of 8" in line
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "in plain torch in all KV layers (the Triton kernels know the compute capabilities 8.x" in said("f32")[1]


def test_without_a_gpu_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was wherever Triton can be imported, which a CPU's transformers may bring along."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    geometry = geometry_of(tiny_model("llama").config)
    paths = attention_paths(tiny_model("llama").config, resolve("tcq4", geometry))
    assert paths["devices"] == [] and device_lines(paths, len(geometry.kv_layers)) == []


def test_the_precise_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not choice.precise()
    monkeypatch.setenv("STRATAKV_PRECISE", "1")
    assert choice.precise()
    monkeypatch.setenv("STRATAKV_PRECISE", "yes")
    with pytest.raises(UserError, match="STRATAKV_PRECISE=yes: allowed are 0 and 1"):
        choice.precise()


@pytest.mark.parametrize("model_type", ["falcon", "deepseek_v3"])
def test_models_that_get_decoded_tensors_have_no_spans_and_it_is_said(model_type: str) -> None:
    geometry = geometry_of(tiny_model(model_type).config)
    with pytest.raises(
        UserError,
        match=r"no layer can have the spans .* none, its attention gets decoded tensors instead .*: leave them out",
    ):
        resolve("q4_0; recent: 2 pages q8_0", geometry)
    with pytest.raises(UserError, match="attention gets decoded tensors instead of pages, so it has no spans: leave"):
        resolve("all: q4_0, recent 1 page q8_0", geometry)


def test_head_dims_that_no_kernel_has_are_read_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """`show` said that such layers' attention gets decoded tensors: it gets pages, which torch decodes."""
    model = use(tiny_model("llama", head_dim=1032, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1))
    geometry = geometry_of(model.config)
    monkeypatch.setattr(PackedStates, "decoded", lambda *_: pytest.fail("decoded"))
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7, 8]]), past_key_values=KVCache(model.config, "q8_0"))
    paths = attention_paths(model.config, resolve("q8_0", geometry))
    assert paths["decoded_layers"] == [] and paths["torch_layers"] == [0, 1]
    assert "plain torch in all KV layers (no compiled kernel for a head_dim above 1024)" in attention_line(paths, 2)
