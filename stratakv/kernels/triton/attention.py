"""Attention over pages: a tile of tokens is decoded once for all query rows, then multiplied by the matrix units.

Rows of a program are query tokens of one sequence times query heads of one kv head. The history is split over programs;
`merge` adds their parts up by their log-sum-exp.
"""

# mypy: ignore-errors
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl

from stratakv.kernels.triton.unpack import folded_scale, loaded_table, places, values


@triton.jit
def product(a, b, S: tl.constexpr):
    """a (float32 [M, n]) times b ([n, m], one side's values), float32. f32 is multiplied in three parts, and bf16, whose
    range f16 lacks, as tf32."""
    if S.rows == "f32":
        c = tl.dot(a, b, input_precision="tf32x3")
    elif S.rows == "bf16":
        c = tl.dot(a, b.to(tl.float32), input_precision="tf32")
    else:
        c = tl.dot(a.to(tl.float16), b)
    return c


@triton.jit(do_not_specialize=["tokens", "splits"])
def attend(
    q,
    out,
    sums,
    memory,
    k_table,
    v_table,
    pages,
    blocks,
    first,
    last,
    q_token,
    q_head,
    page_stride,
    tokens,
    splits,
    scale,
    softcap,
    K: tl.constexpr,
    V: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    TILE_BYTES: tl.constexpr,
    M: tl.constexpr,
    T: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """One split of the history for one block of query tokens and one kv head.

    q: floats, [tokens, q_heads, K.dim] by the strides q_token and q_head, in K's stored basis. out: float32 [splits, tokens,
    q_heads, V.dim], normalized; sums: float32 [splits, tokens, q_heads], log-sum-exp to base 2, -inf where nothing is seen.
    blocks: int32 [blocks, 3]: where the sequence's block table begins in pages (int32), the block's first query token, and
    the sequence's end of query tokens. scale: of scores, to base 2.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    table = pages + tl.load(blocks + block * 3)
    end = tl.load(blocks + block * 3 + 2)
    r = tl.arange(0, M)
    token = tl.load(blocks + block * 3 + 1) + r // GROUPS
    q_heads: tl.constexpr = KV_HEADS * GROUPS
    used = (r < M // GROUPS * GROUPS) & (token < end)
    low = tl.load(first + token, mask=used, other=2147483647)
    high = tl.load(last + token, mask=used, other=0)
    used &= low < high
    begin = tl.min(tl.where(used, low, 2147483647)) // T
    stop = tl.cdiv(tl.max(tl.where(used, high, 0)), T)
    inner_low = tl.max(tl.where(used, low, 0))
    inner_high = tl.min(tl.where(used, high, 2147483647))
    share = tl.cdiv(tl.maximum(stop - begin, 0), splits)
    begin += split * share
    stop = tl.minimum(begin + share, stop)

    d = places(K)
    at = token[:, None].to(tl.int64) * q_token + (head * GROUPS + r % GROUPS)[:, None] * q_head + d[None, :]
    x = tl.load(q + at, mask=used[:, None] & (d < K.dim)[None, :], other=0.0).to(tl.float32)
    # rows of largest value 1: any finite query fits in f16
    largest = tl.max(tl.abs(x), 1)
    largest = tl.where(largest > 0, largest, 1.0)
    x = x / largest[:, None]
    if K.rows == "":
        x = x.to(tl.float16)
    row_scale = largest * scale * K.unit

    width: tl.constexpr = V.padded
    acc = tl.zeros((M, width), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    k_entries = loaded_table(k_table, K)
    v_entries = loaded_table(v_table, V)
    side_tokens: tl.constexpr = K.page_tokens
    for i in range(begin, stop):
        page = tl.load(table + i * T // side_tokens).to(tl.int64)
        tile = memory + page * page_stride + head * TILE_BYTES
        position = i * T + tl.arange(0, T)
        t = i * T % side_tokens + tl.arange(0, T)  # T divides a page's tokens
        visible = used[:, None] & (position[None, :] >= low[:, None]) & (position[None, :] < high[:, None])
        edge = (i * T < inner_low) | (i * T + T > inner_high)
        if V.folded:  # codes are always finite, and weights are 0 where nothing is seen
            seen = t >= 0
        else:
            seen = tl.max(visible.to(tl.int32), 0) > 0
        k = values(tile, t, seen, k_entries, splits, K, T)
        s = product(x, tl.trans(k), K) * row_scale[:, None]
        if K.folded:
            s *= folded_scale(tile, t, seen, K)[None, :]
        if SOFTCAP:
            # softcap * tanh(s / softcap), s and the result to base 2
            e = tl.exp2(tl.abs(s) * (-2.0 / softcap))
            s = tl.where(s < 0, -1.0, 1.0) * (softcap * 1.4426950408889634) * ((1 - e) / (1 + e))
        if edge:  # in all other tiles every used row sees every token
            s = tl.where(visible, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - safe[:, None])
        keep = tl.exp2(top - safe)
        total = total * keep + tl.sum(p, 1)
        top = higher
        v = values(tile, t, seen, v_entries, splits, V, T)
        if V.folded:
            norms = folded_scale(tile, t, seen, V)
            # memory that nobody wrote may hold no number; what was stored is finite
            p *= tl.where(tl.abs(norms) < float("inf"), norms, 0.0)[None, :]
        acc = acc * keep[:, None] + product(p, v, V)

    some = used & (total > 0)
    acc = acc * (tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0) * V.unit)[:, None]
    result = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    row = (split * tokens + token).to(tl.int64) * q_heads + head * GROUPS + r % GROUPS
    stored = (r < M // GROUPS * GROUPS) & (token < end)
    d = places(V)
    tl.store(out + row[:, None] * V.dim + d[None, :], acc, mask=stored[:, None] & (d < V.dim)[None, :])
    tl.store(sums + row, result, mask=stored)


@triton.jit(do_not_specialize=["rows", "splits"])
def merge(
    parts,
    sums,
    sinks,
    out,
    lse,
    rows,
    q_heads,
    splits,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    SINKS: tl.constexpr,
    LSE: tl.constexpr,
):
    """The splits' parts of a (query token, query head) added up. parts, sums: as `attend` stores them. out: float32 [rows,
    DIM]; lse: float32 [rows], natural."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, PADDED)
    acc = tl.zeros((PADDED,), tl.float32)
    top = tl.load(sums + row)
    for split in range(1, splits):
        top = tl.maximum(top, tl.load(sums + split * rows + row))
    seen = top > float("-inf")
    if SINKS:
        sink = tl.load(sinks + row % q_heads) * 1.4426950408889634
        top = tl.where(seen, tl.maximum(top, sink), 0.0)
        total = tl.exp2(sink - top)
    else:
        top = tl.where(seen, top, 0.0)
        total = 0.0
    for split in range(splits):
        weight = tl.exp2(tl.load(sums + split * rows + row) - top)
        part = tl.load(parts + (split * rows + row) * DIM + d, mask=d < DIM, other=0.0)
        acc += weight * part
        total += weight
    total = tl.where(seen, total, 1.0)
    tl.store(out + row * DIM + d, acc / total, mask=d < DIM)
    if LSE:
        tl.store(lse + row, tl.where(seen, (top + tl.log2(total)) * 0.6931471805599453, float("-inf")))
