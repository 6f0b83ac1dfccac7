"""Which body reads the pages of which layer, as far as config and machine tell before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from stratakv.engine.cache.architecture import calls_attention_by_name
from stratakv.kernels.choice import CPU, DEVICE_KERNELS, preferred
from stratakv.kernels.kernel import Kernel
from stratakv.pages.layout import Order, layout_of
from stratakv.profile import Profile
from stratakv.profile.profile import ordinals_text


def attention_paths(config: PreTrainedConfig, profile: Profile) -> dict[str, Any]:
    """{"kernel": name, "decoded_layers": model layers whose attention gets decoded tensors instead, "why": in words or None,
    "torch_layers": model layers whose pages are read in plain torch, "torch_why": why the kernel refuses them, in words or None}.

    "devices": of each other device of this machine that a kernel is for, where pages lie with a model that is moved there:
    {"device": its name, "kernel", "remark", "torch_layers", "torch_why"}.

    Decoded tensors are right and slower. Kept layers of a model on a GPU run in torch whatever this says.
    """
    layers = profile.geometry.kv_layers
    bypasses = not calls_attention_by_name(config)
    decoded = [layer for layer in layers if not layer.reads_pages]
    why = None
    if bypasses:
        why = f"{config.model_type} has attention code of its own in transformers"
    elif decoded:
        why = "MLA: the model projects the latents to heads before attention"
    kernel = preferred()
    read = [each for each in zip(layers, profile.storages, strict=True) if each[0] not in decoded]

    def torch_layers(reader: Kernel, order: Order, device: torch.device) -> dict[str, Any]:
        reasons: dict[int, str] = {}
        for layer, storage in read:
            kinds = [kind for kind in (storage.for_layer(layer), storage.fine(layer)) if kind is not None]
            if found := [said for kind in kinds if (said := reader.refuses(layout_of(layer, kind, order), device))]:
                reasons[layer.layer] = found[0]
        return {"torch_layers": list(reasons), "torch_why": "; ".join(dict.fromkeys(reasons.values())) or None}

    return {
        "kernel": kernel.name,
        "decoded_layers": [layer.layer for layer in decoded],
        "why": why,
        **torch_layers(kernel, "tile", CPU),
        "devices": [
            {
                "device": each.here(),
                "kernel": each.name,
                "remark": each.remark,
                **torch_layers(each, each.order, torch.device(each.device)),
            }
            for each in DEVICE_KERNELS
            if each.here()
        ],
    }


def device_lines(paths: dict[str, Any], kv_layers: int) -> list[str]:
    """What is otherwise on this machine's other devices, a line each; none where all layers get decoded tensors."""
    lines = []
    for each in paths["devices"]:
        left = kv_layers - len(paths["decoded_layers"]) - len(each["torch_layers"])
        parts = [f"with kernel {each['kernel']} in {left} of {kv_layers} KV layers ({each['remark']})"] if left else []
        if unknown := each["torch_layers"]:
            parts.append(f"in plain torch in {_layers(unknown, kv_layers)} ({each['torch_why']})")
        if parts:
            lines.append(f"on the {each['device']} pages are read {'; '.join(parts)}")
    return lines


def attention_line(paths: dict[str, Any], kv_layers: int) -> str:
    """The same in one line. kv_layers: how many there are."""
    parts = []
    if decoded := paths["decoded_layers"]:
        parts.append(f"gets decoded tensors in {_layers(decoded, kv_layers)} ({paths['why']})")
    if unknown := paths["torch_layers"]:
        parts.append(f"reads the pages in plain torch in {_layers(unknown, kv_layers)} ({paths['torch_why']})")
    left = kv_layers - len(decoded) - len(unknown)
    if left:
        which = "the other" if parts else "all"
        parts.append(f"reads the pages with kernel {paths['kernel']} in {which} KV layers")
    return "attention " + "; ".join(parts)


def _layers(numbers: list[int], kv_layers: int) -> str:
    return "all KV layers" if len(numbers) == kv_layers else f"layers {ordinals_text(numbers)}"
