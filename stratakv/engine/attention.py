"""The attention implementation "stratakv" of transformers: handles go to the packed kernel, the rest to the model's own."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from stratakv.engine.cache.handle import CannotBatchError, PackedStates
from stratakv.errors import UserError
from stratakv.kernels.choice import TORCH
from stratakv.kernels.kernel import Options
from stratakv.kernels.placing import Placed
from stratakv.kernels.spans import Mixture, Seen
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
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
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
    usual = not dropout and not unknown(kwargs)
    placed = key.placed if isinstance(key, PackedStates) else None
    is_causal = kwargs.get("is_causal")
    if placed is not None and placed.shape is None:
        if not usual or is_causal is False:
            raise CannotBatchError(f"{type(module).__name__} asks for attention that no kernel has")
        return _packed(query, placed, placed.causal(), scaling, kwargs), None
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    if not isinstance(value, PackedStates) or value.placed is not placed:
        placed = None
    if placed is None or not usual or kwargs.get("output_attentions") or not _fits(placed.step, query):
        options = _Own(attention_mask, causal, dropout, scaling, kwargs)
        mixture = None if placed is None else placed.mixture
        if mixture is None or query.shape[2] > mixture.tokens or len(mixture.blocks()) == 1:
            return _own_attention(module, query, key, value, options)
        check_known(module, kwargs)
        return _own_by_blocks(module, query, key, value, options, mixture)
    seen = placed.causal()
    if attention_mask is not None:
        seen = placed.under(attention_mask)
    elif not causal and query.shape[2] > 1:
        seen = placed.seeing_all()
    return _packed(query, placed, seen, scaling, kwargs), None


def unknown(kwargs: dict[str, Any]) -> set[str]:
    """What a model asks of its attention that no kernel has."""
    return {name for name, value in kwargs.items() if value is not None} - _IN_THE_MASK - _IMPLEMENTED


def check_known(module: torch.nn.Module, kwargs: dict[str, Any]) -> None:
    """UserError where such a thing is asked for, so that queries can't be attended block by block."""
    if names := ", ".join(sorted(unknown(kwargs))):
        raise UserError(f"{type(module).__name__} asks for {names}: that goes with a profile without spans only")


def _packed(
    query: torch.Tensor, placed: Placed, seen: tuple[Seen, ...], scaling: float | None, kwargs: dict[str, Any]
) -> torch.Tensor:
    """[batch, q_tokens, q_heads, v_dim]."""
    batch, q_heads, q_tokens, dim = query.shape
    rows = query.squeeze(2) if q_tokens == 1 else query.transpose(1, 2).reshape(-1, q_heads, dim)
    scale = dim**-0.5 if scaling is None else scaling
    options = Options(scale, softcap=kwargs.get("softcap"), sinks=kwargs.get("s_aux"))
    differentiable = torch.is_grad_enabled() and query.requires_grad
    out = placed.attend(rows, seen, options, TORCH if differentiable else None)
    return out.view(batch, q_tokens, q_heads, -1)


def _fits(step: Step, query: torch.Tensor) -> bool:
    """Whether the queries are of the tokens that the step stored: a layer that reads another one's K and V may have others."""
    return len(step.slots) == query.shape[0] * query.shape[2]


class _Own(NamedTuple):
    """What a model's own attention is told. causal: there is no mask, and the last query sees the last token."""

    mask: torch.Tensor | None
    causal: bool
    dropout: float
    scaling: float | None
    kwargs: dict[str, Any]


def _own_by_blocks(
    module: torch.nn.Module, query: torch.Tensor, key: Any, value: Any, options: _Own, mixture: Mixture
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """For each block of positions what its queries see, K and V being handles on layers with spans.

    query: of the step's last tokens; layers that read another one's K and V may leave out those whose logits nobody wants.
    """
    mask = _mask(query, key.shape[2], options)
    found, skipped = [], mixture.tokens - query.shape[2]
    for block, each in mixture.blocks():
        rows = slice(max(each.start - skipped, 0), each.stop - skipped)
        if rows.stop <= 0:
            continue
        part = options._replace(mask=None if mask is None else mask[..., rows, :], causal=False)
        found.append(_own_attention(module, query[:, :, rows], key.decoded(block), value.decoded(block), part))
    weights = [weight for _, weight in found if weight is not None]
    return torch.cat([out for out, _ in found], dim=1), torch.cat(weights, dim=2) if weights else None


def _own_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: _Own
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own eager attention on decoded tensors: slower, and right for whatever it was given."""
    key, value = (x.decoded() if isinstance(x, PackedStates) else x for x in (key, value))
    mask = _mask(query, key.shape[2], options)
    if mask is not None and mask.dtype == torch.bool:
        minimum = torch.finfo(query.dtype).min
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=query.device).masked_fill(~mask, minimum)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise RuntimeError(
            f"{type(module).__name__} has no eager attention to fall back to; use attn_implementation='eager'"
        )
    result: tuple[torch.Tensor, torch.Tensor | None] = eager(
        module, query, key, value, mask, dropout=options.dropout, scaling=options.scaling, **options.kwargs
    )
    return result


def _mask(query: torch.Tensor, tokens: int, options: _Own) -> torch.Tensor | None:
    if options.mask is not None or not options.causal:
        return options.mask
    q_tokens = query.shape[2]
    return torch.ones(q_tokens, tokens, dtype=torch.bool, device=query.device).tril(tokens - q_tokens)[None, None]
