"""What a GGUF file says about its model and transformers doesn't read into the config."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from stratakv.weights.gguf_header import GGUFHeader


def completed(config: PreTrainedConfig, header: GGUFHeader) -> PreTrainedConfig:
    """The config with what transformers leaves out of it."""
    architecture = str(header.get("general.architecture"))
    changes = {**_biases(config, header), **_sizes(config, header, architecture), **_rope(config, header, architecture)}
    return type(config).from_dict({**config.to_dict(), **changes}) if changes else config


def _biases(config: PreTrainedConfig, header: GGUFHeader) -> dict[str, Any]:
    """Llama-like models with biases: the file has them, no field says so."""
    there = {tensor.name for tensor in header.tensors}
    found = {}
    for name, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_down.bias")):
        if getattr(config, name, None) is False and tensor in there:
            found[name] = True
    return found


# llama.cpp's fields, and the names of models that transformers doesn't read them for
_SIZES = {
    "attention.key_length": ("head_dim", ("qwen2", "qwen3", "gpt_oss")),
    "attention.sliding_window": ("sliding_window", ("gpt_oss",)),
    "expert_feed_forward_length": ("moe_intermediate_size", ("qwen2_moe", "qwen3_moe")),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size", ("qwen2_moe",)),
}


def _sizes(config: PreTrainedConfig, header: GGUFHeader, architecture: str) -> dict[str, Any]:
    found = {}
    for field, (name, models) in _SIZES.items():
        value = header.get(f"{architecture}.{field}")
        if config.model_type in models and isinstance(value, int) and value != getattr(config, name, None):
            found[name] = value
    return found


def _rope(config: PreTrainedConfig, header: GGUFHeader, architecture: str) -> dict[str, Any]:
    """Base and scaling of RoPE; of models with several kinds of layers, scaling is full attention's."""
    before = getattr(config, "rope_parameters", None)
    if not isinstance(before, dict) or config.model_type == "gemma4_text":
        return {}
    by_kind = "full_attention" in before
    rope = dict(before["full_attention"] if by_kind else before)
    base = header.get(f"{architecture}.rope.freq_base")
    if isinstance(base, float) and not by_kind:
        rope["rope_theta"] = base
    scaling = _scaling(config, header, f"{architecture}.rope.scaling")
    rope.update(scaling)
    rope = {name: value for name, value in rope.items() if value is not None}
    after = {**before, "full_attention": rope} if by_kind else rope
    return {"rope_parameters": after} if after != before else {}


def _scaling(config: PreTrainedConfig, header: GGUFHeader, prefix: str) -> dict[str, Any]:
    kind, factor = header.get(f"{prefix}.type"), header.get(f"{prefix}.factor")
    if kind not in ("linear", "yarn") or not isinstance(factor, float) or factor == 0.0:
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": header.get(f"{prefix}.original_context_length"),
        "beta_fast": header.get(f"{prefix}.yarn_beta_fast", 32.0),
        "beta_slow": header.get(f"{prefix}.yarn_beta_slow", 1.0),
        # the model was trained without: its own config says so
        "truncate": False if config.model_type == "gpt_oss" else None,
    }
