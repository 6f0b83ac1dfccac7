"""Plain torch: the kernel that works everywhere and for every type, and the oracle of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from stratakv.kernels.converting import convert
from stratakv.kernels.kernel import Attended, Options, Part, attend_apart
from stratakv.kernels.step import MASKED, Rectangle, Step, sees_nothing
from stratakv.pages.layout import PageLayout
from stratakv.pages.pool import Pool

Visible = tuple[torch.Tensor | None, bool]
"""(mask, False), or (None, whether causal)."""


@dataclass(frozen=True)
class Torch:
    """The types' own encoding; attention over decoded K and V, differentiable in the query. Computed in float32."""

    name: str = "torch"

    def refuses(self, layout: PageLayout, device: torch.device) -> str | None:
        """See Kernel: nothing."""
        return None

    def append(
        self, pool: Pool, key: torch.Tensor, value: torch.Tensor, slots: NDArray[np.int64], status: torch.Tensor
    ) -> None:
        """See Kernel."""
        k, k_code = pool.layout.k.encode_with_status(key.detach())
        v, v_code = pool.layout.v.encode_with_status(value.detach())
        status.clamp_(min=torch.stack([k_code, v_code]))
        pool.write_tokens(slots, torch.cat([k, v], dim=-1))

    def attend(self, query: torch.Tensor, pool: Pool, step: Step, options: Options, *, lse: bool = False) -> Attended:
        """See Kernel. Stored vectors are never un-rotated: q is rotated into K's basis once, the output out of V's once."""
        if step.rectangle is not None:
            return _even(query, pool, step, step.rectangle, options, lse)
        if not len(step):
            return Attended(
                _nothing(query, pool, 0), torch.empty(0, query.shape[1], device=query.device) if lse else None
            )
        parts = [_one(query, pool, step, s, options, lse) for s in range(len(step))]
        sums = torch.cat([part.lse for part in parts if part.lse is not None]) if lse else None
        return Attended(torch.cat([part.out for part in parts]), sums)

    def attend_both(self, query: torch.Tensor, written: Part, other: Part, options: Options) -> torch.Tensor:
        """See Kernel."""
        return attend_apart(query, ((self, written), (self, other)), options).out

    def convert(self, source: Pool, target: Pool, pairs: Sequence[tuple[int, int]], status: torch.Tensor) -> None:
        """See Kernel."""
        convert(self, source, target, pairs, status)


def _even(query: torch.Tensor, pool: Pool, step: Step, shape: Rectangle, options: Options, lse: bool) -> Attended:
    """Equally long sequences at once."""
    queries = query.unflatten(0, (len(step), -1)).transpose(1, 2)
    seen: Visible = step.mask, False
    if step.mask is None:
        first, last = (torch.from_numpy(ends.reshape(len(step), -1) - shape.start) for ends in (step.first, step.last))
        seen = _seen(first, last, shape.tokens, query.device)
    return _attended(queries, pool, shape, seen, options, lse)


def _one(query: torch.Tensor, pool: Pool, step: Step, s: int, options: Options, lse: bool) -> Attended:
    """Sequence s alone."""
    here = slice(int(step.query_start[s]), int(step.query_start[s + 1]))
    table = step.pages[step.page_start[s] : step.page_start[s + 1]]
    tokens = int(step.last[here].max(initial=0))
    if tokens > len(table) * pool.layout.page_tokens:
        raise ValueError("a query sees tokens that its block table doesn't hold")
    if tokens == 0:
        count = here.stop - here.start
        sums = _sums_of_nothing(query, options).expand(count, -1) if lse else None
        return Attended(_nothing(query, pool, count), sums)
    first, last = (torch.from_numpy(ends[here])[None] for ends in (step.first, step.last))
    seen, shape = _seen(first, last, tokens, query.device), Rectangle(table[None], 0, tokens)
    return _attended(query[here].transpose(0, 1)[None], pool, shape, seen, options, lse)


def _nothing(query: torch.Tensor, pool: Pool, count: int) -> torch.Tensor:
    return query.new_zeros(count, query.shape[1], pool.layout.v_dim)


def _sums_of_nothing(query: torch.Tensor, options: Options) -> torch.Tensor:
    """The log-sum-exp of a query that sees no token: of the sink alone, float32 [q_heads]."""
    if options.sinks is not None:
        return options.sinks.float()
    return torch.full((query.shape[1],), -torch.inf, device=query.device)


