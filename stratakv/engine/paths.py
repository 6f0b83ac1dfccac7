"""Which body reads the pages of which layer, as far as config and machine tell before anything runs."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from stratakv.engine.architecture import causal_class
from stratakv.kernels.choice import kernel_name
from stratakv.kernels.cpu_layout import MAX_HEAD_DIM, knows
from stratakv.kvtypes import kv_type
from stratakv.profile import Profile
from stratakv.profile.profile import ordinals_text


def attention_paths(config: PreTrainedConfig, profile: Profile) -> dict[str, Any]:
    """{"kernel": name, "decoded_layers": model layers whose attention gets decoded tensors instead, "why": in words or None,
    "torch_layers": model layers whose pages are read in plain torch, since no compiled kernel knows their types}.

    Decoded tensors are right and slower. Kept layers of a model on a GPU run in torch whatever this says.
    """
    layers = profile.geometry.kv_layers
    bypasses = not _uses_interface(config)
    decoded = [layer for layer in layers if bypasses or layer.role == "mla" or max(layer.head_dim) > MAX_HEAD_DIM]
    why = None
    if bypasses:
        why = f"{config.model_type} has attention code of its own in transformers"
    elif any(layer.role == "mla" for layer in decoded):
        why = "MLA: the model projects the latents to heads before attention"
    elif decoded:
        why = f"no kernel for a head_dim above {MAX_HEAD_DIM}"
    unknown = [
        layer.layer
        for layer, pair in zip(layers, profile.pairs, strict=True)
        if layer not in decoded and not knows(*map(kv_type, pair))
    ]
    found = {"kernel": kernel_name(), "decoded_layers": [layer.layer for layer in decoded], "why": why}
    return {**found, "torch_layers": unknown}


def attention_line(paths: dict[str, Any], kv_layers: int) -> str:
    """The same in one line. kv_layers: how many there are."""
    parts = []
    if decoded := paths["decoded_layers"]:
        parts.append(f"gets decoded tensors in {_layers(decoded, kv_layers)} ({paths['why']})")
    if unknown := paths["torch_layers"]:
        parts.append(
            f"reads the pages in plain torch in {_layers(unknown, kv_layers)} (no compiled kernel for their types)"
        )
    left = kv_layers - len(decoded) - len(unknown)
    if left:
        which = "the other" if parts else "all"
        parts.append(f"reads the pages with kernel {paths['kernel']} in {which} KV layers")
    return "attention " + "; ".join(parts)


def _layers(numbers: list[int], kv_layers: int) -> str:
    return "all KV layers" if len(numbers) == kv_layers else f"layers {ordinals_text(numbers)}"


def _uses_interface(config: PreTrainedConfig) -> bool:
    """Whether the architecture's module calls the attention implementation by name, as nearly all do."""
    model = causal_class(config)
    return model is None or "ALL_ATTENTION_FUNCTIONS" in model.source
