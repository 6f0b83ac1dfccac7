"""Small random files as llama.cpp's converter writes them: its names, fields and order of values, written down from its files.

A tensor is a view of the transformers model's weight. It is quantized on its way into the file and read back into the model, so
that the model is what a loader has to make of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
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
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
Views = dict[str, torch.Tensor]
Fields = dict[str, Any]


def write(path: Path, architecture: str, kind: str = "Q8_0", experts: str = "Q8_0") -> Any:
    """Write the file; returns the model. kind, experts: ggml types of matrices, and of experts' matrices."""
    model_type, options, names, fields_of = WRITERS[architecture]
    config = AutoConfig.for_model(model_type, **{**_BASE, **options})
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    writer = GGUFWriter(path, architecture)
    fields = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        **fields_of(config),
    }
    for name, value in fields.items():
        _add(writer, f"{architecture}.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"<{number}>" for number in range(_VOCABULARY)])
    writer.add_token_types([int(TokenType.NORMAL)] * _VOCABULARY)
    writer.add_token_merges([])
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


def _extra(architecture: str, config: Any) -> Views:
    return {}


WRITERS: dict[str, tuple[str, dict[str, Any], Callable[[Any], Views], Callable[[Any], Fields]]] = {
    "gpt-oss": (
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
}
