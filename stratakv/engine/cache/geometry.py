"""A model's cache geometry, read from its transformers config."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from stratakv.engine.cache.architecture import calls_attention_by_name
from stratakv.profile.geometry import ROLES, LayerGeometry, ModelGeometry, Role

_LINEAR = ("linear_attention", "conv")


def geometry_of(config: PreTrainedConfig, name: str = "") -> ModelGeometry:
    """Layer roles, head dims and kv heads of a causal language model's config (its text part, for multimodal ones)."""
    text = config.get_text_config(decoder=True)
    kinds, kwargs = get_layer_types_and_kwargs(text)
    shared = _shared_layers(text)
    layers, ordinal, by_name = [], 0, calls_attention_by_name(config)
    for index, (kind, layer_kwargs, layer) in enumerate(zip(kinds, kwargs, text.per_layer_config, strict=True)):
        role, why = _role(kind, layer, index in shared)
        q_heads, kv_heads, dims = _heads(layer, kind)
        cached = why is None
        window = layer_kwargs.get("sliding_window") if cached else None
        reads = by_name and role != "mla"
        ordinal_here = ordinal if cached else None
        layers.append(LayerGeometry(index, ordinal_here, role, dims, kv_heads, q_heads, window, why, reads))
        ordinal += cached
    context = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None) or 0
    return ModelGeometry(name or getattr(config, "name_or_path", "") or text.model_type, tuple(layers), int(context))


def _role(kind: str, layer: Any, shares: bool) -> tuple[Role, str | None]:
    if kind == "dummy" or shares:
        return "shared", "no cache of its own: it shares another layer's K and V, or has no attention"
    if kind in _LINEAR:
        return "linear", "linear attention: a state of constant size, no K and V per token"
    if kind not in ROLES:
        return "linear", f"layer type {kind} has a cache format of its own, kept as it is"
    role = ROLES[kind]
    return ("mla" if role == "full" and _is_mla(layer) else role), None


def _shared_layers(text: Any) -> set[int]:
    count = getattr(text, "num_kv_shared_layers", 0) or 0
    layers = text.num_hidden_layers
    return set(range(layers - count, layers)) if count else set()


def _is_mla(layer: Any) -> bool:
    return bool(getattr(layer, "kv_lora_rank", None) and getattr(layer, "qk_rope_head_dim", None))


def _heads(layer: Any, kind: str) -> tuple[int, int, tuple[int, int]]:
    """(query heads, kv heads, (K dim, V dim)) of what the layer gives to its cache."""
    q_heads = int(getattr(layer, "num_attention_heads", 1))
    if _is_mla(layer):
        return q_heads, 1, (int(layer.kv_lora_rank), int(layer.qk_rope_head_dim))
    kv_heads = getattr(layer, "num_key_value_heads", None)
    if kv_heads is None:
        kv_heads = getattr(layer, "num_kv_heads", None) or q_heads
    if getattr(layer, "new_decoder_architecture", False):
        kv_heads = q_heads  # Falcon repeats the heads before it caches them
    elif getattr(layer, "multi_query", False):
        kv_heads = 1
    head_dim = getattr(layer, "head_dim", None) or layer.hidden_size // q_heads
    k_dim = getattr(layer, "qk_head_dim", None) or head_dim
    v_dim = getattr(layer, "v_head_dim", None) or head_dim
    return q_heads, int(kv_heads), (int(k_dim), int(v_dim))
