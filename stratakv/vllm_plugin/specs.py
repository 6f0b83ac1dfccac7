"""The sizes of blocks that vLLM is told, and what a rank says of them at its start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.layers.attention.attention import Attention
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity
from vllm.v1.kv_cache_interface import AttentionSpec, iter_layer_specs

from stratakv.errors import UserError
from stratakv.kernels.choice import TORCH, kernel_for, order_of, why_torch
from stratakv.kernels.native import native
from stratakv.pages.layout import PAGE_TOKENS, PageLayout
from stratakv.profile import Profile
from stratakv.profile.table import format_table, show_table
from stratakv.sizes import size_text
from stratakv.vllm_plugin.assignment import Assignment, Built
from stratakv.vllm_plugin.backend import PackedBackend

logger = init_logger("vllm.plugins.stratakv")


def packed(spec: Any, layer: Any, assignment: Assignment) -> AttentionSpec:
    """A layer's spec with the bytes of its own types. UserError for a layer that keeps another backend."""
    if layer.attn_backend is not PackedBackend or type(spec).__name__ not in ("FullAttentionSpec", "SlidingWindowSpec"):
        raise UserError(
            f"{layer.layer_name} caches a {type(spec).__name__} for {layer.attn_backend.__name__}, which profile "
            f"{assignment.name} can't cover: leave the profile out"
        )
    size = assignment.vector_bytes(extract_layer_index(layer.layer_name), (layer.head_size, layer.head_size_v))
    return replace(spec, dtype=torch.uint8, state_content_bytes=size)


def log_rank(worker: Any, kv_cache_config: Any, assignment: Assignment) -> None:
    """Check what this rank's layers store against the assignment, and log it: types, bytes a token, tokens that fit, padding."""
    config = worker.vllm_config
    parallel, context = config.parallel_config, config.compilation_config.static_forward_context
    names = [name for group in kv_cache_config.kv_cache_groups for name in group.layer_names]
    layers = {extract_layer_index(name): context[name] for name in names if isinstance(context[name], Attention)}
    found = {index: Built((each.head_size, each.head_size_v), each.num_kv_heads) for index, each in layers.items()}
    first, end = config.model_config.get_layers_start_end_indices(parallel)
    tensor, pipeline = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    name = f"rank {worker.rank} (tensor parallel {tensor}, pipeline parallel {pipeline}, layers {first}-{end - 1})"
    profile = assignment.on_rank(name, range(first, end), tensor, found, config.model_config.max_model_len)
    lines = [format_table(show_table(profile)), _kernels(profile, worker.device)]
    logger.info("stratakv: %s", "\n".join([*lines, *_fits(config, kv_cache_config), *_threads(worker.device)]))


def _kernels(profile: Profile, device: torch.device) -> str:
    """Which kernels read and write the pages, and where torch does it, why."""
    kernels: dict[str, int] = {}
    for storage, layer in zip(profile.storages, profile.geometry.kv_layers, strict=True):
        layout = PageLayout(storage.k, storage.v, *layer.head_dim, layer.kv_heads, order=order_of(device))
        found = kernel_for(layout, device)
        name = found.name
        if found is TORCH:
            name += f", which decodes pages and is slow ({why_torch(layout, device)})"
        elif remark := getattr(found, "remark", None):
            name += f", {remark}"
        kernels[name] = kernels.get(name, 0) + 1
    return "kernel: " + "; ".join(f"{count} layers {name}" for name, count in kernels.items())


def _threads(device: torch.device) -> list[str]:
    """On a CPU kernels share the threads of torch's loops: vLLM gives these cores of their own."""
    module = native()
    if device.type != "cpu" or module is None or module.borrow_openmp():
        return []
    return [
        "warning: OpenMP was not found, so that the kernels have threads of their own beside torch's, on the cores of the one "
        "that calls them"
    ]


def _fits(config: Any, kv_cache_config: Any) -> list[str]:
    """Tokens that fit, and what vLLM pads."""
    blocks, groups = kv_cache_config.num_blocks, kv_cache_config.kv_cache_groups
    size = kv_cache_config.kv_cache_tensors[0].size
    tokens, _ = get_kv_cache_capacity(config, kv_cache_config)
    lines = [f"{tokens:,} tokens fit in {size_text(size)}: {blocks:,} blocks of {PAGE_TOKENS} tokens"]
    block = size // blocks
    for number, group in enumerate(groups):
        specs = list(iter_layer_specs(group.kv_cache_spec))
        specs = specs if len(specs) == len(group.layer_names) else specs * len(group.layer_names)
        used = sum(spec.unpadded_page_size_bytes for spec in specs)
        if used < block:
            lines.append(
                f"warning: group {number} of {len(groups)} ({len(specs)} layers) uses {used:,} of a block's {block:,} bytes, "
                f"{1 - used / block:.1%} is padding, since vLLM gives groups of layers blocks of one size"
            )
    return lines