def _seen(first: torch.Tensor, last: torch.Tensor, tokens: int, device: torch.device) -> Visible:
    """What queries see of so many tokens. first, last: [batch, q_tokens]."""
    q_tokens = first.shape[1]
    if not bool(first.any()):
        if bool((last == tokens).all()):
            return None, False
        if bool((last == torch.arange(tokens - q_tokens + 1, tokens + 1)).all()):
            return None, True
    position = torch.arange(tokens)
    return ((position >= first[..., None]) & (position < last[..., None]))[:, None].to(device), False


def _attended(
    queries: torch.Tensor, pool: Pool, shape: Rectangle, seen: Visible, options: Options, lse: bool
) -> Attended:
    """queries: [batch, q_heads, q_tokens, k_dim]."""
    mask, causal = seen
    layout = pool.layout
    rows = pool.read_tokens(shape.tables, shape.start, shape.tokens)
    k = layout.k.decode_stored(rows[..., : layout.k_bytes], layout.k_dim)
    v = layout.v.decode_stored(rows[..., layout.k_bytes :], layout.v_dim)
    nothing = None if mask is None else sees_nothing(mask)
    if mask is not None and mask.dtype == torch.bool:
        # what no query sees may be anything
        k, v = (torch.where(mask.any(dim=(1, 2))[:, None, :, None], x, 0.0) for x in (k, v))
    elif mask is not None:
        mask = mask.float().clamp(min=MASKED)
    out, sums = dense_attention(layout.k.rotate(queries.float()), k, v, mask, causal, options, lse)
    out = layout.v.unrotate(out)
    if nothing is not None:
        out = torch.where(nothing.unsqueeze(-1), 0.0, out)
        sums = sums if sums is None else torch.where(nothing, _sums_of_nothing(queries, options)[:, None], sums)
    out = out.transpose(1, 2).flatten(0, 1).to(queries.dtype).contiguous()
    return Attended(out, sums.transpose(1, 2).flatten(0, 1) if sums is not None and lse else None)


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    options: Options,
    lse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over decoded K and V [batch, kv_heads, tokens, k_dim or v_dim], all in one basis: the reference.

    q: [batch, q_heads, q_tokens, k_dim]. mask: boolean or additive, broadcastable to [batch, q_heads, q_tokens,
    tokens]. causal: the last query sees the last token (only without a mask). The log-sum-exp [batch, q_heads,
    q_tokens] where it is asked for.
    """
    plain = options.softcap is None and options.sinks is None and not lse
    if plain and q.shape[2] > 1 and q.shape[-1] == v.shape[-1]:
        return _sdpa(q, k, v, options.scale, mask, causal), None
    return _grouped(q, k, v, mask, causal, options)


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
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool, options: Options
) -> tuple[torch.Tensor, torch.Tensor]:
    """Query heads of one kv head folded into rows of one matrix product: for a single query 10 times SDPA's speed."""
    batch, q_heads, q_tokens, _ = q.shape
    kv_heads, tokens = k.shape[1], k.shape[2]
    groups = q_heads // kv_heads
    logits = q.reshape(batch, kv_heads, groups * q_tokens, -1) @ k.transpose(-1, -2)
    logits = logits.view(batch, q_heads, q_tokens, tokens) * options.scale
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    if mask is None and causal and q_tokens > 1:
        mask = _causal_mask(q_tokens, tokens, q.device)
    if mask is not None:
        logits = (
            logits.masked_fill(~mask, torch.finfo(torch.float32).min) if mask.dtype == torch.bool else logits + mask
        )
    if options.sinks is not None:
        sink = options.sinks.float().view(1, -1, 1, 1).expand(batch, -1, q_tokens, 1)
        logits = torch.cat([logits, sink], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., :tokens]
    out = weights.reshape(batch, kv_heads, groups * q_tokens, tokens) @ v
    return out.view(batch, q_heads, q_tokens, -1), torch.logsumexp(logits, dim=-1)


def _causal_mask(q_tokens: int, tokens: int, device: torch.device) -> torch.Tensor:
    """[q_tokens, tokens], True where a query may attend; the last query sees the last token."""
    return torch.ones(q_tokens, tokens, dtype=torch.bool, device=device).tril(tokens - q_tokens)
