"""What a file says of RoPE, heads and experts reaches the config, also where transformers doesn't read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import rewrite
from transformers import AutoConfig

from stratakv.assets import embedded_model
from stratakv.engine.describe import describe_model
from stratakv.engine.gguf_config import completed


class Header:
    """Fields of a file without tensors."""

    tensors = ()

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields.get(name, default)


def found(model_type: str, architecture: str, fields: dict[str, Any], **sizes: Any) -> Any:
    """The completed config; fields: without the architecture before their names. sizes: of the config before."""
    named = {f"{architecture}.{name}": value for name, value in fields.items()}
    header: Any = Header({"general.architecture": architecture, **named})
    return completed(AutoConfig.for_model(model_type, **sizes), header)


YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 1024,
}


def test_scaling_of_a_file_is_the_model_s(tmp_path: Path) -> None:
    plain: Any = describe_model("embedded").config
    path = rewrite(embedded_model(), tmp_path / "m.gguf", fields=YARN)
    rope = describe_model(path).config.rope_parameters  # type: ignore[attr-defined]
    assert rope["rope_type"] == "yarn" and rope["factor"] == 4.0 and rope["original_max_position_embeddings"] == 1024
    assert rope["rope_theta"] == plain.rope_parameters["rope_theta"] and plain.rope_parameters["rope_type"] == "default"
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    rope = describe_model(rewrite(embedded_model(), tmp_path / "l.gguf", fields=linear)).config.rope_parameters  # type: ignore[attr-defined]
    assert rope["rope_type"] == "linear" and rope["factor"] == 2.0


def test_gemma_3_scales_full_attention_alone() -> None:
    fields = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base": 1e6}
    rope = found("gemma3_text", "gemma3", fields).rope_parameters
    assert rope["full_attention"]["rope_type"] == "linear" and rope["full_attention"]["factor"] == 8.0
    assert rope["sliding_attention"]["rope_type"] == "default" and rope["sliding_attention"]["rope_theta"] == 1e4


@pytest.mark.parametrize("architecture", ["starcoder2", "stablelm"])
def test_the_base_is_the_file_s(architecture: str) -> None:
    assert found(architecture, architecture, {"rope.freq_base": 999_999.4}).rope_parameters["rope_theta"] == 999_999.4


def test_sizes_of_experts_and_heads() -> None:
    assert found("qwen3_moe", "qwen3moe", {"expert_feed_forward_length": 1536}).moe_intermediate_size == 1536
    shared = {"expert_feed_forward_length": 1408, "expert_shared_feed_forward_length": 5632}
    config = found("qwen2_moe", "qwen2moe", shared)
    assert (config.moe_intermediate_size, config.shared_expert_intermediate_size) == (1408, 5632)
    assert found("qwen3", "qwen3", {"attention.key_length": 64}).head_dim == 64


@pytest.mark.parametrize(
    ("model_type", "sizes", "scale"),
    [
        ("gemma2", {"num_hidden_layers": 46, "hidden_size": 4608, "num_attention_heads": 32, "head_dim": 128}, 144),
        ("gemma2", {"num_hidden_layers": 42, "hidden_size": 3584, "num_attention_heads": 16, "head_dim": 256}, 256),
        (
            "gemma3_text",
            {"num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32, "head_dim": 128},
            168,
        ),
        ("gemma3_text", {"num_hidden_layers": 34, "hidden_size": 2560, "num_attention_heads": 8, "head_dim": 256}, 256),
    ],
)
def test_gemma_s_scale_of_scores(model_type: str, sizes: dict[str, int], scale: int) -> None:
    assert found(model_type, model_type.removesuffix("_text"), {}, **sizes).query_pre_attn_scalar == scale


def test_nothing_said_changes_nothing() -> None:
    config = AutoConfig.for_model("qwen3")
    assert completed(config, Header({"general.architecture": "qwen3", "qwen3.rope.scaling.type": "none"})) is config  # type: ignore[arg-type]
