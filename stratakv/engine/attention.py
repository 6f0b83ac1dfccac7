"""The attention implementation "stratakv" of transformers: handles go to the packed kernel, the rest to the model's own."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from stratakv.cache.handle import PackedStates
from stratakv.cache.ragged import CannotBatchError, RaggedStates
from stratakv.kernels import ragged
from stratakv.kernels.attention import packed_attention

NAME = "stratakv"

# Arguments that change nothing here: the mask holds windows, padding and packed sequences already
_IN_THE_MASK = {
    "sliding_window",
    "position_ids",
    "cache_position",
    "use_cache",
    "is_causal",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "logits_to_keep",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "return_dict",
    "layer_idx",
}
_IMPLEMENTED = {"softcap", "s_aux"}


def use(model: PreTrainedModel) -> PreTrainedModel:
    """Let the model's attention read packed pages (attn_implementation "stratakv"); returns the model."""
    register()
    model.set_attn_implementation(NAME)
    return model


def register() -> None:
    """Make the name known to transformers: the attention function, and the mask function without which models get no mask."""
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' attention call: query [batch, q_heads, q_tokens, head_dim]; returns [batch, q_tokens, q_heads, v_dim]."""
    given = {name for name, value_ in kwargs.items() if value_ is not None}
    if isinstance(key, RaggedStates):
        if dropout or given - _IN_THE_MASK - _IMPLEMENTED or kwargs.get("is_causal") is False:
            raise CannotBatchError(f"{type(module).__name__} asks for attention that no kernel has")
        out = ragged.attention(
            query[0].transpose(0, 1),
            key.arena.layout,
            key.arena.pool,
            key.step.sequences,
            scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=kwargs.get("softcap"),
            sinks=kwargs.get("s_aux"),
        )
        return out[None], None
    is_causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    view = key.view_of if isinstance(key, PackedStates) else None
    if not isinstance(value, PackedStates) or value.view_of is not view:
        view = None
    if view is None or dropout or given - _IN_THE_MASK - _IMPLEMENTED or kwargs.get("output_attentions"):
        return _own_attention(module, query, key, value, attention_mask, causal, dropout, scaling, kwargs)
    out = packed_attention(
        query,
        view,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        mask=attention_mask,
        causal=causal,
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )
    return out.transpose(1, 2).contiguous(), None


def _own_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    dropout: float,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own eager attention on decoded tensors: slower, and right for whatever it was given."""
    key, value = (x.decoded() if isinstance(x, PackedStates) else x for x in (key, value))
    if mask is None and causal:
        q_tokens, tokens = query.shape[2], key.shape[2]
        mask = torch.ones(q_tokens, tokens, dtype=torch.bool, device=query.device).tril(tokens - q_tokens)[None, None]
    if mask is not None and mask.dtype == torch.bool:
        minimum = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, minimum)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise RuntimeError(
            f"{type(module).__name__} has no eager attention to fall back to; use attn_implementation='eager'"
        )
    result: tuple[torch.Tensor, torch.Tensor | None] = eager(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return result
