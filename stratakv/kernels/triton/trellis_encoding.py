"""Vectors into pages of trellis types: the cheapest way through 8 states, to the bit (kvtypes/trellis.py, kvtypes/viterbi.py).

Three kernels: coordinates are rounded to bins, as `encoding` rotates them; then each thread follows the paths of one block, 64
steps and a block's; then the codes are stored. Between them bins and bits lie as [step of the path][block], so that threads
side by side load what is side by side.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from stratakv.kernels.triton.encoding import (
    length_of,
    loaded_rows,
    places_of,
    rotated,
    rows_here,
    spread,
    store_plane,
    store_scale,
    summed_squares,
)


@triton.jit
def path_places(head, r, S: tl.constexpr, HEADS: tl.constexpr):
    """Of each value of R vectors: its step on its block's path, [1, padded], and the block's number, int32 [R, padded]. A
    vector's padding has the places of its last value."""
    d = tl.minimum(tl.arange(0, S.padded), S.dim - 1)
    step = step_of(d % S.size, S)
    block = (r * HEADS + head)[:, None] * S.blocks + (d // S.size)[None, :]
    return step[None, :], block


@triton.jit
def step_of(i, S: tl.constexpr):
    """Of a block's values i, on the path."""
    return i % 8 * (S.size // 8) + i // 8


@triton.jit
def way_at(step, block, count):
    """Where a step's byte lies among the ways: four steps are a word."""
    return ((step // 4) * count + block) * 4 + step % 4


@triton.jit(do_not_specialize=["tokens"])
def prepare(
    x,
    status,
    bins,
    norms,
    signs,
    paley,
    x_token,
    x_head,
    tokens,
    S: tl.constexpr,
    E: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Bins, int16 [steps, tokens * HEADS * S.blocks], and norms, float32 of each block. x: floats [tokens, HEADS, S.dim] by the
    strides x_token and x_head."""
    R: tl.constexpr = E.tokens
    r, head, there = rows_here(tokens, E)
    v, code = loaded_rows(x, r, head, x_token, x_head, there, S)
    norm = tl.sqrt_rn(summed_squares(v, S, R))
    y = rotated(tl.div_rn(v, spread(tl.where(norm > 0, norm, 1.0), S, R)), signs, paley, S, E, R)
    scaled = tl.minimum(tl.maximum(y * E.bins, -1024.0), 1023.0)
    scaled = (scaled + 12582912.0) - 12582912.0  # rounded, halves to even: beyond 2^23 floats are integers
    step, block = path_places(head, r, S, HEADS)
    count = tokens * HEADS * S.blocks
    mask = there[:, None] & (tl.arange(0, S.padded) < S.dim)[None, :]
    tl.store(bins + step * count + block, (scaled.to(tl.int32) + 1024).to(tl.int16), mask=mask)
    norm = tl.where(code[:, None] == 0, tl.reshape(norm, (R, S.padded_blocks)), 0.0)
    b = (r * HEADS + head)[:, None] * S.blocks + tl.arange(0, S.padded_blocks)[None, :]
    tl.store(norms + b, norm, mask=there[:, None])
    worst = tl.max(tl.where(there, code, 0), 0)
    tl.atomic_max(status, worst, mask=worst > 0)


@triton.jit
def cheaper(lower, upper, near, far):
    """(the cheaper metric, 1 where that is the upper state's)."""
    a, b = lower + near, upper + far
    return tl.minimum(a, b), (b < a).to(tl.int32)


@triton.jit
def forward(a, b, c, d, e, f, g, h, bins, costs, at, there):
    """One step from 8 metrics to the next 8, and a bit for each state: whether the path came from the upper one before it."""
    cost = tl.load(costs + tl.load(bins + at, mask=there, other=0).to(tl.int32))
    w, x, y, z = (
        (cost & 0xFFFF).to(tl.int32),
        (cost >> 16 & 0xFFFF).to(tl.int32),
        (cost >> 32 & 0xFFFF).to(tl.int32),
        (cost >> 48).to(tl.int32),
    )
    # state t comes from t / 2 and from t / 2 + 4, through subsets that differ in z1
    n0, w0 = cheaper(a, e, w, y)
    n1, w1 = cheaper(a, e, y, w)
    n2, w2 = cheaper(b, f, y, w)
    n3, w3 = cheaper(b, f, w, y)
    n4, w4 = cheaper(c, g, x, z)
    n5, w5 = cheaper(c, g, z, x)
    n6, w6 = cheaper(d, h, z, x)
    n7, w7 = cheaper(d, h, x, z)
    ways = w0 | w1 << 1 | w2 << 2 | w3 << 3 | w4 << 4 | w5 << 5 | w6 << 6 | w7 << 7
    return n0, n1, n2, n3, n4, n5, n6, n7, ways


@triton.jit
def lower_of(metric, state, other, number: tl.constexpr):
    """(the lower metric, its state), the first of two that are alike."""
    return tl.minimum(metric, other), tl.where(other < metric, number, state)


@triton.jit(do_not_specialize=["count"])
def paths(bins, costs, ways, count, SIZE: tl.constexpr, SEAM: tl.constexpr, R: tl.constexpr):
    """The cheapest path of each of R blocks. costs: int64 [bins], 16 bits for each subset. ways: int32 [steps / 4, count], at
    last x + 2 * subset of four steps, a byte each, the first in the low one."""
    v = tl.program_id(0) * R + tl.arange(0, R)
    there = v < count
    a = tl.zeros((R,), tl.int32)
    b, c, d, e, f, g, h = a, a, a, a, a, a, a
    for i in range(SIZE - SEAM, SIZE):
        a, b, c, d, e, f, g, h, way = forward(a, b, c, d, e, f, g, h, bins, costs, i * count + v, there)
    for four in range(SEAM // 4):
        word = tl.zeros((R,), tl.int32)
        for j in tl.static_range(4):
            at = (four * 4 + j) * count + v
            a, b, c, d, e, f, g, h, way = forward(a, b, c, d, e, f, g, h, bins, costs, at, there)
            word |= way << 8 * j
        tl.store(ways + four * count + v, word, mask=there)
    least, state = lower_of(a, tl.zeros((R,), tl.int32), b, 1)
    least, state = lower_of(least, state, c, 2)
    least, state = lower_of(least, state, d, 3)
    least, state = lower_of(least, state, e, 4)
    least, state = lower_of(least, state, f, 5)
    least, state = lower_of(least, state, g, 6)
    least, state = lower_of(least, state, h, 7)
    for four in range(SEAM // 4):
        word = tl.load(ways + (SEAM // 4 - 1 - four) * count + v, mask=there, other=0)
        for j in tl.static_range(4):
            state = (state >> 1) | ((word >> (24 - 8 * j + state)) & 1) << 2
    start = state
    never: tl.constexpr = 1 << 24  # more than any path costs
    a, b = tl.where(start == 0, 0, never), tl.where(start == 1, 0, never)
    c, d = tl.where(start == 2, 0, never), tl.where(start == 3, 0, never)
    e, f = tl.where(start == 4, 0, never), tl.where(start == 5, 0, never)
    g, h = tl.where(start == 6, 0, never), tl.where(start == 7, 0, never)
    for four in range(SIZE // 4):
        word = tl.zeros((R,), tl.int32)
        for j in tl.static_range(4):
            at = (four * 4 + j) * count + v
            a, b, c, d, e, f, g, h, way = forward(a, b, c, d, e, f, g, h, bins, costs, at, there)
            word |= way << 8 * j
        tl.store(ways + four * count + v, word, mask=there)
    for four in range(SIZE // 4):
        at = (SIZE // 4 - 1 - four) * count + v
        word = tl.load(ways + at, mask=there, other=0)
        found = tl.zeros((R,), tl.int32)
        for j in tl.static_range(4):
            upper = (word >> (24 - 8 * j + state)) & 1
            register = state | upper << 3  # x and the three before it
            z1 = (register ^ (register >> 1) ^ (register >> 3)) & 1
            z0 = (register >> 2) & 1
            found |= (state & 1 | z0 << 1 | z1 << 2) << (24 - 8 * j)
            state = (state >> 1) | upper << 2
        tl.store(ways + at, found, mask=there)


@triton.jit
def quarters(bins, ways, numbers, step, block, count, mask):
    """Of values: x + 2 * subset, and the number of the nearest level within the subset."""
    way = tl.load(ways + way_at(step, block, count), mask=mask, other=0).to(tl.int32)
    bin = tl.load(bins + step * count + block, mask=mask, other=0).to(tl.int32)
    return way, tl.load(numbers + bin * 4 + (way >> 1)).to(tl.int32)


@triton.jit(do_not_specialize=["tokens"])
def finish(
    slots,
    memory,
    status,
    bins,
    ways,
    norms,
    numbers,
    integers,
    page_stride,
    tokens,
    S: tl.constexpr,
    E: tl.constexpr,
    HEADS: tl.constexpr,
    TILE_BYTES: tl.constexpr,
):
    """What `prepare` and `paths` found, into pages; as encoding.append."""
    R: tl.constexpr = E.tokens
    r, head, there = rows_here(tokens, E)
    tile, t, kept = places_of(slots, memory, page_stride, r, head, there, S, TILE_BYTES)
    count = tokens * HEADS * S.blocks
    step, block = path_places(head, r, S, HEADS)
    way, u = quarters(bins, ways, numbers, step, block, count, there[:, None])
    length = length_of(tl.load(integers + 4 * u + (way >> 1)), S, E, R)
    b = (r * HEADS + head)[:, None] * S.blocks + tl.arange(0, S.padded_blocks)[None, :]
    norm = tl.reshape(tl.load(norms + b, mask=there[:, None], other=0.0), (R * S.padded_blocks,))
    scale = tl.div_rn(norm, length)
    plane = (tile + S.offset)[:, None]
    x = way & 1
    wide: tl.constexpr = S.packing.wide
    if S.packing.narrow == 0:
        store_plane(plane, x | u << 1, t, kept, S.per_word, wide, S.words, S.padded)
    else:
        narrow: tl.constexpr = S.packing.narrow
        field = x | u >> wide << 1
        store_plane((tile + S.narrow)[:, None], field, t, kept, 32 // narrow, narrow, S.narrow_bytes // 4, S.padded)
        i = tl.arange(0, S.padded) % S.size
        span: tl.constexpr = S.size // S.stretches
        step = step_of(i % span * S.stretches + i // span, S)[None, :]
        way, u = quarters(bins, ways, numbers, step, block, count, there[:, None])
        store_plane(plane, u & ((1 << wide) - 1), t, kept, S.per_word, wide, S.words, S.padded)
    large = store_scale(tile, S.scale, scale, t, kept, S, R)
    worst = tl.max(tl.where(there, 2 * tl.max(large, 1), 0), 0)
    tl.atomic_max(status, worst, mask=worst > 0)
