"""No tensor of a GGUF file is passed over: it is used, as llama.cpp uses it, or the file is refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import rewrite
from real_models import GEMMA3, SMOLLM2, needs_models

from stratakv import UserError
from stratakv.assets import embedded_model
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_weights
from stratakv.weights import ggml

PACKED = pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
IDS = torch.tensor([[5, 99, 1203, 7, 812, 4000, 33, 21]])
WIDTH, INNER, HALF = 192, 512, 64


@pytest.fixture(autouse=True)
def _packed_is_packed() -> None:
    if ggml.unavailable():
        pytest.skip(f"packed weights need ggml: {ggml.unavailable()}")


def normal(size: int, seed: int) -> Any:
    return (np.random.default_rng(seed).standard_normal(size) * 0.3).astype(np.float32)


def loaded(path: Path, packed: bool) -> Any:
    weights = load_weights(describe_model(path), packed=packed, exact=packed)
    assert (weights.packed is not None) == packed
    assert not [note for note in weights.notes if "left out" in note]
    return weights.model


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(ids, use_cache=False).logits
    return found


@PACKED
def test_rope_frequencies_are_those_of_llama_3_1(packed: bool, tmp_path: Path) -> None:
    config = describe_model("embedded").config
    scaled = type(config).from_dict(config.to_dict())
    theta = config.rope_parameters["rope_theta"]  # type: ignore[attr-defined]
    scaled.rope_parameters = {  # type: ignore[attr-defined]
        "rope_type": "llama3", "rope_theta": theta, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    rotary = type(load_weights(describe_model("embedded")).model.model.rotary_emb)
    frequencies = rotary(scaled).inv_freq
    factors = (rotary(config).inv_freq / frequencies).numpy()
    assert factors.min() == 1 and factors.max() == pytest.approx(8)
    path = rewrite(embedded_model(), tmp_path / "m.gguf", tensors={"rope_freqs.weight": factors})
    model = loaded(path, packed)
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, frequencies)
    assert not torch.allclose(logits(model), logits(loaded(embedded_model(), packed)), atol=1e-2)


@PACKED
@pytest.mark.parametrize("kinds", [("attn_q", "attn_k", "attn_v"), ("attn_q", "attn_k", "attn_v", "attn_output")])
def test_biases_of_a_llama_are_added(kinds: tuple[str, ...], packed: bool, tmp_path: Path) -> None:
    plain = loaded(embedded_model(), packed)
    attention = plain.model.layers[0].self_attn
    of = {"attn_q": attention.q_proj, "attn_k": attention.k_proj, "attn_v": attention.v_proj}
    of["attn_output"] = attention.o_proj
    biases = {f"blk.{layer}.{kind}.bias": normal(of[kind].out_features, layer) for layer in range(12) for kind in kinds}
    model = loaded(rewrite(embedded_model(), tmp_path / "m.gguf", tensors=biases), packed)
    first = model.model.layers[3].self_attn
    torch.testing.assert_close(first.v_proj.bias.data, torch.from_numpy(biases["blk.3.attn_v.bias"]))
    assert (first.o_proj.bias is None) == ("attn_output" not in kinds)
    # llama.cpp's order of q's and k's rows is another than transformers', which moves the bias with them
    heads = attention.config.num_attention_heads
    moved = torch.from_numpy(biases["blk.3.attn_q.bias"]).view(heads, -1, 2).transpose(1, 2).reshape(-1)
    torch.testing.assert_close(first.q_proj.bias.data, moved)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        for layer, ours in zip(plain.model.layers, model.model.layers, strict=True):
            bias = getattr(ours.self_attn, name).bias
            if bias is not None:
                getattr(layer.self_attn, name).register_forward_hook(lambda _m, _a, out, bias=bias: out + bias)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-3, atol=1e-3)


@PACKED
def test_biases_of_the_mlp_are_added(packed: bool, tmp_path: Path) -> None:
    biases = {f"blk.{layer}.ffn_down.bias": normal(WIDTH, layer) for layer in range(12)}
    model = loaded(rewrite(embedded_model(), tmp_path / "m.gguf", tensors=biases), packed)
    assert model.model.layers[0].mlp.up_proj.bias is None
    assert not torch.allclose(logits(model), logits(loaded(embedded_model(), packed)), atol=1e-2)


UNKNOWN = {
    "a norm of the query": {"blk.4.attn_q_norm.weight": normal(128, 0)},
    "experts": {
        f"blk.0.ffn_{kind}_exps.weight": np.zeros((4, 8, 32), dtype=np.float32) for kind in ("gate", "up", "down")
    },
    "frequencies for other heads": {"rope_freqs.weight": np.ones(24, dtype=np.float32)},
    "factors of another kind of RoPE": {"rope_factors_long.weight": np.ones(64, dtype=np.float32)},
}


@PACKED
@pytest.mark.parametrize("case", UNKNOWN)
def test_what_has_no_place_is_refused_by_its_name(case: str, packed: bool, tmp_path: Path) -> None:
    path = rewrite(embedded_model(), tmp_path / "m.gguf", tensors=UNKNOWN[case])
    with pytest.raises(UserError, match=rf"no place for \({', '.join(UNKNOWN[case])}\)") as caught:
        load_weights(describe_model(path), packed=packed)
    assert "\n" not in str(caught.value)


@PACKED
def test_what_no_answer_needs_is_left_out_and_named(packed: bool, tmp_path: Path) -> None:
    more = {"blk.12.nextn.eh_proj.weight": normal(64, 0), "blk.12.attn_norm.weight": normal(WIDTH, 1)}
    path = rewrite(embedded_model(), tmp_path / "m.gguf", tensors=more)
    weights = load_weights(describe_model(path), packed=packed)
    expected = "2 tensors are left out, no answer needs them: blk.12.nextn.eh_proj.weight, blk.12.attn_norm.weight"
    assert weights.notes[-1] == expected


@pytest.mark.real
@needs_models
@pytest.mark.parametrize("path", [SMOLLM2, GEMMA3], ids=["smollm2", "gemma3"])
def test_real_models_use_all_of_theirs(path: Path) -> None:
    weights = load_weights(describe_model(path))
    assert weights.packed is not None and weights.packed.unused == () and len(weights.notes) == 1
