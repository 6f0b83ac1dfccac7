"""A decoder layer in two compiled calls around the model's own cache and attention."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stratakv.weights.parts import LayerParts


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
