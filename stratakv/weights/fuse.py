"""Which models run fused, layer by layer and in whole steps: tried at load against their own forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from stratakv.weights.fused_layer import FusedLayer
from stratakv.weights.parts import UnknownPartError, layer_parts
from stratakv.weights.stack import Stack

# Layers whose code was read; a trial run at load has the last word
_LAYERS = (
    *("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "Phi3DecoderLayer"),
    *("Qwen2MoeDecoderLayer", "Qwen3MoeDecoderLayer", "GptOssDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer"),
    *("Gemma4TextDecoderLayer", "GraniteDecoderLayer", "SmolLM3DecoderLayer", "Olmo2DecoderLayer", "Olmo3DecoderLayer"),
)
_TOLERANCE = 0.02
_PROMPT = 5


LosslessCache = Callable[[Any], Any]
"""From a model's config to a transformers cache that stores what it is given, and lets compiled steps write to it."""


def fuse_layers(model: Any, lossless: LosslessCache) -> int:
    """Let a model run fused whose decoder layers are all of known kinds; returns how many do.

    Its first layers, one of each kind at least, are run both ways on some tokens, a prompt and a step after it; where the
    outcomes differ, all stay as they are.
    """
    base = getattr(model, model.base_model_prefix, None)
    layers = getattr(base, "layers", None)
    if layers is None or not all(type(layer).__name__ in _LAYERS for layer in layers):
        return 0
    assert base is not None
    try:
        fused = [FusedLayer(layer, layer_parts(layer)) for layer in layers]
    except UnknownPartError:
        return 0
    stack = _stack(base, fused)
    if not _agree(model, base, fused, stack, lossless):
        return 0
    for one in fused:
        one.layer.forward = one.forward
    if stack is not None:
        base.forward = stack.forward
        base.norm.forward = stack.norm.forward
    return len(fused)


def _stack(base: Any, fused: list[FusedLayer]) -> Stack | None:
    """What runs whole steps in one call; None where layers only run by themselves."""
    try:
        return Stack(base, fused)
    except UnknownPartError:
        return None


def _agree(model: Any, base: Any, fused: list[FusedLayer], stack: Stack | None, lossless: LosslessCache) -> bool:
    """Whether a prompt and a step after it give the same both ways, through the first layers with all kinds among them."""
    kinds = [one.parts.kind for one in fused]
    count = max(kinds.index(kind) for kind in kinds) + 1
    layers, before = base.layers, model.config._attn_implementation
    vocabulary = int(base.config.vocab_size)
    ids = torch.randint(vocabulary, (1, _PROMPT + 1), generator=torch.Generator().manual_seed(0))
    original = base.forward
    model.set_attn_implementation("eager")
    base.layers = nn.ModuleList(list(layers)[:count])
    try:
        with torch.inference_mode():
            expected, output = _run(base, ids, lossless, original, original)
            with _nudged(base.get_input_embeddings()):
                again, _ = _run(base, ids, lossless, original, original)
            for one in fused[:count]:
                one.layer.forward = one.forward
            step = original
            if stack is not None:
                stack.output, step = output, partial(stack.step, count)
            found, _ = _run(base, ids, lossless, original, step)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError):
        return False
    finally:
        base.layers = layers
        for one in fused[:count]:
            one.layer.__dict__.pop("forward", None)
        model.set_attn_implementation(before)
    noise = max(_apart(a, b) for a, b in zip(expected, again, strict=True))
    return all(_apart(a, b) <= _TOLERANCE + 3 * noise for a, b in zip(expected, found, strict=True))


def _apart(expected: torch.Tensor, found: torch.Tensor) -> float:
    return float((expected - found).norm() / expected.norm())


@contextmanager
def _nudged(embedding: nn.Module) -> Iterator[None]:
    """Inputs another by a float's rounding: what packed activations make of it is the noise between two right ways."""
    generator = torch.Generator().manual_seed(1)
    handle = embedding.register_forward_hook(
        lambda _m, _a, x: x * (1 + 1e-6 * torch.randn(x.shape, generator=generator))
    )
    try:
        yield
    finally:
        handle.remove()


def _run(
    base: Any, ids: torch.Tensor, lossless: LosslessCache, prompt: Any, step: Any
) -> tuple[list[torch.Tensor], type]:
    """Last hidden states of a prompt and of one token after it, over a lossless cache; and the class that holds them."""
    cache = lossless(base.config)
    outputs = [prompt(input_ids=ids[:, :_PROMPT], past_key_values=cache, use_cache=True)]
    outputs.append(step(input_ids=ids[:, _PROMPT:], past_key_values=cache, use_cache=True))
    return [output.last_hidden_state for output in outputs], type(outputs[0])
