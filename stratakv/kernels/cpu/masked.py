"""Attention under a mask over packed pages: blocks of tokens are decoded into a small buffer, torch multiplies, the
partial softmaxes are merged by their log-sum-exp. Working memory doesn't grow with the context."""

from __future__ import annotations

from typing import Any

import torch

from stratakv.kernels.cpu.layout import Side, compiled
from stratakv.kernels.kernel import Options
from stratakv.kernels.native import native
from stratakv.kernels.step import MASKED, Rectangle, sees_nothing
from stratakv.pages.pool import Pool

BLOCK_TOKENS = 1024
_SIDES: tuple[Side, Side] = ("k", "v")


def attend(
    q: torch.Tensor, pool: Pool, shape: Rectangle, mask: torch.Tensor, options: Options, kernel: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """q: float32 or bfloat16 [batch, q_heads, q_tokens, k_dim] in K's stored basis; products are in its dtype, sums float32.

    mask: boolean or additive, [batch or 1, 1 or q_heads, q_tokens, tokens]. kernel: which compiled body decodes. Returns
    float32 [batch, q_heads, q_tokens, v_dim] in V's stored basis, zeros where a query sees nothing, and the log-sum-exp
    [batch, q_heads, q_tokens].
    """
    batch, q_heads, q_tokens, _ = q.shape
    state = _Softmax(batch, q_heads, q_tokens, pool.layout.v_dim)
    flash = options.softcap is None and pool.layout.k_dim == pool.layout.v_dim
    product = _flash if flash else _explicit
    for begin in range(0, shape.tokens, BLOCK_TOKENS):
        end = min(begin + BLOCK_TOKENS, shape.tokens)
        part: torch.Tensor | None = mask[..., begin:end]
        assert part is not None
        if part.dtype == torch.bool:
            if not bool(part.any()):
                continue
            part = None if bool(part.all()) else _additive(part, q.dtype)
        else:
            part = part.float().clamp(min=MASKED)
        k, v = (_decode(pool, shape, kernel, side, begin, end, q.dtype) for side in _SIDES)
        state.add(*product(q, k, v, options, part if part is None else part.to(q.dtype)))
    state.forget(sees_nothing(mask))
    return state.result(options.sinks)


def _additive(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, MASKED)


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

    def add(self, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Merge a block's output [.., tokens, dim] and log-sum-exp [.., tokens]."""
        old, merged = self.lse, torch.logaddexp(self.lse, lse)
        self.out.mul_((old - merged).exp_().unsqueeze(-1))
        self.out.addcmul_(out, (lse - merged).exp_().unsqueeze(-1))
        self.lse = merged

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
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's flash attention for CPUs; query heads of a kv head are folded into rows where no mask tells rows apart."""
    batch, q_heads, q_tokens, dim = q.shape
    groups = q_heads // k.shape[1]
    if mask is None:
        q = q.reshape(batch, k.shape[1], groups * q_tokens, dim)
    elif groups > 1:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, False, attn_mask=mask, scale=options.scale
    )
    return out.reshape(batch, q_heads, q_tokens, dim).float(), lse.reshape(batch, q_heads, q_tokens)


def _explicit(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits written out: for a softcap, and for V narrower than K."""
    batch, q_heads, q_tokens, dim = q.shape
    kv_heads, tokens = k.shape[1], k.shape[2]
    folded = q.reshape(batch, kv_heads, -1, dim)
    logits = (folded @ k.transpose(-1, -2)).float().view(batch, q_heads, q_tokens, tokens) * options.scale
    if options.softcap is not None:
        logits = options.softcap * torch.tanh(logits / options.softcap)
    if mask is not None:
        logits = logits + mask.float()
    lse = torch.logsumexp(logits, dim=-1)
    weights = (logits - lse.unsqueeze(-1)).exp_().to(v.dtype).view(batch, kv_heads, -1, tokens)
    return (weights @ v).float().view(batch, q_heads, q_tokens, -1), lse
