"""Small random files as llama.cpp's converter writes them: its names, fields and order of values, written down from its files.

A tensor is a view of the transformers model's weight. It is quantized on its way into the file and read back into the model, so
that the model is what a loader has to make of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import AutoConfig, AutoModelForCausalLM

_VOCABULARY = 256
_BASE: dict[str, Any] = {
    "vocab_size": _VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_WHOLE = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
Views = dict[str, torch.Tensor]
Fields = dict[str, Any]


def write(path: Path, name: str, kind: str = "Q8_0", experts: str = "Q8_0", **more: Any) -> Any:
    """Write the file; returns the model. name: of WRITERS. kind, experts: ggml types of matrices, and of experts' matrices.

    more: of the model's config, that no field says.
    """
    architecture, model_type, options, names, fields_of = WRITERS[name]
    config = AutoConfig.for_model(model_type, **{**_BASE, **options, **more})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    writer = GGUFWriter(path, architecture)
    fields = {
        "vocab_size": _VOCABULARY,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.per_layer_config[0].num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        **fields_of(config),
    }
    for name, value in fields.items():
        _add(writer, f"{architecture}.{name}", value)
    writer.add_tokenizer_model("none")
    writer.add_token_list([f"<{number}>" for number in range(_VOCABULARY)])
    with torch.no_grad():
        for name, view in _views(model, names, tied=config.tie_word_embeddings).items():
            view.copy_(torch.randn(view.shape) * 0.1 + ("norm" in name or "scale" in name))
            _tensor(writer, name, view, experts if "_exps." in name else kind)
        for name, values in _extra(architecture, config).items():
            writer.add_tensor(name, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _tensor(writer: GGUFWriter, name: str, view: torch.Tensor, kind: str) -> None:
    small = view.dim() < 2 or "gate_inp" in name or name.endswith(".bias")
    type_ = GGMLQuantizationType["F32" if small else kind]
    packed = quantize(view.contiguous().numpy(), type_)
    writer.add_tensor(name, packed, raw_dtype=type_)
    view.copy_(torch.from_numpy(dequantize(packed, type_).copy()).view(view.shape))


def _views(model: Any, names: Callable[[Any], Views], *, tied: bool) -> Views:
    state = dict(model.named_parameters()) | dict(model.named_buffers())
    found: Views = {}

    def take(target: str, source: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{source}.{leaf}" in state:
                found[f"{target}.{leaf}"] = state[f"{source}.{leaf}"]

    for target, source in _WHOLE.items():
        if not (tied and target == "output"):
            take(target, source)
    for number, layer in enumerate(model.model.layers):
        for target, source in _LAYER.items():
            take(f"blk.{number}.{target}", f"model.layers.{number}.{source}")
        found |= {f"blk.{number}.{name}": view for name, view in names(layer).items()}
    return found


def _gpt_oss(layer: Any) -> Views:
    experts, router = layer.mlp.experts, layer.mlp.router
    both, down = experts.gate_up_proj.transpose(1, 2), experts.down_proj.transpose(1, 2)
    return {
        "post_attention_norm.weight": layer.post_attention_layernorm.weight,
        "attn_sinks.weight": layer.self_attn.sinks,
        "ffn_gate_inp.weight": router.weight,
        "ffn_gate_inp.bias": router.bias,
        "ffn_gate_exps.weight": both[:, ::2],
        "ffn_up_exps.weight": both[:, 1::2],
        "ffn_down_exps.weight": down,
        "ffn_gate_exps.bias": experts.gate_up_proj_bias[:, ::2],
        "ffn_up_exps.bias": experts.gate_up_proj_bias[:, 1::2],
        "ffn_down_exps.bias": experts.down_proj_bias,
    }


def _gpt_oss_fields(config: Any) -> Fields:
    rope = config.rope_parameters
    return {
        "rope.freq_base": float(rope["rope_theta"]),
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.sliding_window": config.sliding_window,
        "expert_count": config.num_local_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_feed_forward_length": config.intermediate_size,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope["factor"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
    }


def _gemma4(layer: Any) -> Views:
    found = {
        "post_attention_norm.weight": layer.post_attention_layernorm.weight,
        "ffn_norm.weight": layer.pre_feedforward_layernorm.weight,
        "post_ffw_norm.weight": layer.post_feedforward_layernorm.weight,
        "layer_output_scale.weight": layer.layer_scalar,
    }
    if layer.hidden_size_per_layer_input:
        found |= {
            "inp_gate.weight": layer.per_layer_input_gate.weight,
            "proj.weight": layer.per_layer_projection.weight,
            "post_norm.weight": layer.post_per_layer_input_norm.weight,
        }
    if layer.enable_moe_block:
        found |= {
            "ffn_gate_inp.weight": layer.router.proj.weight,
            "ffn_gate_inp.scale": layer.router.scale,
            "ffn_gate_up_exps.weight": layer.experts.gate_up_proj,
            "ffn_down_exps.weight": layer.experts.down_proj,
            "ffn_down_exps.scale": layer.router.per_expert_scale,
            "post_ffw_norm_1.weight": layer.post_feedforward_layernorm_1.weight,
            "post_ffw_norm_2.weight": layer.post_feedforward_layernorm_2.weight,
            "pre_ffw_norm_2.weight": layer.pre_feedforward_layernorm_2.weight,
        }
    return found


def _gemma4_fields(config: Any) -> Fields:
    kinds, layers = config.layer_types, config.per_layer_config
    slides = layers[kinds.index("sliding_attention")]
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    wide = config.use_double_wide_mlp
    fields: Fields = {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in kinds],
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "attention.key_length": layers[kinds.index("full_attention")].head_dim,
        "attention.value_length": layers[kinds.index("full_attention")].head_dim,
        "attention.key_length_swa": slides.head_dim,
        "attention.value_length_swa": slides.head_dim,
        "attention.head_count_kv": [layers[number].num_key_value_heads for number in range(len(kinds))],
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "final_logit_softcapping": float(config.final_logit_softcapping),
        "rope.freq_base": float(config.rope_parameters["full_attention"]["rope_theta"]),
        "rope.freq_base_swa": float(config.rope_parameters["sliding_attention"]["rope_theta"]),
        "rope.dimension_count": layers[kinds.index("full_attention")].head_dim,
        "rope.dimension_count_swa": slides.head_dim,
    }
    if wide:
        inner = config.intermediate_size
        fields["feed_forward_length"] = [inner * (1 + (n >= first_shared)) for n in range(len(kinds))]
    if config.enable_moe_block:
        fields["expert_count"], fields["expert_used_count"] = config.num_experts, config.top_k_experts
        fields["expert_feed_forward_length"] = config.moe_intermediate_size
    return fields


def _phi3(layer: Any) -> Views:
    return {
        "attn_qkv.weight": layer.self_attn.qkv_proj.weight,
        "ffn_up.weight": layer.mlp.gate_up_proj.weight,
        "ffn_norm.weight": layer.post_attention_layernorm.weight,
    }


def _phi3_fields(config: Any) -> Fields:
    rope, head = config.rope_parameters, config.hidden_size // config.num_attention_heads
    return {
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(head * rope["partial_rotary_factor"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "rope.scaling.attn_factor": float(rope["attention_factor"]),
        "attention.sliding_window": 0,
    }


def _extra(architecture: str, config: Any) -> Views:
    """What no weight of the model is: frequencies, and the K and V of Gemma 4's layers that share others'."""
    if architecture == "phi3":
        rope = config.rope_parameters
        return {f"rope_factors_{name}.weight": torch.tensor(rope[f"{name}_factor"]) for name in ("long", "short")}
    if architecture != "gemma4":
        return {}
    wide = config.per_layer_config[config.layer_types.index("full_attention")].head_dim // 2
    turned = int(wide * config.rope_parameters["full_attention"]["partial_rotary_factor"])
    found = {"rope_freqs.weight": torch.tensor([1.0] * turned + [1e30] * (wide - turned))}
    for layer in range(config.num_hidden_layers - config.num_kv_shared_layers, config.num_hidden_layers):
        sizes = config.per_layer_config[layer]
        rows = sizes.num_key_value_heads * sizes.head_dim
        found |= {f"blk.{layer}.attn_{name}.weight": torch.randn(rows, config.hidden_size) for name in "kv"}
        found[f"blk.{layer}.attn_k_norm.weight"] = torch.ones(sizes.head_dim)
    return found


_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
    "head_dim": 16,
    "global_head_dim": 32,
    "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0,
}

# by name: architecture, transformers' model type, what differs from the base, a layer's other tensors, fields
WRITERS: dict[str, tuple[str, str, dict[str, Any], Callable[[Any], Views], Callable[[Any], Fields]]] = {
    "gpt-oss": (
        "gpt-oss",
        "gpt_oss",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "intermediate_size": 64,  # a square expert, as in the real models
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 2048,
            },
        },
        _gpt_oss,
        _gpt_oss_fields,
    ),
    "gemma4": (
        "gemma4",
        "gemma4_text",
        {
            **_GEMMA4,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 32,
            "vocab_size_per_layer_input": _VOCABULARY,
        },
        _gemma4,
        _gemma4_fields,
    ),
    "gemma4 with experts": (
        "gemma4",
        "gemma4_text",
        {
            **_GEMMA4,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
        _gemma4,
        _gemma4_fields,
    ),
    "phi3 with LongRoPE": (
        "phi3",
        "phi3",
        {
            "num_hidden_layers": 4,
            "original_max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "original_max_position_embeddings": 4096,
                "attention_factor": 1.0625,
                "short_factor": [1.0, 1.25, 1.5, 1.75, 2.0, 2.5],
                "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 24.0],
            },
        },
        _phi3,
        _phi3_fields,
    ),
}
