"""Which body reads the pages of which layer, as far as config and machine tell before anything runs."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig

from stratakv.kernels.choice import kernel_name
from stratakv.kernels.cpu_layout import MAX_HEAD_DIM
from stratakv.profile.geometry import ModelGeometry


def attention_paths(config: PreTrainedConfig, geometry: ModelGeometry) -> dict[str, Any]:
    """{"kernel": name, "decoded_layers": model layers whose attention gets decoded tensors instead, "why": in words or None}.

    Decoded tensors are right and slower. Kept layers of a model on a GPU run in torch whatever this says.
    """
    layers = geometry.kv_layers
    bypasses = not _uses_interface(config)
    decoded = [layer for layer in layers if bypasses or layer.role == "mla" or max(layer.head_dim) > MAX_HEAD_DIM]
    why = None
    if bypasses:
        why = f"{config.model_type} has attention code of its own in transformers"
    elif any(layer.role == "mla" for layer in decoded):
        why = "MLA: the model projects the latents to heads before attention"
    elif decoded:
        why = f"no kernel for a head_dim above {MAX_HEAD_DIM}"
    return {"kernel": kernel_name(), "decoded_layers": [layer.layer for layer in decoded], "why": why}


def attention_line(paths: dict[str, Any], kv_layers: int) -> str:
    """The same in one line."""
    decoded = paths["decoded_layers"]
    if not decoded:
        return f"attention reads the pages with kernel {paths['kernel']} in all KV layers"
    which = "all KV layers" if len(decoded) == kv_layers else "layers " + ", ".join(map(str, decoded))
    return f"attention gets decoded tensors in {which} ({paths['why']}); kernel elsewhere: {paths['kernel']}"


def _uses_interface(config: PreTrainedConfig) -> bool:
    """Whether the architecture's module calls the attention implementation by name, as nearly all do."""
    text: Any = config.get_text_config(decoder=True)
    for candidate in (config, text):
        model = AutoModelForCausalLM._model_mapping.get(type(candidate), None)
        if model is not None:
            return "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(sys.modules[model.__module__])
    return True
