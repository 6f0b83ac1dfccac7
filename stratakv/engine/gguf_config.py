"""What a GGUF file says about its model and transformers doesn't read into the config."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from stratakv.weights.gguf_header import GGUFHeader, GGUFTensor
from stratakv.weights.names import ROPE_FREQUENCIES, ROPE_LONG, ROPE_SHORT


def completed(config: PreTrainedConfig, header: GGUFHeader) -> PreTrainedConfig:
    """The config with what transformers leaves out of it."""
    architecture = str(header.get("general.architecture"))
    if config.model_type == "gemma4_text":
        return _gemma4(config, header)
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


def _sizes(config: Any, header: GGUFHeader, architecture: str) -> dict[str, Any]:
    found = {}
    for field, (name, models) in _SIZES.items():
        value = header.get(f"{architecture}.{field}")
        if config.model_type in models and isinstance(value, int) and value != getattr(config, name, None):
            found[name] = value
    # no field has it: llama.cpp knows Gemma 2's and 3's 27B by their layers, all others have the head's size
    if (config.model_type, getattr(config, "num_hidden_layers", 0)) in (("gemma2", 46), ("gemma3_text", 62)):
        found["query_pre_attn_scalar"] = config.hidden_size // config.num_attention_heads
    elif config.model_type in ("gemma2", "gemma3_text") and config.query_pre_attn_scalar != config.head_dim:
        found["query_pre_attn_scalar"] = config.head_dim
    return found


def _rope(config: PreTrainedConfig, header: GGUFHeader, architecture: str) -> dict[str, Any]:
    """Base and scaling of RoPE; of models with several kinds of layers, scaling is full attention's."""
    before = getattr(config, "rope_parameters", None)
    if not isinstance(before, dict):
        return {}
    by_kind = "full_attention" in before
    rope = dict(before["full_attention"] if by_kind else before)
    base = header.get(f"{architecture}.rope.freq_base")
    if isinstance(base, float) and not by_kind:
        rope["rope_theta"] = base
    turned, head = header.get(f"{architecture}.rope.dimension_count"), _head_dim(config)
    if config.model_type in _PARTLY_TURNED and isinstance(turned, int) and 0 < turned <= head:
        rope["partial_rotary_factor"] = turned / head
    rope.update(_scaling(config, header, f"{architecture}.rope.scaling"))
    rope = {name: value for name, value in rope.items() if value is not None}
    after = {**before, "full_attention": rope} if by_kind else rope
    if after == before:
        return {}
    original = rope.get("original_max_position_embeddings")
    has = original is not None and hasattr(config, "original_max_position_embeddings")  # Phi-3 reads both
    return {"rope_parameters": after, **({"original_max_position_embeddings": original} if has else {})}


# Models whose RoPE may turn a part of a head only
_PARTLY_TURNED = ("phi3", "stablelm", "nemotron")


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _scaling(config: PreTrainedConfig, header: GGUFHeader, prefix: str) -> dict[str, Any]:
    factors = {tensor.name: tensor for tensor in header.tensors if tensor.name in (ROPE_LONG, ROPE_SHORT)}
    if len(factors) == 2:
        return {
            "rope_type": "longrope",
            "short_factor": factors[ROPE_SHORT].data.tolist(),
            "long_factor": factors[ROPE_LONG].data.tolist(),
            "original_max_position_embeddings": header.get(f"{prefix}.original_context_length"),
            "attention_factor": header.get(f"{prefix}.attn_factor"),
        }
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


def _gemma4(config: Any, header: GGUFHeader) -> PreTrainedConfig:
    """Gemma 4: transformers reads a few of its sizes and takes one model's for the others."""

    def get(name: str, default: Any = None) -> Any:
        return header.get(f"gemma4.{name}", default)

    tensors = {tensor.name: tensor for tensor in header.tensors}
    layers = range(config.num_hidden_layers)
    slides = get("attention.sliding_window_pattern")
    kinds = ["sliding_attention" if each else "full_attention" for each in slides] if slides else config.layer_types
    full = [layer for layer in layers if kinds[layer] == "full_attention"]
    kv_heads, inner = (_each(get(name), len(layers)) for name in ("attention.head_count_kv", "feed_forward_length"))
    sliding_heads = [kv_heads[layer] for layer in layers if layer not in full] or kv_heads
    wide = get("attention.key_length", config.to_dict()["head_dim"])
    experts, per_layer = get("expert_count", 0), get("embedding_length_per_layer_input", 0)
    changes = {
        "layer_types": kinds,
        "num_key_value_heads": sliding_heads[0],
        "head_dim": get("attention.key_length_swa", wide),
        "per_layer_config": {layer: {"head_dim": wide, "num_key_value_heads": kv_heads[layer]} for layer in full},
        "attention_k_eq_v": bool(full) and f"blk.{full[0]}.attn_v.weight" not in tensors,
        "num_kv_shared_layers": get("attention.shared_kv_layers", 0),
        "intermediate_size": min(inner),
        "use_double_wide_mlp": max(inner) > min(inner),
        "hidden_size_per_layer_input": per_layer,
        "vocab_size_per_layer_input": tensors["per_layer_token_embd.weight"].shape[1]
        if per_layer
        else config.vocab_size,
        "final_logit_softcapping": get("final_logit_softcapping"),
        "enable_moe_block": experts > 0,
        "num_experts": experts or None,
        "top_k_experts": get("expert_used_count"),
        "moe_intermediate_size": get("expert_feed_forward_length"),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": get("rope.freq_base_swa", 10_000.0)},
            "full_attention": {
                "rope_type": "proportional",
                "rope_theta": get("rope.freq_base", 1_000_000.0),
                "partial_rotary_factor": _turned(tensors.get(ROPE_FREQUENCIES)),
            },
        },
    }
    made: PreTrainedConfig = type(config).from_dict({**config.to_dict(), **changes})
    return made


def _each(value: int | list[int], count: int) -> list[int]:
    """One a layer."""
    return value if isinstance(value, list) else [value] * count


def _turned(factors: GGUFTensor | None) -> float:
    """The share of a head that RoPE turns: factors of the others are endless."""
    return 1.0 if factors is None else float((factors.data < 1e20).mean())
