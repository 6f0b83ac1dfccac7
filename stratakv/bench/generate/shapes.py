"""Models of random weights in a known model's shape, for timing only: built in memory, or as a GGUF file for llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

QWEN3_SHAPE = "qwen3-0.6b-shape"
LLAMA_SHAPE = "llama-3.2-1b-shape"
# llama.cpp's numbers of file types that a shape is quantized to, by what its name ends with
FILE_TYPES = {"q4_k_m": 15, "q8_0": 7}
_RANDOM_VALUES = 2**22
_SPREAD = 0.02


def qwen3_config() -> dict[str, Any]:
    """Qwen3-0.6B's published sizes."""
    return {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    }


def llama_config() -> dict[str, Any]:
    """Llama-3.2-1B's published sizes (its stretched RoPE left out: it costs no time)."""
    return {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }


def quantized_shape(name: str) -> tuple[str, dict[str, Any], int] | None:
    """llama.cpp's architecture, the config and the file type of a name such as "qwen3-0.6b-shape-q4_k_m"; None for others."""
    shapes = {QWEN3_SHAPE: ("qwen3", qwen3_config), LLAMA_SHAPE: ("llama", llama_config)}
    for shape, (architecture, config) in shapes.items():
        for kind, number in FILE_TYPES.items():
            if name == f"{shape}-{kind}":
                return architecture, config(), number
    return None


def random_model(config: dict[str, Any]) -> PreTrainedModel:
    """A Qwen3 of this config in bf16, evaluation mode. Norms are 1, matrices repeat 4 million normal values."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model: Any = Qwen3ForCausalLM._from_config(Qwen3Config(**config), dtype=torch.bfloat16)
    model.tie_weights()
    values = _SPREAD * torch.randn(_RANDOM_VALUES, generator=torch.Generator().manual_seed(0))
    values = values.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.fill_(1)
                continue
            flat = parameter.view(-1)
            for start in range(0, len(flat), len(values)):
                piece = flat[start : start + len(values)]
                piece.copy_(values[: len(piece)])
    model.eval()
    found: PreTrainedModel = model
    return found


def write_random_gguf(path: Path, config: dict[str, Any], architecture: str = "qwen3") -> None:
    """The same shape with weights of the same kind as a bf16 GGUF file; architecture: llama.cpp's, qwen3 or llama."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture, use_temp_file=False)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(1e6)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    normal = _SPREAD * np.random.default_rng(0).standard_normal(_RANDOM_VALUES, dtype=np.float32)
    bits = (normal.view(np.uint32) >> 16).astype(np.uint16)  # cut to bf16: rounding doesn't matter here
    for name, shape in _tensors(config, architecture):
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, dtype=np.float32))
        else:
            matrix = np.resize(bits, shape).view(np.uint8)
            writer.add_tensor(name, matrix, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(config: dict[str, Any], architecture: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, mlp, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield "token_embd.weight", (config["vocab_size"], width)
    yield "output_norm.weight", (width,)
    for layer in range(config["num_hidden_layers"]):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (width,),
            "ffn_norm": (width,),
            **({"attn_q_norm": (dim,), "attn_k_norm": (dim,)} if architecture == "qwen3" else {}),
            "attn_q": (q, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, q),
            "ffn_gate": (mlp, width),
            "ffn_up": (mlp, width),
            "ffn_down": (width, mlp),
        }
        for name, shape in shapes.items():
            yield f"blk.{layer}.{name}.weight", shape
