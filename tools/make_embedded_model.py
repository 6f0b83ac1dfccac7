"""Writes a Llama model in Hugging Face format as one GGUF file with q8_0 matrices: the package's embedded model.

The layout is llama.cpp's: rows of q and k permuted from halves to pairs (its RoPE turns neighbouring values), norms in
f32, the output matrix left out where it is the embedding. The same input gives the same bytes.

`.venv/bin/python tools/make_embedded_model.py ../shared/models/strata-8m`
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
Q8_0 = gguf.GGMLQuantizationType.Q8_0


def write_gguf(source: Path, target: Path, name: str, type_: gguf.GGMLQuantizationType = Q8_0) -> None:
    """Writes the model in the directory `source` (config.json, model.safetensors, tokenizer.json) to `target`.

    type_: of the matrices, one that gguf can quantize to.
    Raises ValueError for an architecture other than a plain Llama and for matrices whose rows are not multiples of 32.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    check(config)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder) / target.name
        writer = gguf.GGUFWriter(unfinished, "llama")
        add_description(writer, config, name)
        add_tokenizer(writer, config, tokenizer)
        add_tensors(writer, config, load_file(source / "model.safetensors"), type_)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(unfinished, target)


def check(config: dict[str, Any]) -> None:
    """Raises ValueError for what this file's metadata could not express."""
    if config["model_type"] != "llama" or config.get("attention_bias") or config.get("mlp_bias"):
        raise ValueError(f"only Llama models without biases are written, not {config['model_type']!r}")
    if config["rope_parameters"]["rope_type"] != "default":
        raise ValueError(f"only plain RoPE is written, not {config['rope_parameters']['rope_type']!r}")


def add_description(writer: gguf.GGUFWriter, config: dict[str, Any], name: str) -> None:
    writer.add_name(name)
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def add_tokenizer(writer: gguf.GGUFWriter, config: dict[str, Any], tokenizer: dict[str, Any]) -> None:
    """Byte-level BPE with GPT-2's pre-tokenizer: `tokenizer` is the content of tokenizer.json."""
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    if sorted(vocab.values()) != list(range(config["vocab_size"])):
        raise ValueError(f"the tokenizer's {len(vocab)} ids are not 0 to {config['vocab_size'] - 1}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(vocab, key=vocab.__getitem__))
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(config["vocab_size"])]
    )
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def add_tensors(
    writer: gguf.GGUFWriter,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    type_: gguf.GGMLQuantizationType = Q8_0,
) -> None:
    """Adds the tensors (Hugging Face name -> weight [rows, columns] or norm [columns]) in the order of the names."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for hf_name, tensor in sorted(tensors.items()):
        if hf_name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        name = names.get_name(hf_name, try_suffixes=(".weight",))
        if name is None:
            raise ValueError(f"llama.cpp's Llama has no tensor for {hf_name!r}")
        values = tensor.to(torch.float32).numpy()
        projection = hf_name.split(".")[-2]
        if projection in heads:
            values = halves_to_pairs(values, heads[projection])
        if values.ndim == 1:
            writer.add_tensor(name, values)
        elif values.shape[1] % 32:
            raise ValueError(f"{hf_name}: rows of {values.shape[1]} values can't be stored as q8_0 (blocks of 32)")
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, type_), raw_dtype=type_)


def halves_to_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * head_dim, columns]: row i of a head's first half comes to 2 i, of its second half to 2 i + 1."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a Llama model in Hugging Face format as a q8_0 GGUF file.")
    parser.add_argument("source", type=Path, nargs="?", default=ROOT.parent / "shared" / "models" / "strata-8m")
    parser.add_argument("--output", type=Path, default=ROOT / "stratakv" / "assets" / "strata-8m-q8_0.gguf")
    parser.add_argument("--name", default="strata-8m")
    options = parser.parse_args()
    write_gguf(options.source, options.output, options.name)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
