"""Attention over packed pages: chooses a compiled kernel where one fits, and has the body in plain torch for all else.

The torch body is the default and the reference for every faster one.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stratakv.cache.handle import PackedView
from stratakv.cache.placed import starts
from stratakv.kernels import cpu_attention, prefill
from stratakv.kernels.choice import compiled_kernel, precise
from stratakv.kernels.sequences import FEW_QUERY_TOKENS, Sequences


def packed_attention(
    query: torch.Tensor,
    view: PackedView,
    *,
    scale: float,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention whose K and V are read from packed pages.

    query: [batch, q_heads, q_tokens, k_dim], q_heads a multiple of the view's kv_heads. mask: None, or boolean (True: may
    attend) or additive, broadcastable to [batch, q_heads, q_tokens, tokens]. causal: the last query sees the last token
    (only without a mask). softcap: logits become softcap * tanh(logits / softcap). sinks: [q_heads], one more logit a head
    that takes weight and gives nothing. Computed in float32; returns [batch, q_heads, q_tokens, v_dim] in query's dtype.

    Stored vectors are never un-rotated: q is rotated into K's stored basis once, the output out of V's once.
    """
    layout = view.store.layout
    differentiable = torch.is_grad_enabled() and query.requires_grad
    if differentiable or compiled_kernel(layout, view.store.device) is None:
        q = layout.k.rotate(query.float())
        return layout.v.unrotate(_torch_attention(q, view, scale, mask, causal, softcap, sinks)).to(query.dtype)
    batch, q_heads, q_tokens, _ = query.shape
    if sequences := _sequences(query, view, mask, causal):
        rows = query.squeeze(2) if q_tokens == 1 else query.transpose(1, 2).reshape(batch * q_tokens, q_heads, -1)
        out = cpu_attention.attend(
            rows, layout, sequences, scale=scale, softcap=softcap, sinks=sinks, precise=precise()
        )
        return out.view(batch, q_tokens, q_heads, -1).transpose(1, 2)
    if mask is not None and _is_causal(mask):
        mask, causal = None, True
    q = layout.k.rotate(query.float())
    q = q.to(torch.bfloat16) if query.dtype == torch.bfloat16 else q
    tokens = prefill.Tokens(layout, view.addresses, view.start, view.tokens)
    out = prefill.attend(q, tokens, scale=scale, mask=mask, causal=causal, softcap=softcap, sinks=sinks)
    return layout.v.unrotate(out).to(query.dtype)


def _sequences(query: torch.Tensor, view: PackedView, mask: torch.Tensor | None, causal: bool) -> Sequences | None:
    """What the queries see of the view's pages; None for many queries and for masks with holes."""
    batch, _, q_tokens, _ = query.shape
    if q_tokens > FEW_QUERY_TOKENS:
        return None
    intervals = (0, view.tokens) if mask is None else _intervals(mask)
    if intervals is None:
        return None
    page_start, query_start = starts(batch, view.addresses.shape[1], q_tokens)
    first = np.empty((batch, q_tokens), dtype=np.int32)
    last = np.empty((batch, q_tokens), dtype=np.int32)
    first[:] = intervals[0] + view.start
    last[:] = intervals[1] + view.start
    if causal and mask is None and q_tokens > 1:
        last -= np.arange(q_tokens - 1, -1, -1, dtype=np.int32)
    return Sequences(view.addresses.reshape(-1), page_start, query_start, first.reshape(-1), last.reshape(-1))


def _is_causal(mask: torch.Tensor) -> bool:
    """Whether a mask only says that each query sees all tokens up to its own, the last query the last token."""
    intervals = _intervals(mask)
    if intervals is None or bool(intervals[0].any()):
        return False
    q_tokens, tokens = mask.shape[-2:]
    return bool((intervals[1] == np.arange(tokens - q_tokens + 1, tokens + 1)).all())


def _intervals(mask: torch.Tensor) -> tuple[NDArray[np.int32], NDArray[np.int32]] | None:
    """A boolean mask [batch or 1, 1, q_tokens, tokens] as int32 [batch or 1, q_tokens] first and last, None if it has holes.

    Found once a mask, which all layers of a step share: kept on the tensor itself.
    """
    found: tuple[NDArray[np.int32], NDArray[np.int32]] | bool | None = getattr(mask, "_stratakv_intervals", None)
    if found is None:
        found = False
        if mask.dtype == torch.bool and mask.dim() == 4 and mask.shape[1] == 1:
            seen = mask[:, 0].to(torch.int32)
            count = seen.sum(-1, dtype=torch.int32)
            first = seen.argmax(-1).to(torch.int32)
            last = (mask.shape[-1] - seen.flip(-1).argmax(-1)).to(torch.int32)
            last = torch.where(count > 0, last, first)
            if bool((last - first == count).all()):
                found = (first.numpy(), last.numpy())
        mask._stratakv_intervals = found  # type: ignore[attr-defined]
    return found if isinstance(found, tuple) else None


def _torch_attention(
    q: torch.Tensor,
    view: PackedView,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    layout = view.store.layout
    k_packed, v_packed = view.packed()
    k = layout.k.decode_stored(k_packed, layout.k_dim)
    v = layout.v.decode_stored(v_packed, layout.v_dim)
    return dense_attention(q, k, v, scale, mask, causal, softcap, sinks)


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention over decoded K and V [batch, kv_heads, tokens, k_dim or v_dim], all in one basis: the reference."""
    if softcap is None and sinks is None and q.shape[2] > 1 and q.shape[-1] == v.shape[-1]:
        return _sdpa(q, k, v, scale, mask, causal)
    return _grouped(q, k, v, scale, mask, causal, softcap, sinks)


def _sdpa(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    """Many queries: torch's own kernel, whose working memory doesn't grow with q_tokens x tokens."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = (x[:, :, None].expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (k, v))
    if mask is None and causal and q.shape[2] != k.shape[2]:
        mask, causal = _causal_mask(q.shape[2], k.shape[2], q.device), False
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scale)


def _grouped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None,
    causal: bool,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Query heads of one kv head folded into rows of one matrix product: for a single query 10 times SDPA's speed."""
    batch, q_heads, q_tokens, _ = q.shape
    kv_heads, tokens = k.shape[1], k.shape[2]
    groups = q_heads // kv_heads
    logits = q.reshape(batch, kv_heads, groups * q_tokens, -1) @ k.transpose(-1, -2)
    logits = logits.view(batch, q_heads, q_tokens, tokens) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None and causal and q_tokens > 1:
        mask = _causal_mask(q_tokens, tokens, q.device)
    if mask is not None:
        logits = (
            logits.masked_fill(~mask, torch.finfo(torch.float32).min) if mask.dtype == torch.bool else logits + mask
        )
    if sinks is not None:
        sink = sinks.float().view(1, -1, 1, 1).expand(batch, -1, q_tokens, 1)
        weights = torch.softmax(torch.cat([logits, sink], dim=-1), dim=-1)[..., :-1]
    else:
        weights = torch.softmax(logits, dim=-1)
    out = weights.reshape(batch, kv_heads, groups * q_tokens, tokens) @ v
    return out.view(batch, q_heads, q_tokens, -1)


def _causal_mask(q_tokens: int, tokens: int, device: torch.device) -> torch.Tensor:
    """[q_tokens, tokens], True where a query may attend; the last query sees the last token."""
    return torch.ones(q_tokens, tokens, dtype=torch.bool, device=device).tril(tokens - q_tokens)
