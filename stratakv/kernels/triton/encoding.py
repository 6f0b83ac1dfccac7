"""Vectors into pages: the types' own bytes, to the bit. Additions have the types' order, quotients and roots are rounded as
theirs, and products are not fused into sums (see the launch)."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def halves(x, ROWS: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr):
    """[ROWS, COUNT * 2 * STEP] -> the first and the second STEP values of each run of 2 * STEP, [ROWS, COUNT, STEP]."""
    return tl.split(tl.permute(tl.reshape(x, (ROWS, COUNT, 2, STEP)), (0, 1, 3, 2)))


@triton.jit
def picked(x, at, R: tl.constexpr):
    """[R, n] -> what stands at the places at, int32 [m]: [R, m]."""
    return tl.gather(x, tl.broadcast_to(at[None, :], (R, at.shape[0])), 1)


@triton.jit
def mixed(x, paley, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr):
    """Each run of E.paley values times Paley's matrix, term by term: [R, padded] -> the same, in runs of E.run places."""
    run: tl.constexpr = E.run
    runs: tl.constexpr = S.padded // run
    y = tl.zeros((R, runs, run), tl.float32)
    for column in range(E.paley):
        value = picked(x, tl.arange(0, runs) * E.paley + column, R)
        y += tl.load(paley + column * run + tl.arange(0, run))[None, None, :] * value[:, :, None]
    return tl.reshape(y, (R, S.padded))


