"""Small random GGUF files of Qwen3.5, dense and with experts, by llama.cpp's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

_WIDTH, _LAYERS, _VOCABULARY, _HEAD = 64, 4, 256, 32
_KEYS, _VALUES, _LINEAR = 2, 6, 32  # heads of linear attention, and their size
_EXPERTS, _INNER = 4, 32


def write(path: Path, architecture: str, kind: str = "Q8_0") -> None:
    """Write the file. architecture: qwen35 or qwen35moe; kind: ggml type of matrices."""
    writer, random = GGUFWriter(path, architecture), np.random.default_rng(0)
    experts = architecture == "qwen35moe"
    for name, value in _fields(experts).items():
        key = f"{architecture}.{name}"
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_tokenizer_model("none")
    writer.add_token_list([f"<{number}>" for number in range(_VOCABULARY)])
    type_ = GGMLQuantizationType[kind]
    for name, shape in _shapes(experts).items():
        values = (random.standard_normal(shape) * 0.1).astype(np.float32)
        if "norm" in name:
            values = 1 + np.abs(values)
        if name.endswith("ssm_a"):
            values = -1 - np.abs(values)
        small = len(shape) < 2 or "gate_inp" in name or "conv1d" in name
        writer.add_tensor(name, values if small else quantize(values, type_), raw_dtype=None if small else type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _fields(experts: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "context_length": 256,
        "embedding_length": _WIDTH,
        "block_count": _LAYERS,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": _HEAD,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "full_attention_interval": 2,
        "rope.freq_base": 1e6,
        "rope.dimension_count": _HEAD // 2,
        "rope.dimension_sections": [4, 2, 2, 0],
        "ssm.conv_kernel": 4,
        "ssm.state_size": _LINEAR,
        "ssm.group_count": _KEYS,
        "ssm.time_step_rank": _VALUES,
        "ssm.inner_size": _VALUES * _LINEAR,
    }
    if experts:
        sizes = {"expert_feed_forward_length": _INNER, "expert_shared_feed_forward_length": _WIDTH}
        return {**found, **sizes, "expert_count": _EXPERTS, "expert_used_count": 2}
    return {**found, "feed_forward_length": 96}


def _shapes(experts: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (_VOCABULARY, _WIDTH),
        "output_norm.weight": (_WIDTH,),
        "output.weight": (_VOCABULARY, _WIDTH),
    }
    values = _VALUES * _LINEAR
    mixed = 2 * _KEYS * _LINEAR + values
    linear: dict[str, tuple[int, ...]] = {
        "attn_qkv.weight": (mixed, _WIDTH),
        "attn_gate.weight": (values, _WIDTH),
        "ssm_alpha.weight": (_VALUES, _WIDTH),
        "ssm_beta.weight": (_VALUES, _WIDTH),
        "ssm_conv1d.weight": (mixed, 4),
        "ssm_norm.weight": (_LINEAR,),
        "ssm_out.weight": (_WIDTH, values),
        "ssm_a": (_VALUES,),
        "ssm_dt.bias": (_VALUES,),
    }
    full: dict[str, tuple[int, ...]] = {
        "attn_q.weight": (2 * 4 * _HEAD, _WIDTH),
        "attn_k.weight": (2 * _HEAD, _WIDTH),
        "attn_v.weight": (2 * _HEAD, _WIDTH),
        "attn_output.weight": (_WIDTH, 4 * _HEAD),
        "attn_q_norm.weight": (_HEAD,),
        "attn_k_norm.weight": (_HEAD,),
    }
    dense: dict[str, tuple[int, ...]] = {
        "ffn_gate.weight": (96, _WIDTH),
        "ffn_up.weight": (96, _WIDTH),
        "ffn_down.weight": (_WIDTH, 96),
    }
    sparse: dict[str, tuple[int, ...]] = {
        "ffn_gate_inp.weight": (_EXPERTS, _WIDTH),
        "ffn_gate_exps.weight": (_EXPERTS, _INNER, _WIDTH),
        "ffn_up_exps.weight": (_EXPERTS, _INNER, _WIDTH),
        "ffn_down_exps.weight": (_EXPERTS, _WIDTH, _INNER),
        "ffn_gate_inp_shexp.weight": (_WIDTH,),
        "ffn_gate_shexp.weight": (_WIDTH, _WIDTH),
        "ffn_up_shexp.weight": (_WIDTH, _WIDTH),
        "ffn_down_shexp.weight": (_WIDTH, _WIDTH),
    }
    for layer in range(_LAYERS):
        norms = {"attn_norm.weight": (_WIDTH,), "post_attention_norm.weight": (_WIDTH,)}
        parts = {**norms, **(full if layer % 2 else linear), **(sparse if experts else dense)}
        found |= {f"blk.{layer}.{name}": shape for name, shape in parts.items()}
    return found
