"""The attention implementation "stratakv" of transformers: handles go to the packed kernel, the rest to the model's own."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from stratakv.engine.cache.handle import CannotBatchError, PackedStates
from stratakv.kernels.choice import TORCH
from stratakv.kernels.kernel import Kernel, Options
from stratakv.kernels.placing import Placed
from stratakv.kernels.step import Step

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
    usual = not dropout and not given - _IN_THE_MASK - _IMPLEMENTED
    placed = key.placed if isinstance(key, PackedStates) else None
    is_causal = kwargs.get("is_causal")
    if placed is not None and placed.step.rectangle is None:
        if not usual or is_causal is False:
            raise CannotBatchError(f"{type(module).__name__} asks for attention that no kernel has")
        return _packed(query, placed, placed.step, scaling, kwargs), None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    if not isinstance(value, PackedStates) or value.placed is not placed:
        placed = None
    if placed is None or not usual or kwargs.get("output_attentions") or not _fits(placed.step, query):
        return _own_attention(module, query, key, value, attention_mask, causal, dropout, scaling, kwargs)
    step = placed.step
    if attention_mask is not None:
        step = step.under(attention_mask)
    elif not causal and query.shape[2] > 1:
        step = step.seeing_all()
    return _packed(query, placed, step, scaling, kwargs), None


def _packed(
    query: torch.Tensor, placed: Placed, step: Step, scaling: float | None, kwargs: dict[str, Any]
) -> torch.Tensor:
    """[batch, q_tokens, q_heads, v_dim]."""
    batch, q_heads, q_tokens, dim = query.shape
    rows = query.squeeze(2) if q_tokens == 1 else query.transpose(1, 2).reshape(-1, q_heads, dim)
    scale = dim**-0.5 if scaling is None else scaling
    options = Options(scale, softcap=kwargs.get("softcap"), sinks=kwargs.get("s_aux"))
    differentiable = torch.is_grad_enabled() and query.requires_grad
    kernel: Kernel = TORCH if differentiable else placed.kernel
    return kernel.attend(rows, placed.pool, step, options).out.view(batch, q_tokens, q_heads, -1)


def _fits(step: Step, query: torch.Tensor) -> bool:
    """Whether the queries are of the tokens that the step stored: a layer that reads another one's K and V may have others."""
    return len(step.slots) == query.shape[0] * query.shape[2]


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
