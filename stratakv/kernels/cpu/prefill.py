"""Attention of many queries over packed pages: blocks of tokens are decoded into a small buffer, torch multiplies, the
partial softmaxes are merged by their log-sum-exp. Working memory doesn't grow with the context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from stratakv.kernels.cpu.layout import Side, compiled
from stratakv.kernels.kernel import Options
from stratakv.kernels.native import native
from stratakv.kernels.step import Rectangle
from stratakv.pages.pool import Pool

BLOCK_TOKENS = 1024
_SIDES: tuple[Side, Side] = ("k", "v")
_MASKED = -1e30  # an additive mask whose rows stay finite where a block shows a query nothing


def attend(
    q: torch.Tensor,
    pool: Pool,
    shape: Rectangle,
    options: Options,
    kernel: str,
    *,
    mask: torch.Tensor | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q: float32 or bfloat16 [batch, q_heads, q_tokens, k_dim] in K's stored basis; products are in its dtype, sums float32.

    mask: boolean or additive, [batch or 1, 1 or q_heads, q_tokens, tokens]. Without one the last query sees the last
    token, each one those up to its own; window: itself and the window - 1 tokens before it. kernel: which compiled body
    decodes. Returns float32 [batch, q_heads, q_tokens, v_dim] in V's stored basis, zeros where a query sees nothing,
    and the log-sum-exp [batch, q_heads, q_tokens].
    """
    batch, q_heads, q_tokens, _ = q.shape
    state = _Softmax(batch, q_heads, q_tokens, pool.layout.v_dim)
    flash = options.softcap is None and pool.layout.k_dim == pool.layout.v_dim
    product = _flash if flash else _explicit
    own = max(shape.tokens - q_tokens, 0)  # first token that belongs to the queries themselves
    for begin, end in _blocks(shape.tokens, own):
        # queries low ... high - 1 see something of the block
        low, high, part = 0, q_tokens, None
        if mask is not None:
            part = mask[..., begin:end]
            if part.dtype == torch.bool:
                if not bool(part.any()):
                    continue
                part = None if bool(part.all()) else _additive(part, q.dtype)
        elif window is not None:
            low, high = max(0, begin - own), min(q_tokens, end + window - 1 - own)
            if low >= high:
                continue
            distance = torch.arange(low + own, high + own)[:, None] - torch.arange(begin, end)
            seen = (distance >= 0) & (distance < window)
            part = None if bool(seen.all()) else _additive(seen[None, None], q.dtype)
        k, v = (_decode(pool, shape, kernel, side, begin, end, q.dtype) for side in _SIDES)
        if part is not None or mask is not None or window is not None or begin < own:
            part = part if part is None else part.to(q.dtype)
            state.add(low, *product(q[:, :, low:high], k, v, options, part, False))
            continue
        low, high = begin - own, end - own
        state.add(low, *product(q[:, :, low:high], k, v, options, None, True))
        if high < q_tokens:
            state.add(high, *product(q[:, :, high:], k, v, options, None, False))
    if mask is not None:
        state.forget(_sees_nothing(mask))
    return state.result(options.sinks)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, _MASKED)


def _blocks(tokens: int, own: int) -> Iterator[tuple[int, int]]:
    """Blocks that don't mix tokens before and after `own`, so that causality is a matter of whole blocks."""
    for low, high in ((0, own), (own, tokens)):
        for begin in range(low, high, BLOCK_TOKENS):
            yield begin, min(begin + BLOCK_TOKENS, high)


def _sees_nothing(mask: torch.Tensor) -> torch.Tensor:
    """[batch or 1, 1 or q_heads, q_tokens]."""
    return ~mask.any(-1) if mask.dtype == torch.bool else (mask <= _MASKED).all(-1)


def _decode(
    pool: Pool, shape: Rectangle, kernel: str, side: Side, begin: int, end: int, dtype: torch.dtype
) -> torch.Tensor:
    """K or V of tokens begin .. end in the stored basis, [batch, kv_heads, tokens, dim]."""
    layout = pool.layout
    dim = layout.k_dim if side == "k" else layout.v_dim
    out = torch.empty(len(shape.tables), layout.kv_heads, end - begin, dim, dtype=dtype)
    half = dtype == torch.bfloat16
    module: Any = native()
    module.decode(
        kernel,
        compiled(pool),
        side == "k",
        pool.base,
        pool.stride,
        shape.tables,
        shape.start + begin,
        None if half else out,
        out.view(torch.int16) if half else None,
        torch.get_num_threads(),
    )
    return out


class _Softmax:
    """A softmax over tokens that come in blocks: the output so far and its log-sum-exp (Milakov and Gimelshein, 2018)."""

    def __init__(self, batch: int, heads: int, tokens: int, dim: int) -> None:
        self.out = torch.zeros(batch, heads, tokens, dim)
        self.lse = torch.full((batch, heads, tokens), -torch.inf)

    def add(self, first: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Merge a block's output [.., tokens, dim] and log-sum-exp [.., tokens] for the queries from `first` on."""
        here = slice(first, first + out.shape[2])
        old, merged = self.lse[:, :, here], torch.logaddexp(self.lse[:, :, here], lse)
        self.out[:, :, here].mul_((old - merged).exp_().unsqueeze(-1))
        self.out[:, :, here].addcmul_(out, (lse - merged).exp_().unsqueeze(-1))
        self.lse[:, :, here] = merged

    def forget(self, rows: torch.Tensor) -> None:
        """Queries [batch or 1, 1 or heads, tokens] that saw nothing but masks."""
        self.out.masked_fill_(rows.unsqueeze(-1), 0.0)
        self.lse.masked_fill_(rows, -torch.inf)

    def result(self, sinks: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The output and the log-sum-exp; sinks [heads] take weight and give nothing."""
        if sinks is None:
            return self.out, self.lse
        logits = sinks.float()[None, :, None]
        return self.out * torch.sigmoid(self.lse - logits).unsqueeze(-1), torch.logaddexp(self.lse, logits)


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options, mask: torch.Tensor | None, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's flash attention for CPUs; query heads of a kv head are folded into rows where no mask tells rows apart."""
    batch, q_heads, q_tokens, dim = q.shape
    groups = q_heads // k.shape[1]
    if mask is None and not causal:
        q = q.reshape(batch, k.shape[1], groups * q_tokens, dim)
    elif groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask, scale=options.scale
    )
    return out.reshape(batch, q_heads, q_tokens, dim).float(), lse.reshape(batch, q_heads, q_tokens)


def _explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options, mask: torch.Tensor | None, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits written out: for a softcap, and for V narrower than K."""
    batch, q_heads, q_tokens, dim = q.shape
    kv_heads, tokens = k.shape[1], k.shape[2]
    folded = q.reshape(batch, kv_heads, -1, dim)
    logits = (folded @ k.transpose(-1, -2)).float().view(batch, q_heads, q_tokens, tokens) * options.scale
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    if causal:
        logits = logits.masked_fill(torch.ones(q_tokens, tokens, dtype=torch.bool).triu(1), _MASKED)
    if mask is not None:
        logits = logits + mask.float()
    lse = torch.logsumexp(logits, dim=-1)
    weights = (logits - lse.unsqueeze(-1)).exp_().to(v.dtype).view(batch, kv_heads, -1, tokens)
    return (weights @ v).float().view(batch, q_heads, q_tokens, -1), lse
