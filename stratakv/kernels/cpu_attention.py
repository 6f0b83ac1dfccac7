"""Decode attention by the compiled kernels: block tables and queries in, the attended values out."""

from __future__ import annotations

from typing import Any

import torch

from stratakv.kernels.choice import kernel_name
from stratakv.kernels.cpu_layout import native_layout
from stratakv.kernels.native import native
from stratakv.kernels.sequences import Sequences
from stratakv.pages.layout import PageLayout


def attend(
    query: torch.Tensor,
    layout: PageLayout,
    sequences: Sequences,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    precise: bool = False,
    base: int = 0,
    stride: int = 1,
    kernel: str | None = None,
) -> torch.Tensor:
    """Attention of a few query tokens of each of some sequences over their pages, in one call.

    query: float32, float16 or bfloat16 [query tokens, q_heads, k_dim] on the CPU in the model's own basis, all sequences' one
    after another, strided as they come (values of a vector side by side); q_heads a multiple of the layout's kv_heads.
    sequences: whose they are, and what each sees. Page p of a block table begins at the address base + p * stride: pages of
    one pool, or, by the defaults, addresses themselves. softcap: logits become softcap * tanh(logits / softcap). sinks:
    [q_heads], one more logit a head that takes weight and gives nothing. precise: float32 products on decoded rows.

    Returns [query tokens, q_heads, v_dim] in query's dtype, contiguous, in the model's own basis; zeros where a query sees
    nothing. ValueError where shapes don't fit or a query sees tokens beyond its block table.
    """
    out = torch.empty(*query.shape[:2], layout.v_dim, dtype=query.dtype)
    module: Any = native()
    module.attend(
        kernel or kernel_name(),
        native_layout(layout),
        base,
        stride,
        query if query.stride(-1) == 1 else query.contiguous(),
        out,
        sequences.pages,
        sequences.page_start,
        sequences.query_start,
        sequences.first,
        sequences.last,
        None if sinks is None else sinks.detach().float().contiguous(),
        scale,
        softcap or 0.0,
        precise,
        torch.get_num_threads(),
    )
    return out
