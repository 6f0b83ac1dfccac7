"""Which weight of a transformers model each tensor of a GGUF file is: transformers' name map, and the names that it lacks.

A tensor that nothing uses is never passed over: llama.cpp would compute with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from stratakv.weights.gguf_header import GGUFHeader

ROPE_FREQUENCIES = "rope_freqs.weight"
EXPERTS = re.compile(r"(blk\.\d+\.ffn_)(gate|up|gate_up|down)_exps\.(weight|bias)")
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
# Biases that llama.cpp takes as zero where a file has none, by the end of the parameter's name
_OPTIONAL = {
    "self_attn.o_proj.bias": "attn_output.bias",
    "mlp.gate_proj.bias": "ffn_gate.bias",
    "mlp.up_proj.bias": "ffn_up.bias",
    "mlp.down_proj.bias": "ffn_down.bias",
}
# What a language model's answers don't hang on: frequencies that RoPE computes itself, heads that guess several tokens ahead,
# pictures
_IDLE = re.compile(r"blk\.\d+\.attn_rot_embd\b.*|.*\bnextn\b.*|(v|mm)\..*")
_SCALE = re.compile(r"blk\.(\d+)\.(ffn_gate_inp|ffn_down_exps)\.scale")
_SCALES = {"ffn_gate_inp": "scale", "ffn_down_exps": "per_expert_scale"}
_SHARED = re.compile(r"blk\.(\d+)\.attn_(k|v|k_norm)\.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.")


def tensor_names(header: GGUFHeader, model: Any, processor: Any) -> dict[str, str]:
    """Parameter or buffer names by tensor name: transformers' own, and those that its map misses."""
    names = transformers_names(model, processor)
    parameters = model.state_dict()
    for tensor in header.tensors:
        bare, _, leaf = tensor.name.rpartition(".")
        if tensor.name in names:
            continue
        scale = _SCALE.fullmatch(tensor.name)
        if scale and (parameter := f"model.layers.{scale[1]}.router.{_SCALES[scale[2]]}") in parameters:
            names[tensor.name] = parameter
        elif leaf == "weight" and bare in names:
            names[tensor.name] = names[bare]
        elif found := EXPERTS.fullmatch(tensor.name):
            down = names.get(f"{found[1]}down_exps", "")
            parameter = down.replace("down_proj", "down_proj" if found[2] == "down" else "gate_up_proj")
            parameter += "_bias" if leaf == "bias" else ""
            if parameter in parameters:
                names[tensor.name] = parameter
    return names


def transformers_names(model: Any, processor: Any) -> dict[str, str]:
    """Those that transformers fills itself when it unpacks; a tensor's ".weight" that its map goes without is not among them."""
    loader: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    type_ = str(model.config.model_type)
    names: dict[str, str] = loader.get_gguf_hf_weights_map(
        model, processor, model_type="llama" if type_ == "mistral" else None
    )
    return names


def converted_by_transformers(architecture: str) -> bool:
    """Whether transformers has a conversion for the architecture instead of a name map and a processor."""
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:  # before 5.20
        return False
    return bool(is_gguf_arch_supported(architecture))


def idle(names: Iterable[str], config: Any) -> list[str]:
    """Those of the tensors that change no answer of a model with this text config, used or not."""
    layers = int(config.num_hidden_layers)
    sharing = layers - int(getattr(config, "num_kv_shared_layers", None) or 0)  # from this layer on

    def needless(name: str) -> bool:
        block, shared = _BLOCK.match(name), _SHARED.fullmatch(name)
        beyond = block is not None and int(block[1]) >= layers
        return beyond or (shared is not None and int(shared[1]) >= sharing) or _IDLE.fullmatch(name) is not None

    return [name for name in names if needless(name)]


def drop_absent_biases(header: GGUFHeader, model: nn.Module) -> set[str]:
    """Take optional biases out of a model that no layer of the file has; returns their names."""
    there = {tensor.name.split(".", 2)[-1] for tensor in header.tensors}
    dropped = set()
    for name, _ in list(model.named_parameters()):
        end = next((end for end, theirs in _OPTIONAL.items() if name.endswith(end) and theirs not in there), None)
        if end is not None:
            model.get_submodule(name.removesuffix(".bias")).register_parameter("bias", None)
            dropped.add(name)
    return dropped


def used_by_rope(header: GGUFHeader, model: Any, name: str) -> bool:
    """Whether the model's RoPE takes a tensor that no weight is made of; puts it in where the config doesn't hold it."""
    if name in (ROPE_LONG, ROPE_SHORT):
        return getattr(_rotary(model), "rope_type", None) == "longrope"
    return name == ROPE_FREQUENCIES and _apply_rope_frequencies(header, model)


def _rotary(model: Any) -> Any:
    return getattr(getattr(model, model.base_model_prefix, None), "rotary_emb", None)


def _apply_rope_frequencies(header: GGUFHeader, model: Any) -> bool:
    """Divide the model's RoPE frequencies by the file's factors (Llama 3.1's long contexts), as llama.cpp does.

    Whether there was anything that takes them. Where there are frequencies by kind of layer they are those of full attention.
    """
    found = next((tensor for tensor in header.tensors if tensor.name == ROPE_FREQUENCIES), None)
    if found is None:
        return False
    factors = torch.tensor(found.data, dtype=torch.float32).flatten()
    rotary, applied = _rotary(model), False
    for kind in ("", "full_attention_"):
        for name in (f"{kind}inv_freq", f"{kind}original_inv_freq"):
            frequencies = getattr(rotary, name, None)
            if isinstance(frequencies, torch.Tensor) and frequencies.numel() == factors.numel():
                frequencies.div_(factors.to(frequencies.device))
                applied = True
    return applied


def missing_of_experts(header: GGUFHeader) -> list[str]:
    """Tensors that a layer of experts lacks beside those that it has: what is put together from several would be half zeros."""
    found: dict[tuple[str, str], set[str]] = {}
    for tensor in header.tensors:
        if match := EXPERTS.fullmatch(tensor.name):
            found.setdefault((match[1], match[3]), set()).add(match[2])
    missing = []
    for (block, leaf), kinds in found.items():
        whole = {"gate_up", "down"} if "gate_up" in kinds else {"gate", "up", "down"}
        missing += [f"{block}{kind}_exps.{leaf}" for kind in sorted(whole - kinds)]
    return missing


def some(names: Collection[str]) -> str:
    """The first three, and how many more."""
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(list(names)[:3]) + more
