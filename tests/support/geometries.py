"""Made-up models for the tests of profiles."""

from __future__ import annotations

from stratakv.profile.geometry import LayerGeometry, ModelGeometry


def plain(count: int, head_dim: int = 128, kv_heads: int = 2, q_heads: int = 4, context: int = 4096) -> ModelGeometry:
    layers = tuple(LayerGeometry(i, i, "full", (head_dim, head_dim), kv_heads, q_heads) for i in range(count))
    return ModelGeometry(f"plain-{count}", layers, context)


def hybrid(raw: int = 64, every: int = 4) -> ModelGeometry:
    """Linear attention, with a full-attention layer at the end of each group, as Qwen3-Next has them."""
    layers = []
    for i in range(raw):
        full = i % every == every - 1
        ordinal = i // every if full else None
        layers.append(LayerGeometry(i, ordinal, "full" if full else "linear", (128, 128), 2, 8))
    return ModelGeometry(f"hybrid-{raw}", tuple(layers), 32768)


def sliding() -> ModelGeometry:
    """Two sliding layers, one full, one that reads another layer's cache; K and V dims differ in the full one."""
    return ModelGeometry(
        "sliding-4",
        (
            LayerGeometry(0, 0, "sliding", (128, 128), 1, 4, window=1024),
            LayerGeometry(1, 1, "sliding", (128, 128), 1, 4, window=1024),
            LayerGeometry(2, 2, "full", (256, 128), 1, 4),
            LayerGeometry(3, None, "shared", (256, 128), 1, 4),
        ),
        8192,
    )
