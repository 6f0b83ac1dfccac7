"""Prints the capacity tables of docs/scaling.md: what 131,072 tokens take in a model's cache, by how they are stored.

Shapes are those of published models; nothing is loaded. `.venv/bin/python tools/capacity_tables.py`
"""

from __future__ import annotations

from collections.abc import Callable

from stratakv.profile import LayerGeometry, LayerStorage, ModelGeometry

TOKENS = 131072
FREE = 40  # GiB
GIB = 2**30
Pair = tuple[str, str]


def dense(name: str, layers: int, kv_heads: int, q_heads: int, head_dim: int = 128) -> ModelGeometry:
    """All layers keep every token."""
    dims = head_dim, head_dim
    return ModelGeometry(name, tuple(LayerGeometry(i, i, "full", dims, kv_heads, q_heads) for i in range(layers)))


def sliding(
    name: str, layers: int, every: int, window: int, kv_heads: int, q_heads: int, head_dim: int
) -> ModelGeometry:
    """Every `every`-th layer keeps every token, the others a window."""
    rows = []
    for i in range(layers):
        full = i % every == every - 1
        dims = head_dim, head_dim
        rows.append(
            LayerGeometry(i, i, "full" if full else "sliding", dims, kv_heads, q_heads, None if full else window)
        )
    return ModelGeometry(name, tuple(rows))


MODELS = (
    dense("8B (Llama 3.1: 32 layers, 8 kv heads of 128)", 32, 8, 32),
    dense("70B (Llama 3.3: 80 layers, 8 kv heads of 128)", 80, 8, 64),
    sliding(
        "27B with windows (Gemma 3: 62 layers, 16 kv heads of 128, 5 of 6 layers keep 1,024)", 62, 6, 1024, 16, 32, 128
    ),
    dense("80B hybrid (Qwen3-Next: 12 of 48 layers, 2 kv heads of 256)", 12, 2, 16, 256),
)


def tuned(count: int) -> Pair:
    """3.5 bits a value: of eight sides three in turbo4, the others in turbo3, as a tuning's budget has it."""
    return "turbo3" if count % 4 == 3 else "turbo4", "turbo3"


# of the count-th layer that keeps as many tokens
STORED: dict[str, Callable[[int], Pair]] = {
    "f16": lambda count: ("f16", "f16"),
    "fp8": lambda count: ("f16", "f16"),  # vLLM's own: a byte a value, and one scale for a whole side
    "turbo4": lambda count: ("turbo4", "turbo4"),
    "3.5 bits": tuned,
}


def cache_bytes(model: ModelGeometry, stored: str, tokens: int = TOKENS) -> int:
    """Bytes of one sequence's K and V. Windowed layers count their window, as `LayerStorage` does."""
    total = 0
    for window in dict.fromkeys(layer.window for layer in model.kv_layers):
        alike = [layer for layer in model.kv_layers if layer.window == window]
        total += sum(LayerStorage.of(STORED[stored](i)).nbytes(layer, tokens) for i, layer in enumerate(alike))
    return total // 2 if stored == "fp8" else total


def table() -> str:
    """Markdown: GiB of one sequence, and how many fit in FREE GiB."""
    lines = ["| model | " + " | ".join(STORED) + " |", "|---" * (len(STORED) + 1) + "|"]
    for model in MODELS:
        sizes = [cache_bytes(model, stored) for stored in STORED]
        cells = [f"{size / GIB:.2f} GiB, {FREE * GIB // size} fit" for size in sizes]
        lines.append(f"| {model.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
