"""Which body reads the pages of which layer, as far as config and machine tell before anything runs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from stratakv.engine.cache.architecture import calls_attention_by_name
from stratakv.kernels.choice import TRITON, preferred
from stratakv.kernels.cpu.layout import MAX_HEAD_DIM
from stratakv.pages.layout import layout_of
from stratakv.profile import Profile
from stratakv.profile.profile import ordinals_text


def attention_paths(config: PreTrainedConfig, profile: Profile) -> dict[str, Any]:
    """{"kernel": name, "decoded_layers": model layers whose attention gets decoded tensors instead, "why": in words or None,
    "torch_layers": model layers whose pages are read in plain torch, "torch_why": why the kernel refuses them, in words or None}.

    "gpu": the name of this machine's GPU, None without one, where pages lie with a model that is moved there;
    "gpu_torch_layers" and "gpu_torch_why": the same as above on it.

    Decoded tensors are right and slower. Kept layers of a model on a GPU run in torch whatever this says.
    """
    layers = profile.geometry.kv_layers
    bypasses = not calls_attention_by_name(config)
    decoded = [layer for layer in layers if not layer.reads_pages or max(layer.head_dim) > MAX_HEAD_DIM]
    why = None
    if bypasses:
        why = f"{config.model_type} has attention code of its own in transformers"
    elif any(layer.role == "mla" for layer in decoded):
        why = "MLA: the model projects the latents to heads before attention"
    elif decoded:
        why = f"no kernel for a head_dim above {MAX_HEAD_DIM}"
    kernel, gpu = preferred(), _gpu()
    refused: dict[int, str] = {}
    on_a_gpu: dict[int, str] = {}
    for layer, storage in zip(layers, profile.storages, strict=True):
        kinds = [kind for kind in (storage.for_layer(layer), storage.fine(layer)) if kind is not None]
        reasons = [kernel.refuses(layout_of(layer, kind), torch.device("cpu")) for kind in kinds]
        theirs = [TRITON.refuses(layout_of(layer, kind, "rows"), gpu) for kind in kinds] if gpu else []
        for found_here, refusals in ((refused, reasons), (on_a_gpu, theirs)):
            reason = next((each for each in refusals if each is not None), None)
            if layer not in decoded and reason is not None:
                found_here[layer.layer] = reason
    return {
        "kernel": kernel.name,
        "decoded_layers": [layer.layer for layer in decoded],
        "why": why,
        "torch_layers": list(refused),
        "torch_why": _said(refused),
        "gpu": torch.cuda.get_device_name(gpu) if gpu else None,
        "gpu_torch_layers": list(on_a_gpu),
        "gpu_torch_why": _said(on_a_gpu),
    }


def _gpu() -> torch.device | None:
    return torch.device("cuda") if torch.cuda.is_available() else None


def _said(reasons: dict[int, str]) -> str | None:
    return "; ".join(dict.fromkeys(reasons.values())) or None


def gpu_line(paths: dict[str, Any], kv_layers: int) -> str | None:
    """What is otherwise on this machine's GPU, in one line; None without one, and where all layers get decoded tensors."""
    if paths["gpu"] is None:
        return None
    left = kv_layers - len(paths["decoded_layers"]) - len(paths["gpu_torch_layers"])
    parts = [f"with kernel triton in {left} of {kv_layers} KV layers (not measured on a GPU)"] if left else []
    if unknown := paths["gpu_torch_layers"]:
        parts.append(f"in plain torch in {_layers(unknown, kv_layers)} ({paths['gpu_torch_why']})")
    return f"on the {paths['gpu']} pages are read {'; '.join(parts)}" if parts else None


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
