"""A model's cache geometry, read from a text config's fields as vLLM and transformers name them. Plain objects, no vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from stratakv.profile.geometry import ROLES, LayerGeometry, ModelGeometry


class Heads(NamedTuple):
    """Of one layer in the whole model, tensor parallel or not."""

    q_heads: int
    kv_heads: int
    head_dim: tuple[int, int]


def geometry_of(text: Any, name: str, heads: Callable[[int], Heads], context: int = 0) -> ModelGeometry:
    """Layer by layer. text: the text part of the model's config. heads: by layer. context: tokens that the model may read."""
    count = int(text.num_hidden_layers)
    kinds = getattr(text, "layer_types", None) or [_usual(text)] * count
    shares = count - int(getattr(text, "num_kv_shared_layers", 0) or 0)
    layers: list[LayerGeometry] = []
    ordinal = 0
    for index, kind in enumerate(kinds[:count]):
        q_heads, kv_heads, head_dim = heads(index)
        role = "shared" if index >= shares else ROLES.get(kind, "linear")
        cached = role not in ("shared", "linear")
        window = int(text.sliding_window) if role == "sliding" else None
        layers.append(LayerGeometry(index, ordinal if cached else None, role, head_dim, kv_heads, q_heads, window))
        ordinal += cached
    return ModelGeometry(name, tuple(layers), context)


def _usual(text: Any) -> str:
    """Of a config that names no kinds: all layers are alike."""
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return "sliding_attention"
    return "chunked_attention" if getattr(text, "attention_chunk_size", None) else "full_attention"
