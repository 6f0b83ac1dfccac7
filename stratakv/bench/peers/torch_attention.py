"""What torch itself offers for decode attention over dense K and V: the peers of `stratakv bench attention`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""query [1, q_heads, q_tokens, dim], K and V [1, kv_heads, tokens, dim] -> [1, q_heads, q_tokens, dim]."""


def sdpa(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """torch's scaled_dot_product_attention with enable_gqa: what a user gets who asks torch for GQA."""
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def sdpa_folded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """SDPA with the query heads of a kv head folded into rows, so that K and V are read once. One query token only."""
    kv_heads = key.shape[1]
    rows = query.view(1, kv_heads, -1, query.shape[-1])
    return F.scaled_dot_product_attention(rows, key, value).view_as(query)


def gqa_matmul(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Two batched matrix products with a float32 softmax between them, heads folded into rows. One query token only."""
    kv_heads = key.shape[1]
    rows = query.view(1, kv_heads, -1, query.shape[-1])
    logits = (rows @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    return (torch.softmax(logits, dim=-1).to(value.dtype) @ value).view_as(query)


# name -> (dtype, how)
DECODE_PEERS: dict[str, tuple[torch.dtype, Attention]] = {
    "torch SDPA bf16": (torch.bfloat16, sdpa),
    "torch SDPA f32": (torch.float32, sdpa),
    "torch SDPA bf16, heads folded": (torch.bfloat16, sdpa_folded),
    "torch GQA matmul bf16": (torch.bfloat16, gqa_matmul),
}


def prefill_peers(
    key: torch.Tensor, value: torch.Tensor, groups: int, q_tokens: int
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """SDPA over dense tensors for many queries at the end of the context: query -> output, by name.

    Whatever can be prepared is, outside the timing: the mask of a chunk, and K and V repeated for all query heads.
    """
    tokens = key.shape[2]
    whole = q_tokens == tokens
    mask = None if whole else torch.ones(q_tokens, tokens, dtype=torch.bool).tril(tokens - q_tokens)
    all_k, all_v = (x.repeat_interleave(groups, dim=1) for x in (key, value))

    def grouped(query: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=whole, enable_gqa=True)

    def repeated(query: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(query, all_k, all_v, attn_mask=mask, is_causal=whole)

    return {"torch SDPA bf16": grouped, "torch SDPA bf16, K and V repeated": repeated}