@triton.jit
def rotated(x, signs, paley, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr):
    """As Rotation.exact: Paley's matrix on runs of E.paley values, then butterflies of growing stride, on each E.rotation
    values."""
    d = tl.arange(0, S.padded)
    y = x * tl.load(signs + d)[None, :]
    if E.paley > 1:
        y = mixed(y, paley, S, E, R)
    steps: tl.constexpr = E.steps
    for k in tl.static_range(steps):
        a, b = halves(y, R, S.padded // (2 * E.run << k), E.run << k)
        y = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), (R, S.padded))
    if E.paley > 1:
        y = picked(y, tl.minimum(d // E.paley * E.run + d % E.paley, S.padded - 1), R)
    return y * tl.load(signs + S.padded + d)[None, :] * (1 / E.rotation**0.5)


@triton.jit
def summed_squares(x, S: tl.constexpr, R: tl.constexpr):
    """[R, padded] -> [R * padded_blocks], added up by halving, and then, where a block is no power of two, one by one."""
    y = x * x
    size: tl.constexpr = S.padded // S.padded_blocks
    steps: tl.constexpr = S.halvings
    left: tl.constexpr = size >> steps
    if S.odd > 1:  # what is added together: S.odd values apart, and runs of `left` places apart
        p = tl.arange(0, S.padded)
        y = picked(y, tl.where(p % left < S.odd, p // left * S.odd + p % left, S.padded - 1), R)
    for k in tl.static_range(steps):
        a, b = halves(y, R, S.padded_blocks, size >> (k + 1))
        y = tl.reshape(a + b, (R, S.padded >> (k + 1)))
    if S.odd > 1:
        total = tl.zeros((R,), tl.float32)
        odd: tl.constexpr = S.odd
        for k in tl.static_range(odd):
            total += tl.sum(tl.where((tl.arange(0, left) == k)[None, :], y, 0.0), 1)
        y = total
    return tl.reshape(y, (R * S.padded_blocks,))


@triton.jit
def length_of(chosen, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr):
    """The lengths of vectors of integers [R, padded], without a vector's padding: [R * padded_blocks]."""
    if S.odd > 1:
        chosen = tl.where((tl.arange(0, S.padded) < S.dim)[None, :], chosen, 0)
    size: tl.constexpr = S.padded // S.padded_blocks
    squares = tl.sum(tl.reshape(chosen * chosen, (R * S.padded_blocks, size)), 1)
    return tl.sqrt_rn(tl.maximum(squares, 1).to(tl.float32)) * E.unit


@triton.jit
def spread(x, S: tl.constexpr, R: tl.constexpr):
    """Each block's number to its values: [R * padded_blocks] -> [R, padded]."""
    size: tl.constexpr = S.padded // S.padded_blocks
    return tl.reshape(tl.broadcast_to(x[:, None], (R * S.padded_blocks, size)), (R, S.padded))


@triton.jit
def inverse(scale):
    """1 / scale, and 0 where that is infinite."""
    found = tl.div_rn(1.0, scale)
    return tl.where(tl.abs(found) < float("inf"), found, 0.0)


@triton.jit
def turbo(x, signs, paley, thresholds, integers, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr):
    """(codes [R, padded], norms [R * padded_blocks])."""
    norm = tl.sqrt_rn(summed_squares(x, S, R))
    y = rotated(tl.div_rn(x, spread(tl.where(norm > 0, norm, 1.0), S, R)), signs, paley, S, E, R)
    y = tl.reshape(y, (R * S.padded,))
    edges = tl.load(thresholds + tl.arange(0, 1 << E.bits))
    codes = tl.zeros((R * S.padded,), tl.int32)
    count: tl.constexpr = E.bits
    for k in tl.static_range(count):
        half = tl.zeros_like(codes) + (1 << (count - 1 - k))
        codes += tl.where(tl.gather(edges, codes + half - 1, 0) <= y, half, 0)
    chosen = tl.gather(tl.load(integers + tl.arange(0, 1 << E.bits)), codes, 0)
    length = length_of(tl.reshape(chosen, (R, S.padded)), S, E, R)
    return tl.reshape(codes, (R, S.padded)), tl.div_rn(norm, length)


@triton.jit
def blocks_of(x, S: tl.constexpr, E: tl.constexpr, R: tl.constexpr):
    """ggml's blocks: (codes [R, padded], scales and minima [R * padded_blocks])."""
    size: tl.constexpr = S.padded // S.padded_blocks
    y = tl.reshape(x, (R * S.padded_blocks, size))
    levels: tl.constexpr = (1 << E.bits) - 1
    if E.form == "q8":
        low = tl.zeros((R * S.padded_blocks,), tl.float32)
        scale = tl.div_rn(tl.max(tl.abs(y), 1), 127.0)
        z = y * inverse(scale)[:, None]
        magnitude = tl.abs(z)
        floor = tl.floor(magnitude)
        magnitude = tl.where(magnitude - floor >= 0.5, floor + 1, floor)
        codes = tl.where(z < 0, -magnitude, magnitude).to(tl.int32) & 255
    else:
        if E.form == "minimum":
            low = tl.min(y, 1) + 0.0
            scale = tl.div_rn(tl.max(y, 1) - low, levels * 1.0) + 0.0
            z = (y - low[:, None]) * inverse(scale)[:, None] + 0.5
        else:
            half: tl.constexpr = 1 << (E.bits - 1)
            low = tl.zeros((R * S.padded_blocks,), tl.float32)
            # the first of the largest magnitudes, its sign kept, is what -half stands for
            where = tl.argmax(tl.abs(y), 1, tie_break_left=True)
            mine = tl.arange(0, size)[None, :] == where[:, None]
            bits = tl.sum(tl.where(mine, y.to(tl.int32, bitcast=True), 0), 1).to(tl.int32)  # keeps a zero's sign
            scale = tl.div_rn(bits.to(tl.float32, bitcast=True), -half * 1.0)
            z = y * inverse(scale)[:, None] + (half + 0.5)
        codes = tl.minimum(tl.maximum(z, 0.0), levels * 1.0).to(tl.int32)
    return tl.reshape(codes, (R, S.padded)), scale, low


@triton.jit
def store_plane(
    plane, codes, t, kept, PER: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, PADDED: tl.constexpr
):
    """int32 codes [R, PADDED] of BITS bits each, PER a word, the first in the low bits, into a token's WORDS words."""
    R: tl.constexpr = codes.shape[0]
    n: tl.constexpr = PADDED // PER
    j = tl.arange(0, PER)[None, None, :]
    words = tl.sum(tl.reshape(codes, (R, n, PER)) << (j * BITS), 2).to(tl.int32)
    w = tl.arange(0, n)
    mask = kept[:, None] & (w < WORDS)[None, :]
    if PER * BITS == 32:
        tl.store(plane.to(tl.pointer_type(tl.int32)) + t[:, None] * WORDS + w[None, :], words, mask=mask)
    else:
        tl.store(plane.to(tl.pointer_type(tl.int16)) + t[:, None] * WORDS + w[None, :], words.to(tl.int16), mask=mask)


@triton.jit
def rows_here(tokens, E: tl.constexpr):
    """(a program's tokens, int32 [R]; its kv head; which tokens there are, [R])."""
    R: tl.constexpr = E.tokens
    r = tl.program_id(0) * R + tl.arange(0, R)
    return r, tl.program_id(1), r < tokens


@triton.jit
def places_of(slots, memory, page_stride, r, head, there, S: tl.constexpr, TILE_BYTES: tl.constexpr):
    """Of tokens: (where the head's tile begins in their page, pointers [R]; their place in it, [R]; which are stored, [R])."""
    slot = tl.load(slots + r, mask=there, other=-1)
    kept = slot >= 0
    tile = memory + tl.where(kept, slot // S.page_tokens, 0) * page_stride + head * TILE_BYTES
    return tile, slot % S.page_tokens, kept


@triton.jit
def loaded_rows(x, r, head, x_token, x_head, there, S: tl.constexpr):
    """(float32 [R, padded], 0 for what isn't finite; int32 [R], 1 where there was such a value)."""
    d = tl.arange(0, S.padded)
    at = r[:, None].to(tl.int64) * x_token + head.to(tl.int64) * x_head + d[None, :]
    v = tl.load(x + at, mask=there[:, None] & (d < S.dim)[None, :], other=0.0).to(tl.float32)
    finite = tl.abs(v) < float("inf")
    return tl.where(finite, v, 0.0), tl.where(tl.min(finite.to(tl.int32), 1) > 0, 0, 1)


@triton.jit
def store_scale(tile, offset: tl.constexpr, scale, t, kept, S: tl.constexpr, R: tl.constexpr):
    """float32 [R * padded_blocks] as f16 into a field of scales; int32 [R, padded_blocks], 1 where one is too large."""
    b = tl.arange(0, S.padded_blocks)
    field = b[None, :] * S.page_tokens + t[:, None]
    mask = kept[:, None] & (b < S.blocks)[None, :]
    half = tl.reshape(scale, (R, S.padded_blocks)).to(tl.float16)
    tl.store((tile + offset).to(tl.pointer_type(tl.float16))[:, None] + field, half, mask=mask)
    return (tl.abs(half.to(tl.float32)) == float("inf")).to(tl.int32)


@triton.jit(do_not_specialize=["tokens"])
def append(
    x,
    slots,
    memory,
    status,
    signs,
    paley,
    thresholds,
    integers,
    x_token,
    x_head,
    page_stride,
    tokens,
    S: tl.constexpr,
    E: tl.constexpr,
    TILE_BYTES: tl.constexpr,
):
    """One side of E.tokens tokens and one kv head. x: floats [tokens, kv_heads, S.dim] by the strides x_token and x_head. slots:
    int64 [tokens], negative: not stored. status: int32 [1], raised where values can't be stored."""
    R: tl.constexpr = E.tokens
    r, head, there = rows_here(tokens, E)
    tile, t, kept = places_of(slots, memory, page_stride, r, head, there, S, TILE_BYTES)
    d = tl.arange(0, S.padded)
    v, code = loaded_rows(x, r, head, x_token, x_head, there, S)
    if S.rows != "":
        place = t[:, None] * S.dim + d[None, :]
        mask = kept[:, None] & (d < S.dim)[None, :]
        if S.rows == "f32":
            tl.store((tile + S.offset).to(tl.pointer_type(tl.float32))[:, None] + place, v, mask=mask)
            large = v != v
        elif S.rows == "f16":
            half = v.to(tl.float16)
            tl.store((tile + S.offset).to(tl.pointer_type(tl.float16))[:, None] + place, half, mask=mask)
            large = tl.abs(half.to(tl.float32)) == float("inf")
        else:  # rounded by hand, to nearest even
            bits = v.to(tl.int32, bitcast=True)
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            tl.store((tile + S.offset).to(tl.pointer_type(tl.int16))[:, None] + place, bits.to(tl.int16), mask=mask)
            large = (bits & 0x7F80) == 0x7F80
        large = tl.max(large.to(tl.int32), 1)
    else:
        if E.form == "turbo":
            codes, scale = turbo(v, signs, paley, thresholds, integers, S, E, R)
            low = scale
        else:
            if E.rotation > 0:
                v = rotated(v, signs, paley, S, E, R)
            codes, scale, low = blocks_of(v, S, E, R)
        wide: tl.constexpr = S.packing.wide
        plane = (tile + S.offset)[:, None]
        if S.packing.halves:
            a, b = halves(codes & 15, R, S.padded_blocks, S.padded // S.padded_blocks // 2)
            both = tl.reshape(a | b << 4, (R, S.padded // 2))
            store_plane(plane, both, t, kept, 4, 8, S.words, S.padded // 2)
        else:
            store_plane(plane, codes & ((1 << wide) - 1), t, kept, S.per_word, wide, S.words, S.padded)
        if S.packing.narrow > 0:
            narrow: tl.constexpr = S.packing.narrow
            word: tl.constexpr = S.narrow_word
            store_plane(
                (tile + S.narrow)[:, None],
                codes >> wide,
                t,
                kept,
                word // narrow,
                narrow,
                S.narrow_bytes * 8 // word,
                S.padded,
            )
        large = store_scale(tile, S.scale, scale, t, kept, S, R)
        if S.minimum >= 0:
            large |= store_scale(tile, S.minimum, low, t, kept, S, R)
        large = tl.max(large, 1)
    code = tl.where(code == 0, 2 * large, code)
    worst = tl.max(tl.where(there, code, 0), 0)
    tl.atomic_max(status, worst, mask=worst > 0)
