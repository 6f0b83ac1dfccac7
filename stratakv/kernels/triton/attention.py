"""Attention over pages: a tile of tokens is decoded once for all query rows, then multiplied by the matrix units.

Rows of a program are query tokens of one sequence times query heads of one kv head. The history is split over programs;
`merge` adds their parts up by their log-sum-exp.
"""

# mypy: ignore-errors
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl

from stratakv.kernels.triton.unpack import folded_scale, in_quads, loaded_table, magnitude, places, values


@triton.jit
def by_row(x, TURNED: tl.constexpr):
    """A number a row, against scores."""
    if TURNED:
        found = x[None, :]
    else:
        found = x[:, None]
    return found


@triton.jit
def by_token(x, TURNED: tl.constexpr):
    """A number a token, against scores."""
    if TURNED:
        found = x[:, None]
    else:
        found = x[None, :]
    return found


@triton.jit
def product(a, b, S: tl.constexpr, TURNED: tl.constexpr):
    """a (float32, of rows) times b (one side's values), or, turned, b times a; float32. f32 is multiplied in three parts, and
    bf16, whose range f16 lacks, as tf32."""
    precision: tl.constexpr = "tf32x3" if S.rows == "f32" else "tf32"
    if S.rows == "bf16":
        b = b.to(tl.float32)
    elif S.rows != "f32":
        a = a.to(tl.float16)
    if TURNED:
        c = tl.dot(b, a, input_precision=precision)
    else:
        c = tl.dot(a, b, input_precision=precision)
    return c


