"""Small random GGUF files of every architecture that transformers reads: its own name maps, turned around."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

_SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# GGUF architecture -> transformers' model type, and what differs
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2moe": ("qwen2_moe", {**_MOE, "shared_expert_intermediate_size": 64}),
    "qwen3": ("qwen3", {}),
    "qwen3moe": ("qwen3_moe", _MOE),
    "phi3": ("phi3", {}),
    "falcon": ("falcon", {"alibi": False, "head_dim": None, "num_key_value_heads": None, "intermediate_size": None}),
    "bloom": ("bloom", {"n_head": 4, "n_layer": 2, "head_dim": None, "intermediate_size": None}),
    "stablelm": ("stablelm", {}),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "head_dim": None}),
    "starcoder2": ("starcoder2", {}),
    "mamba": ("mamba", {"state_size": 8, "expand": 2, "time_step_rank": 32, "use_cache": False}),
    "nemotron": ("nemotron", {}),
    "gemma2": ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"sliding_window": 16}),
    "minimax-m2": ("minimax_m2", {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 8}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
}


def write_tiny_gguf(path: Path, architecture: str, kind: str = "Q8_0", **sizes: Any) -> Any:
    """A file whose matrices are of that type; returns the model's config. sizes: other ones than the tiny."""
    model_type, options = ARCHITECTURES[architecture]
    arguments = {name: value for name, value in {**_SIZES, **options, **sizes}.items() if value is not None}
    config = AutoConfig.for_model(model_type, **arguments)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    processor = loader.TENSOR_PROCESSORS.get(architecture, loader.TensorProcessor)(config=config.to_dict())
    names: dict[str, str] = loader.get_gguf_hf_weights_map(model, processor)
    writer = GGUFWriter(path, architecture)
    writer.add_tokenizer_model("no_vocab")  # llama.cpp asks for one
    _write_sizes(writer, architecture, model_type, config)
    transposed = {f"{n}.weight" for n, module in model.named_modules() if isinstance(module, Conv1D)}
    state = model.state_dict()
    tied = {name for name in ("lm_head.weight",) if config.get_text_config().tie_word_embeddings}
    random = np.random.default_rng(0)
    for gguf_name, name in names.items():
        if name in tied or name not in state or (gguf_name.endswith(".bias") and "exps" in gguf_name):
            continue
        shape = list(state[name].shape)
        if name in transposed:
            shape.reverse()
        if "ffn_gate_exps" in gguf_name or "ffn_up_exps" in gguf_name:
            shape[1] //= 2
        if not gguf_name.endswith((".weight", ".bias")) and "exps" in gguf_name:
            gguf_name += ".weight"
        if (len(shape) == 3 or "shexp" in gguf_name) and 1 in shape:  # convolutions, the gate of shared experts
            shape.remove(1)
        values = (random.standard_normal(shape) * 0.1).astype(np.float32)
        if "norm" in gguf_name or gguf_name.endswith("ssm_a"):
            values = 1 + np.abs(values)
        if gguf_name.endswith("ssm_a"):
            values = -values
        type_ = GGMLQuantizationType[kind]
        if len(shape) > 1 and shape[-1] % 32 == 0 and "gate_inp" not in gguf_name:  # llama.cpp leaves routers alone
            writer.add_tensor(gguf_name, quantize(values, type_), raw_dtype=type_)
        else:
            writer.add_tensor(gguf_name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return config


def _write_sizes(writer: GGUFWriter, architecture: str, model_type: str, config: Any) -> None:
    mapping: dict[str, Any] = import_module("transformers.integrations.ggml").GGUF_CONFIG_MAPPING
    known = mapping.get(model_type.removesuffix("_text"), {})
    for key, name in known.items():
        value = getattr(config, name, None) if name else None
        if isinstance(value, bool) or value is None:
            continue
        if architecture == "lfm2" and key == "attention.head_count_kv":
            writer.add_array(f"{architecture}.{key}", [value * (kind != "conv") for kind in config.layer_types])
            continue
        if isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters of two dimensions and more that lie unpacked in memory, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
