"""What a GGUF file says about its model and transformers doesn't read into the config."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from stratakv.weights.gguf_header import GGUFHeader


def completed(config: PreTrainedConfig, header: GGUFHeader) -> PreTrainedConfig:
    """The config with what transformers leaves out of it."""
    changes = _biases(config, header)
    return type(config).from_dict({**config.to_dict(), **changes}) if changes else config


def _biases(config: PreTrainedConfig, header: GGUFHeader) -> dict[str, Any]:
    """Llama-like models with biases: the file has them, no field says so."""
    there = {tensor.name for tensor in header.tensors}
    found = {}
    for name, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_down.bias")):
        if getattr(config, name, None) is False and tensor in there:
            found[name] = True
    return found
