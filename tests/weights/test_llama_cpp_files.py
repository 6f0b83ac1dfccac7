"""Files with llama.cpp's own names and fields, of architectures where transformers looks for others or leaves some out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import rewrite
from llama_cpp_writer import WRITERS, write
from tiny_gguf import matrices, write_tiny_gguf

from stratakv import KVCache, UserError
from stratakv.engine.attention import use
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_weights
from stratakv.weights import ggml
from stratakv.weights.modules import PackedExperts
from stratakv.weights.names import idle

pytestmark = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}")
LARGE = 2048  # values; a router has fewer
IDS = torch.randint(3, 256, (2, 21), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("architecture", WRITERS)
def test_reading_it_says_nothing_about_configs_that_are_not_the_file_s(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = write(tmp_path / "m.gguf", architecture)
    caplog.clear()
    config = describe_model(tmp_path / "m.gguf").config
    assert not caplog.records
    for name in ("layer_types", "rope_parameters", "sliding_window"):
        assert getattr(config, name, None) == getattr(written.config, name, None)


@pytest.mark.parametrize("architecture", WRITERS)
def test_the_model_is_the_one_that_was_written(architecture: str, tmp_path: Path) -> None:
    written = write(tmp_path / "m.gguf", architecture)
    description = describe_model(tmp_path / "m.gguf")
    weights = load_weights(description, exact=True)
    assert weights.packed is not None and weights.packed.unpacked == ()
    assert set(weights.packed.unused) == set(idle(weights.packed.unused, description.config))
    left = [name for name, parameter in matrices(weights.model).items() if parameter.numel() > LARGE]
    assert left == []
    assert weights.nbytes <= 1.05 * (tmp_path / "m.gguf").stat().st_size
    torch.testing.assert_close(logits(weights.model), logits(written), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["MXFP4", "Q8_0", "Q4_0", "F16"])
def test_gpt_oss_s_experts_stay_packed_in_every_type(kind: str, tmp_path: Path) -> None:
    written = write(tmp_path / "m.gguf", "gpt-oss", experts=kind)
    description = describe_model(tmp_path / "m.gguf")
    exact, rounded = (load_weights(description, exact=exact).model for exact in (True, False))
    experts = exact.model.layers[1].mlp.experts
    assert isinstance(experts, PackedExperts) and {tensor.type.name for tensor in experts.tensors} == {kind}
    expected = logits(written)
    torch.testing.assert_close(logits(exact), expected, rtol=1e-3, atol=1e-3)
    assert float((logits(rounded) - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("name", WRITERS)
def test_they_run_fused_and_in_steps(name: str, tmp_path: Path) -> None:
    written = use(write(tmp_path / "m.gguf", name, experts="MXFP4"))
    weights = load_weights(describe_model(tmp_path / "m.gguf"))
    assert weights.packed is not None and weights.packed.fused == 4
    found = []
    for model in (use(weights.model), written):
        cache = KVCache(model.config, "f32")
        with torch.inference_mode():
            model(IDS[:, :18], past_key_values=cache)
            found.append(torch.cat([model(IDS[:, at : at + 1], past_key_values=cache).logits for at in (18, 19, 20)]))
    # Gemma 4 doesn't scale its scores: activations of 8 bits move them more; test_fuse.py compares exact products
    assert float((found[0] - found[1]).norm() / found[1].norm()) < (0.15 if "gemma4" in name else 0.03)


@pytest.mark.parametrize("name", WRITERS)
def test_they_can_be_unpacked_too(name: str, tmp_path: Path) -> None:
    written = write(tmp_path / "m.gguf", name, experts="MXFP4")
    weights = load_weights(describe_model(tmp_path / "m.gguf"), packed=False)
    assert weights.packed is None
    torch.testing.assert_close(logits(weights.model), logits(written), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("lacks", ["blk.2.ffn_up_exps.weight", "blk.2.ffn_down_exps.bias", "blk.1.attn_sinks.weight"])
def test_one_that_isn_t_whole_is_refused(lacks: str, packed: bool, tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf", "gpt-oss")
    path = rewrite(tmp_path / "whole.gguf", tmp_path / "m.gguf", keep=lambda name: name != lacks)
    named = re.escape(lacks) if "exps" in lacks else "model.layers.1.self_attn.sinks"
    with pytest.raises(UserError, match=rf"m\.gguf is not whole: 1 .* missing \({named}\)") as caught:
        load_weights(describe_model(path), packed=packed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
def test_experts_of_other_models_are_whole_too(packed: bool, tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "whole.gguf", "qwen3moe")
    lacks = "blk.1.ffn_up_exps.weight"
    path = rewrite(tmp_path / "whole.gguf", tmp_path / "m.gguf", keep=lambda name: name != lacks)
    with pytest.raises(UserError, match=rf"1 tensors of experts are missing \({lacks}\)"):
        load_weights(describe_model(path), packed=packed)
