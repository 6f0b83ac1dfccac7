"""Decoder layers in two compiled calls around the model's own cache and attention, and whole steps in one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stratakv.cache import KVCache
from stratakv.weights.parts import LayerParts, UnknownPartError, layer_parts
from stratakv.weights.stack import Stack

# Layers whose code was read; a trial run at load has the last word
_LAYERS = (
    *("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "Phi3DecoderLayer"),
    *("Qwen2MoeDecoderLayer", "Qwen3MoeDecoderLayer", "GptOssDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer"),
    *("Gemma4TextDecoderLayer", "GraniteDecoderLayer", "SmolLM3DecoderLayer", "Olmo2DecoderLayer", "Olmo3DecoderLayer"),
)
_TOLERANCE = 0.02
_PROMPT = 5


def fuse_layers(model: Any) -> int:
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
    if not _agree(model, base, fused, stack):
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


class FusedLayer:
    """One decoder layer. Its `forward` takes the place of the module's."""

    def __init__(self, layer: Any, parts: LayerParts) -> None:
        self.layer, self.attention, self.original, self.parts = layer, layer.self_attn, layer.forward, parts
        options = {"softcap": getattr(layer.self_attn, "attn_logit_softcapping", None)}
        options["s_aux"] = getattr(layer.self_attn, "sinks", None)
        self._options = {name: value for name, value in options.items() if value is not None}

    def forward(
        self,
        hidden_states: torch.Tensor,
        per_layer_input: torch.Tensor | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As the decoder layer's: hidden_states [batch, tokens, width]. per_layer_input, shared_kv_states: Gemma 4's."""
        usual = position_embeddings is not None and not kwargs.get("output_attentions")
        usual = usual and hidden_states.dtype == torch.float32
        if not usual or (torch.is_grad_enabled() and hidden_states.requires_grad):
            own = () if self.parts.tail is None else (per_layer_input,)
            out: torch.Tensor = self.original(
                hidden_states,
                *own,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            return out
        module = self.attention
        x = hidden_states.clone(memory_format=torch.contiguous_format)
        q, k, v = self._enter(x, position_embeddings)  # type: ignore[arg-type]
        shared = kwargs.pop("shared_kv_states", None)
        if self.parts.shares is not None:
            k, v = shared[self.parts.shares]
        elif past_key_values is not None:
            k, v = past_key_values.update(k, v, module.layer_idx)
        if self.parts.stores is not None:
            shared[self.parts.stores] = k, v
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, _eager(module))
        attended, _ = attend(
            module,
            q,
            k,
            v,
            attention_mask,
            dropout=0.0,
            scaling=module.scaling,
            sliding_window=getattr(module, "sliding_window", None),
            position_ids=position_ids,
            **self._options,
            **kwargs,
        )
        attended = attended.reshape(*x.shape[:-1], -1).contiguous()
        rows = x.shape[0] * x.shape[1]
        self.parts.compiled.leave(attended.data_ptr(), rows, x.data_ptr(), torch.get_num_threads())
        x = x if self.parts.mlp is None else self.parts.mlp(x)
        return x if self.parts.tail is None else self.parts.tail(x, per_layer_input)

    def _enter(self, x: torch.Tensor, angles: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        batch, tokens, _ = x.shape
        heads, kv_heads, dim = self.parts.q_heads, self.parts.kv_heads, self.parts.dim
        q = torch.empty(batch, heads, tokens, dim)
        k, v = (torch.empty(batch, kv_heads, tokens, dim) for _ in range(2))
        cos, sin = (part.float().contiguous() for part in angles)
        self.parts.compiled.enter(
            x.data_ptr(),
            batch,
            tokens,
            cos.data_ptr(),
            sin.data_ptr(),
            cos.shape[0] * tokens,
            cos.shape[-1],
            1,
            q.data_ptr(),
            k.data_ptr(),
            v.data_ptr(),
            torch.get_num_threads(),
        )
        return q, k, v


def _eager(module: nn.Module) -> Any:
    return getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)


def _agree(model: Any, base: Any, fused: list[FusedLayer], stack: Stack | None) -> bool:
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
            expected, output = _run(base, ids, original, original)
            with _nudged(base.get_input_embeddings()):
                again, _ = _run(base, ids, original, original)
            for one in fused[:count]:
                one.layer.forward = one.forward
            step = original
            if stack is not None:
                stack.output, step = output, partial(stack.step, count)
            found, _ = _run(base, ids, original, step)
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


def _run(base: Any, ids: torch.Tensor, prompt: Any, step: Any) -> tuple[list[torch.Tensor], type]:
    """Last hidden states of a prompt and of one token after it, over a lossless cache; and the class that holds them."""
    cache = KVCache(base.config, "f32")
    outputs = [prompt(input_ids=ids[:, :_PROMPT], past_key_values=cache, use_cache=True)]
    outputs.append(step(input_ids=ids[:, _PROMPT:], past_key_values=cache, use_cache=True))
    return [output.last_hidden_state for output in outputs], type(outputs[0])
