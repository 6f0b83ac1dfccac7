"""The memory that gradients take beside the weights: how much, before they are asked for."""

from __future__ import annotations

from typing import Any

from stratakv.engine.load import LoadedModel, free_memory
from stratakv.errors import UserError
from stratakv.kvtypes import type_names
from stratakv.profile.spans import PAGE_TOKENS
from stratakv.tune.replay import decoder_layers

LOGITS_AT_ONCE = 1 << 24  # values: 64 MiB of float32
_LOGITS_HELD = 5  # arrays of them: themselves, predictions, signs, and what the graph keeps
_MLP_HELD, _WIDTH_HELD, _SCORES_HELD = 6, 16, 4  # values of a layer's graph, as multiples of tokens times sizes
_ERROR_HELD = 6  # of a type's error and what finds it, as multiples of what is stored
_LIBRARIES = 300 << 20  # what the first backward pass of a process loads, and buffers


def gradient_memory(loaded: LoadedModel, context: int, draws: int, pages: int = 1) -> int:
    """Bytes, about, for one context of so many tokens. draws: backward passes. pages: of readers that are told apart."""
    config: Any = loaded.model.config.get_text_config(decoder=True)
    width = int(getattr(config, "hidden_size", 0) or 0)
    inner = int(getattr(config, "intermediate_size", 0) or 4 * width)
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    vocabulary = int(getattr(config, "vocab_size", 1) or 1)
    layers = len(loaded.geometry.layers)
    layer = context * (_WIDTH_HELD * width + _MLP_HELD * inner) + _SCORES_HELD * heads * context**2
    stored = max(layer.kv_heads * sum(layer.head_dim) for layer in loaded.geometry.kv_layers)
    whole = not decoder_layers(loaded)
    values = layers * context * width + layer * (layers if whole else 1)
    values += context * stored * (draws * pages * (layers if whole else 1) + _ERROR_HELD)
    # products of gradients with all types' errors, float64: `reads.Reads.squares`
    values += 2 * draws * pages * len(type_names()) * max(each.kv_heads for each in loaded.geometry.kv_layers) * context
    values += _LOGITS_HELD * (
        vocabulary * context if whole else max(vocabulary, min(LOGITS_AT_ONCE, vocabulary * context))
    )
    return 4 * values + _LIBRARIES


def check_gradient_memory(
    loaded: LoadedModel, context: int, draws: int, spans: bool = False, remedy: str | None = None
) -> None:
    """UserError where that isn't free. spans: whether gradients are told apart by pages. remedy: what the user can do; None: a
    shorter context."""
    pages = -(-context // PAGE_TOKENS) if spans else 1
    needed, free = gradient_memory(loaded, context, draws, pages), free_memory()
    if needed > free:
        fewer = " or --recent 0 (then no spans are chosen)" if spans else ""
        raise UserError(
            f"gradients of {context:,} tokens need about {needed / 2**30:.1f} GiB beside the weights, {free / 2**30:.1f} GiB are "
            f"free: {remedy or f'give a smaller -c than {context}'}{fewer}"
        )