@triton.jit
def scores_by_parts(
    q, rows, used, tile, t, seen, S: tl.constexpr, M: tl.constexpr, T: tl.constexpr, TURNED: tl.constexpr
):
    """Queries times K, both loaded S.part values at a time: a query's three parts of tf32 would fill the registers, and so they
    do where the loop is unrolled, since loads are moved to the front. rows: where a row of queries begins, [M]."""
    part: tl.constexpr = S.part
    dim: tl.constexpr = S.dim
    floats = (tile + S.offset).to(tl.pointer_type(tl.float32)) + t[:, None] * S.dim
    if TURNED:
        s = tl.zeros((T, M), tl.float32)
    else:
        s = tl.zeros((M, T), tl.float32)
    for begin in tl.range(0, dim, part, num_stages=1):
        d = begin + tl.arange(0, part)
        x = tl.load(q + rows[:, None] + d[None, :], mask=used[:, None] & (d < S.dim)[None, :], other=0.0).to(tl.float32)
        k = tl.load(floats + d[None, :], mask=seen[:, None] & (d < S.dim)[None, :], other=0.0)
        if TURNED:
            x = tl.trans(x)
        else:
            k = tl.trans(k)
        s += product(x, k, S, TURNED)
    return s


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
    QUERIES: tl.constexpr,
    T: tl.constexpr,
    TURNED: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """One split of the history for one block of query tokens and one kv head.

    q: floats, [tokens, q_heads, K.dim] by the strides q_token and q_head, in K's stored basis. out: float32 [splits, tokens,
    q_heads, V.dim], normalized; sums: float32 [splits, tokens, q_heads], log-sum-exp to base 2, -inf where nothing is seen.
    blocks: int32 [blocks, 3]: where the sequence's block table begins in pages (int32), the block's first query token, and
    the sequence's end of query tokens. scale: of scores, to base 2. QUERIES: query tokens of a program. TURNED: scores are
    [T, M] instead of [M, T], sums [values, M]: the matrix units' least is 16 by 8, and few rows fill 8.
    """
    block = tl.program_id(0)
    head = tl.program_id(1)
    split = tl.program_id(2)
    table = pages + tl.load(blocks + block * 3)
    end = tl.load(blocks + block * 3 + 2)
    r = tl.arange(0, M)
    token = tl.load(blocks + block * 3 + 1) + r // GROUPS
    q_heads: tl.constexpr = KV_HEADS * GROUPS
    used = (r < QUERIES * GROUPS) & (token < end)
    low = tl.load(first + token, mask=used, other=2147483647)
    high = tl.load(last + token, mask=used, other=0)
    used &= low < high
    lowest = tl.min(tl.where(used, low, 2147483647))
    highest = tl.max(tl.where(used, high, 0))
    begin = lowest // T
    stop = tl.cdiv(highest, T)
    inner_low = tl.max(tl.where(used, low, 0))
    inner_high = tl.min(tl.where(used, high, 2147483647))
    share = tl.cdiv(tl.maximum(stop - begin, 0), splits)
    begin += split * share
    stop = tl.minimum(begin + share, stop)

    # wgmma and tcgen05, which multiply 64 rows or more, take K from shared memory
    quads: tl.constexpr = M < 64 and K.rows == ""
    d = places(K)
    if quads:
        d = tl.reshape(in_quads(d[None, :]), (K.padded,))
    rows = token.to(tl.int64) * q_token + (head * GROUPS + r % GROUPS).to(tl.int64) * q_head
    if K.part > 0:
        row_scale = tl.full((M,), 1.0, tl.float32) * scale
    else:
        at = rows[:, None] + d[None, :]
        x = tl.load(q + at, mask=used[:, None] & (d < K.dim)[None, :], other=0.0).to(tl.float32)
        # rows of largest value 1: any finite query fits in f16
        largest = tl.max(tl.abs(x), 1)
        largest = tl.where(largest > 0, largest, 1.0)
        x = x / largest[:, None]
        if K.rows == "":
            x = x.to(tl.float16)
        row_scale = largest * scale * K.factor
        if TURNED:
            x = tl.trans(x)

    width: tl.constexpr = V.padded
    axis: tl.constexpr = 0 if TURNED else 1
    if TURNED:
        acc = tl.zeros((width, M), tl.float32)
        total = tl.zeros((T, M), tl.float32)  # added up at the end
    else:
        acc = tl.zeros((M, width), tl.float32)
        total = tl.zeros((M,), tl.float32)
    top = tl.full((M,), float("-inf"), tl.float32)
    k_entries = loaded_table(k_table, K)
    v_entries = loaded_table(v_table, V)
    side_tokens: tl.constexpr = K.page_tokens
    for i in range(begin, stop):
        page = tl.load(table + i * T // side_tokens).to(tl.int64)
        tile = memory + page * page_stride + head * TILE_BYTES
        position = i * T + tl.arange(0, T)
        t = i * T % side_tokens + tl.arange(0, T)  # T divides a page's tokens
        within = by_token(position, TURNED)
        visible = by_row(used, TURNED) & (within >= by_row(low, TURNED)) & (within < by_row(high, TURNED))
        edge = (i * T < inner_low) | (i * T + T > inner_high)
        if V.folded:  # codes are always finite, and weights are 0 where nothing is seen
            seen = t >= 0
        elif QUERIES == 1:
            seen = (position >= lowest) & (position < highest)
        else:
            seen = tl.max(visible.to(tl.int32), 1 - axis) > 0
        if K.part > 0:
            s = scores_by_parts(q, rows, used, tile, t, seen, K, M, T, TURNED)
        else:
            k = values(tile, t, seen, k_entries, splits, K, T)
            if quads:
                k = in_quads(k)
            if not TURNED:
                k = tl.trans(k)
            s = product(x, k, K, TURNED)
        s *= by_row(row_scale, TURNED)
        if K.folded:
            s *= by_token(folded_scale(tile, t, seen, K).to(tl.float32), TURNED)
        if SOFTCAP:
            # softcap * tanh(s / softcap), s and the result to base 2
            e = tl.exp2(tl.abs(s) * (-2.0 / softcap))
            s = tl.where(s < 0, -1.0, 1.0) * (softcap * 1.4426950408889634) * ((1 - e) / (1 + e))
        if edge:  # in all other tiles every used row sees every token
            s = tl.where(visible, s, float("-inf"))
        reached = s
        if V.folded:
            norms = folded_scale(tile, t, seen, V)
            # weights times norms become f16: the largest is about 1, or small ones would be lost where norms are small
            reached += by_token(magnitude(norms), TURNED)
        higher = tl.maximum(top, tl.max(reached, axis))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        p = tl.exp2(s - by_row(safe, TURNED))
        keep = tl.exp2(top - safe)
        if TURNED:
            total = total * keep[None, :] + p
        else:
            total = total * keep + tl.sum(p, 1)
        top = higher
        v = values(tile, t, seen, v_entries, splits, V, T)
        if V.folded:
            norms = norms.to(tl.float32)
            # memory that nobody wrote may hold no number; what was stored is finite
            p *= by_token(tl.where(tl.abs(norms) < float("inf"), norms, 0.0), TURNED)
        if TURNED:
            v = tl.trans(v)
        acc = acc * by_row(keep, TURNED) + product(p, v, V, TURNED)

    if TURNED:
        total = tl.sum(total, 0)
    some = used & (total > 0)
    acc = acc * by_row(tl.where(some, 1.0 / tl.where(some, total, 1.0), 0.0) * V.factor, TURNED)
    result = tl.where(some, top + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
    row = (split * tokens + token).to(tl.int64) * q_heads + head * GROUPS + r % GROUPS
    stored = (r < QUERIES * GROUPS) & (token < end)
    d = places(V)
    at = by_row(row, TURNED) * V.dim + by_token(d, TURNED)
    tl.store(out + at, acc, mask=by_row(stored, TURNED) & by_token(d < V.dim, TURNED))
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
    total = 0.0
    if SINKS:
        sink = tl.load(sinks + row % q_heads) * 1.4426950408889634
        top = tl.maximum(top, sink)
    some = top > float("-inf")  # something is seen, or there is a sink: it counts where nothing is, too
    top = tl.where(some, top, 0.0)
    if SINKS:
        total = tl.exp2(sink - top)
    for split in range(splits):
        weight = tl.exp2(tl.load(sums + split * rows + row) - top)
        part = tl.load(parts + (split * rows + row) * DIM + d, mask=d < DIM, other=0.0)
        acc += weight * part
        total += weight
    total = tl.where(some, total, 1.0)
    tl.store(out + row * DIM + d, acc / total, mask=d < DIM)
    if LSE:
        tl.store(lse + row, tl.where(some, (top + tl.log2(total)) * 0.6931471805599453, float("-inf")))
