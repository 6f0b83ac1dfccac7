"""Llama-3.1-8B's shape in Q4_K_M with random weights, of as many layers as a machine has time for: for timing only."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

SHAPE = "llama-3.1-8b-shape-q4_k_m"
LAYERS = 32
WIDTH, _MLP, _KV, _WORDS = 4096, 14336, 1024, 128256
_HEADS, _KV_HEADS = 32, 8
_Q4, _Q6 = gguf.GGMLQuantizationType.Q4_K, gguf.GGMLQuantizationType.Q6_K
_RANDOM_BLOCKS = 2**16  # that matrices repeat


def write_shape(path: Path, layers: int) -> None:
    """A GGUF file of so many of its layers. Matrices are Q6_K where llama.cpp's Q4_K_M has them: the head, and V and down of
    half of the layers, here of every other one, so that any even number has the whole model's mean."""
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_block_count(layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(_MLP)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(128)
    writer.add_rope_freq_base(5e5)
    writer.add_vocab_size(_WORDS)
    writer.add_tokenizer_model("no_vocab")
    blocks = {kind: _blocks(kind) for kind in (_Q4, _Q6)}

    def matrix(name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> None:
        values, nbytes = gguf.GGML_QUANT_SIZES[kind]
        raw = np.resize(blocks[kind], (rows * columns // values, nbytes)).reshape(rows, -1)
        writer.add_tensor(name, raw, raw_dtype=kind)

    ones = np.ones(WIDTH, dtype=np.float32)
    matrix("token_embd.weight", _WORDS, WIDTH, _Q4)
    matrix("output.weight", _WORDS, WIDTH, _Q6)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(layers):
        finer = _Q6 if layer % 2 else _Q4
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)
        for name, rows, columns, kind in (
            ("attn_q", WIDTH, WIDTH, _Q4),
            ("attn_k", _KV, WIDTH, _Q4),
            ("attn_v", _KV, WIDTH, finer),
            ("attn_output", WIDTH, WIDTH, _Q4),
            ("ffn_gate", _MLP, WIDTH, _Q4),
            ("ffn_up", _MLP, WIDTH, _Q4),
            ("ffn_down", WIDTH, _MLP, finer),
        ):
            matrix(f"blk.{layer}.{name}.weight", rows, columns, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _blocks(kind: gguf.GGMLQuantizationType) -> npt.NDArray[np.uint8]:
    """Random blocks whose values have mean 0 and a standard deviation near 0.02: scales that do that, all else random bits."""
    rng = np.random.default_rng(0)
    _, nbytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (_RANDOM_BLOCKS, nbytes), dtype=np.uint8)
    scale = np.array([1e-4, 7.5e-4] if kind == _Q4 else [1.5e-5], dtype=np.float16).view(np.uint8)
    at = slice(0, 4) if kind == _Q4 else slice(nbytes - 2, nbytes)
    raw[:, at] = scale
    return raw
