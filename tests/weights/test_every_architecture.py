"""Every architecture that transformers reads from GGUF: what could stay in its blocks does, and results are the same."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_qwen35
import torch
from gguf import GGUFWriter
from gguf_files import rewrite
from llama_cpp_writer import WRITERS
from packed_models import lossless
from tiny_gguf import ARCHITECTURES, matrices, write_tiny_gguf
from transformers import AutoModelForCausalLM

from stratakv.assets import embedded_model
from stratakv.engine.describe import describe_model
from stratakv.engine.load import load_weights
from stratakv.errors import UserError
from stratakv.weights import ggml
from stratakv.weights.build import build_packed
from stratakv.weights.modules import PackedLinear

pytestmark = pytest.mark.skipif(ggml.unavailable() is not None, reason=f"ggml's kernels: {ggml.unavailable()}")
# 1 MiB of a real model's matrices, scaled to these
LARGE = 4096
# small by their nature, or read by the layer's own code: convolutions of a few columns, mamba's states, routers
_OWN = ("conv", "A_log", "x_proj", "dt_proj", "mlp.gate.weight", "shared_expert_gate", "wpe", "position_embed")


def same_as_unpacked(path: Path, config: Any) -> None:
    """Nothing large is unpacked, and the model is the one that transformers unpacks."""
    model, weights = build_packed(path, config, torch.float32, lossless, exact=True)
    assert weights.unpacked == () and weights.unused == ()
    assert weights.packed_bytes + weights.plain_bytes <= 1.05 * path.stat().st_size
    left = {name: p.numel() for name, p in matrices(model).items() if p.numel() * 34 // 32 >= LARGE}
    assert not [name for name in left if not any(word in name for word in _OWN)], left
    plain: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32
    )
    ids = torch.randint(3, 256, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = model(ids, use_cache=False).logits, plain.eval()(ids, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_large_matrix_stays_packed_and_says_the_same(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "tiny.gguf"
    config = write_tiny_gguf(path, architecture)
    same_as_unpacked(path, config)


@pytest.mark.parametrize("architecture", ["qwen35", "qwen35moe"])
def test_qwen_3_5_stays_packed_with_its_columns_in_another_order(tmp_path: Path, architecture: str) -> None:
    tiny_qwen35.write(tmp_path / "tiny.gguf", architecture)
    description = describe_model(tmp_path / "tiny.gguf")
    same_as_unpacked(description.path, description.config)
    weights = load_weights(description).model
    out = weights.model.layers[0].linear_attn.out_proj
    assert isinstance(out, PackedLinear) and out.order is not None
    x = torch.randn(3, out.in_features)
    torch.testing.assert_close(out(x), x @ out.weight.t(), rtol=0.05, atol=0.05)


def test_every_architecture_of_transformers_is_here() -> None:
    """Those that aren't: encoder-decoders, which store no K and V as we do, and Deci, of which transformers has no model."""
    loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    conversions: Any = import_module("transformers.integrations.gguf.gguf_conversion_mapping")
    theirs = {*loader.GGUF_SUPPORTED_ARCHITECTURES, *conversions.GGUF_ARCHS} - {"general", "tokenizer"}
    ours = {name for name, *_ in WRITERS.values()} | {type_ for _, type_, *_ in WRITERS.values()}
    ours |= {*ARCHITECTURES, *(type_ for type_, _ in ARCHITECTURES.values()), "qwen35", "qwen35moe", "mistral"}
    assert theirs - ours == {"t5", "umt5", "deci"}


def test_a_llama_named_mistral_is_read(tmp_path: Path) -> None:
    """The one name by which transformers takes a Llama for a Mistral, whose tensors it then doesn't find."""
    path = rewrite(embedded_model(), tmp_path / "m.gguf", fields={"general.name": "mistral"})
    weights = load_weights(describe_model(path))
    assert weights.packed is not None and weights.model.config.model_type == "mistral"
    ids = torch.tensor([[5, 99, 1203, 7]])
    with torch.inference_mode():
        ours, theirs = (model(ids).logits for model in (weights.model, load_weights(describe_model("embedded")).model))
    torch.testing.assert_close(ours, theirs)


def test_deci_is_refused_in_one_line(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "deci")
    for name in ("context_length", "embedding_length", "block_count", "attention.head_count"):
        writer.add_uint32(f"deci.{name}", 1)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="transformers can't read a GGUF of architecture 'deci'") as caught:
        describe_model(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
