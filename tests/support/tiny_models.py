"""Tiny random models of many architectures, for tests: a config each, built by transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stratakv.engine.attention import use
from stratakv.engine.cache.geometry import geometry_of
from stratakv.engine.load import LoadedModel

_BASE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_HYBRID = ["linear_attention", "full_attention"] * 2

# model_type -> what differs from the base
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen3": {},
    "qwen3_moe": _MOE,
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "gemma4_text": {
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 97,
    },
    "phi3": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 6},
    "smollm3": {},
    "deepseek_v3": _MLA,
    "qwen3_next": {
        **_MOE,
        "shared_expert_intermediate_size": 16,
        "layer_types": _HYBRID,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "jamba": {
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "granitemoehybrid": {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 16,
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "position_embedding_type": "rope",
    },
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False, "head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512, "num_key_value_heads": None},
    "stablelm": {},
    "cohere": {},
    "cohere2": {"sliding_window": 6, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "granite": {},
    "glm4": {},
    "llama4_text": {
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 32,
        "attention_chunk_size": 6,
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
        "moe_layers": [1],
    },
    "starcoder2": {"sliding_window": 6},
    "gpt_neox": {"num_key_value_heads": None},
    "phi": {},
    "exaone4": {"sliding_window": 6, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
}


def tiny_model(model_type: str, seed: int = 0, **more: Any) -> PreTrainedModel:
    """A random float32 model; the same seed gives the same weights. more: of its config."""
    options = {**_BASE, **ARCHITECTURES[model_type], **more}
    arguments = {name: value for name, value in options.items() if value is not None}
    config = AutoConfig.for_model(model_type, **arguments)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # the usual initialisation is too small to tell layers apart
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    return model


class Letters:
    """A tokenizer without words."""

    eos_token_id = None

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(65 + token % 26) for token in tokens)


def loaded_tiny(model_type: str, **more: Any) -> LoadedModel:
    """A tiny model as a server takes it, without an end-of-text token. more: of its config."""
    model = use(tiny_model(model_type, **more))
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    return LoadedModel(model, Letters(), model_type, model_type, geometry_of(model.config, model_type), 0)
