"""What a model's cache looks like, layer by layer, before any type is chosen. Plain data: no tensors, no transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["full", "sliding", "chunked", "mla", "linear", "shared"]

# What configs of Hugging Face models call layers that have K and V; all other kinds keep a state of their own
ROLES: dict[str, Role] = {
    "full_attention": "full",
    "indexed_attention": "full",
    "hybrid": "full",
    "sliding_attention": "sliding",
    "reference_sliding_attention": "sliding",
    "hybrid_sliding": "sliding",
    "chunked_attention": "chunked",
}


def first_visible(role: Role, window: int | None, position: int) -> int:
    """The first token that the token at this position sees in such a layer; all between are seen. What keeps other tokens says
    so here: caches, pages and the server ask."""
    if window is None:
        return 0
    if role == "chunked":
        return position // window * window
    return max(0, position - window + 1)


def next_border(role: Role, window: int | None, position: int) -> int | None:
    """Where a piece of a prompt that begins here has to end at the latest; None where it may be of any length."""
    return (position // window + 1) * window if role == "chunked" and window is not None else None


@dataclass(frozen=True)
class LayerGeometry:
    """One layer of the model.

    layer: the model's own index. ordinal: the count among layers that have a cache of their own, None for layers without.
    head_dim: values of one K and one V vector; for MLA the latent and the rope part. window: tokens that a sliding or
    chunked layer keeps, else None. why: for a layer that is left alone, the reason in words. reads_pages: False where the model's
    attention gets decoded tensors instead of pages.
    """

    layer: int
    ordinal: int | None
    role: Role
    head_dim: tuple[int, int]
    kv_heads: int
    q_heads: int
    window: int | None = None
    why: str | None = None
    reads_pages: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        """What files say of a layer whose K and V have types."""
        return {
            "layer": self.layer,
            "ordinal": self.ordinal,
            "role": self.role,
            "head_dim": list(self.head_dim),
            "kv_heads": self.kv_heads,
        }


@dataclass(frozen=True)
class ModelGeometry:
    """All layers of a model, and its context length in tokens (0: the config doesn't say)."""

    name: str
    layers: tuple[LayerGeometry, ...]
    context: int = 0

    @property
    def kv_layers(self) -> tuple[LayerGeometry, ...]:
        """The layers that have a cache of their own, by ordinal."""
        return tuple(layer for layer in self.layers if layer.ordinal is not None)

    @property
    def values(self) -> int:
        """Values that one token has in the K and V of all KV layers."""
        return sum(layer.kv_heads * sum(layer.head_dim) for layer in self.kv_layers)
