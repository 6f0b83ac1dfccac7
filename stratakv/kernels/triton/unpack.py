"""Packed bytes to f16: what a tile's codes stand for, in the order in which a GPU's registers hold them.

A word of the wide plane holds n codes. Two that lie `apart` (n / 2 or n / 4) are handled as a pair, one in each half of a
32-bit register. So the values of a vector come out in an order of their own: `places` says which value is where. Queries are
loaded and outputs stored in that order, and nothing is moved in between.
"""

# mypy: ignore-errors
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl

from stratakv.kernels.triton.lookup import (
    fused,
    gathered,
    halves_of,
    joined,
    nibble_and_bit_pairs,
    nibble_pairs,
    permuted,
    short_pairs,
)
from stratakv.kernels.triton.trellis import trellis_entries, x_words


@triton.jit
def places(S: tl.constexpr):
    """int32 [padded]: which of the vector's values stands at each place; S.dim or more: none."""
    i = tl.arange(0, S.padded)
    if S.rows == "":
        n: tl.constexpr = S.per_word
        pair = i % n // 2
        code = pair % S.apart + pair // S.apart * (2 * S.apart) + i % 2 * S.apart
        word = i // n
        if S.packing.halves:
            half: tl.constexpr = S.size // 2
            byte = word * 4 + code // 2
            i = byte // half * S.size + byte % half + half * (code % 2)
        elif S.packing.trellis:
            span: tl.constexpr = S.size // S.stretches
            place = word % S.block_words * n + code
            i = word // S.block_words * S.size + place % span * S.stretches + place // span
        else:
            i = word * n + code
    return i


@triton.jit
def in_quads(x):
    """[R, n] -> the same in the order that an operand of the matrix units has in registers: of each 8 values two are a
    thread's, of four threads. What a thread has of a row, a quarter, becomes these, and stays where it is."""
    R: tl.constexpr = x.shape[0]
    n: tl.constexpr = x.shape[1]
    return tl.reshape(tl.permute(tl.reshape(x, (R, 4, n // 8, 2)), (0, 2, 1, 3)), (R, n))


@triton.jit
def pair(words, bits, start, J: tl.constexpr, S: tl.constexpr):
    """int32 [T, padded_words]: codes J and J + per_word / 2 of each word in a register's halves."""
    wide: tl.constexpr = S.packing.wide
    narrow: tl.constexpr = S.packing.narrow
    half: tl.constexpr = S.per_word // 2
    ones: tl.constexpr = (1 << wide) - 1 | ((1 << wide) - 1) << 16
    found = (words >> (J * wide)) & ones
    if narrow > 0:
        mask: tl.constexpr = (1 << narrow) - 1
        # a block's values J and J + 1 are half a block apart where bytes hold values of both halves; narrow is 1 there
        place: tl.constexpr = J // 2 + S.size // 2 * (J % 2) if S.packing.halves else J * narrow
        distance: tl.constexpr = half // 2 if S.packing.halves else half * narrow
        moved = bits >> (start + place)
        found |= ((moved & mask) | ((moved >> distance) & mask) << 16) << wide
    return found


@triton.jit
def code_pairs(words, bits, start, S: tl.constexpr, T: tl.constexpr):
    """int32 [T, padded / 2]: all codes in pairs, those of a word one after another. Planes of 4 or 8 bits."""
    if S.per_word == 4:
        found = tl.join(pair(words, bits, start, 0, S), pair(words, bits, start, 1, S))
    else:
        found = joined(
            pair(words, bits, start, 0, S),
            pair(words, bits, start, 1, S),
            pair(words, bits, start, 2, S),
            pair(words, bits, start, 3, S),
        )
    return tl.reshape(found, (T, S.padded // 2))


@triton.jit
def load_words(plane, t, w, S: tl.constexpr):
    """int32 [T, padded_words] of the wide plane."""
    pointers = plane.to(tl.pointer_type(tl.int32)) + t[:, None] * S.words + w[None, :]
    if S.words == S.padded_words:
        words = tl.load(pointers)
    else:
        words = tl.load(pointers, mask=(w < S.words)[None, :] & (t >= 0)[:, None], other=0)
    if S.packing.signed:
        words ^= -0x7F7F7F80  # 0x80808080
    return words


@triton.jit
def load_narrow(tile, t, w, S: tl.constexpr, T: tl.constexpr):
    """(the narrow plane's bits beside each word of the wide one, int32 [T, padded_words], and where in it they begin, [1,
    padded_words])."""
    n: tl.constexpr = S.per_word
    size: tl.constexpr = S.narrow_word
    if S.packing.halves:
        half: tl.constexpr = S.size // 2
        value = w * 4 // half * S.size + w * 4 % half
    else:
        value = w * n
    bit = value * S.packing.narrow
    per_token: tl.constexpr = S.narrow_bytes * 8 // size
    run: tl.constexpr = size // (n * S.packing.narrow)  # words of the wide plane beside one of the narrow one
    count: tl.constexpr = S.padded_words // run
    at = tl.arange(0, count)
    plane = tile + S.narrow
    if size == 32:
        pointers = plane.to(tl.pointer_type(tl.int32)) + t[:, None] * per_token + at[None, :]
    else:
        pointers = plane.to(tl.pointer_type(tl.int16)) + t[:, None] * per_token + at[None, :]
    if per_token == count:
        bits = tl.load(pointers)
    else:
        bits = tl.load(pointers, mask=(at < per_token)[None, :] & (t >= 0)[:, None], other=0)
    bits = tl.reshape(tl.broadcast_to(bits.to(tl.int32)[:, :, None], (T, count, run)), (T, S.padded_words))
    return bits, (bit % size)[None, :]


@triton.jit
def short_entries(words, bits, start, table, S: tl.constexpr, T: tl.constexpr):
    """The same for tables of 4 or 8: wide plane of 2 bits, narrow one of 1 or none."""
    words = permuted(words, words, 0x3120)  # bytes: codes 0 to 3, 8 to 11, 4 to 7, 12 to 15
    even = words & 0x33333333
    odd = (words >> 2) & 0x33333333
    if S.packing.narrow > 0:
        bits = bits >> start
        bits = permuted(bits, bits, 0x1010)
        bits = (bits & 0x00000F0F) | ((bits >> 4) & 0x0F0F0000)  # four codes' bits a byte, in the words' order
        bits = (bits | (bits << 2)) & 0x33333333  # two codes' a nibble
        even |= (bits & 0x11111111) << 2
        odd |= (bits & 0x22222222) << 1
    return tl.reshape(short_pairs(even, odd, table), (T, S.padded // 2))


@triton.jit
def loaded_table(table, S: tl.constexpr):
    """What codes are looked up in, kept in registers: the entries, f16; or words, see Side.looked_up. Constants would be loaded
    again at each use."""
    if S.way == "table":
        found = tl.load(table + tl.arange(0, 1 << S.bits)).to(tl.float16)
    elif S.way == "consecutive" or S.rows != "":
        found = 0
    else:
        found = (tl.load(table), tl.load(table + 1), tl.load(table + 2), tl.load(table + 3))
    return found


@triton.jit
def entries(words, bits, start, table, S: tl.constexpr, T: tl.constexpr):
    """f16 [T, padded]: the entries that the tile's codes stand for, integers below 256: exact; of a mirrored table 2^-24 of
    them."""
    n: tl.constexpr = S.padded // 2
    if S.way == "mirrored8":
        found = halves_of(tl.reshape(nibble_pairs(words, table), (T, n)), T, n)
    elif S.way == "mirrored16":
        found = halves_of(tl.reshape(nibble_and_bit_pairs(words, bits >> start, table), (T, n)), T, n)
    elif S.way == "short":
        found = halves_of(short_entries(words, bits, start, table, S, T), T, n)
    else:
        pairs = tl.reshape(code_pairs(words, bits, start, S, T), (T, n))
        if S.way == "table":
            found = gathered(pairs, table, S, T)
        else:  # an f16 with the bits 0x6400 + c is 1024 + c
            found = halves_of(pairs | 0x64006400, T, n) - (1024.0 + S.middle)
    return found


@triton.jit
def floats(tile, t, seen, S: tl.constexpr):
    """[T, padded] as they are stored; 0 for tokens that aren't seen, which may be anything."""
    d = tl.arange(0, S.padded)
    at = t[:, None] * S.dim + d[None, :]
    mask = seen[:, None] & (d < S.dim)[None, :]
    if S.rows == "f32":
        found = tl.load((tile + S.offset).to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0.0)
    elif S.rows == "bf16":
        found = tl.load((tile + S.offset).to(tl.pointer_type(tl.bfloat16)) + at, mask=mask, other=0.0)
    else:
        found = tl.load((tile + S.offset).to(tl.pointer_type(tl.float16)) + at, mask=mask, other=0.0)
    return found


@triton.jit
def block_field(tile, offset: tl.constexpr, t, seen, S: tl.constexpr):
    """f16 [T, padded_blocks]: the scale or the minimum of each block."""
    b = tl.arange(0, S.padded_blocks)
    pointers = (tile + offset).to(tl.pointer_type(tl.float16)) + b[None, :] * S.page_tokens + t[:, None]
    return tl.load(pointers, mask=seen[:, None] & (b < S.blocks)[None, :], other=0.0)


@triton.jit
def spread(field, S: tl.constexpr, T: tl.constexpr):
    """Each block's number to its values: [T, padded_blocks] -> [T, padded]."""
    size: tl.constexpr = S.padded // S.padded_blocks
    return tl.reshape(tl.broadcast_to(field[:, :, None], (T, S.padded_blocks, size)), (T, S.padded))


@triton.jit
def values(tile, t, seen, table, splits, S: tl.constexpr, T: tl.constexpr):
    """[T, padded] of one side, f16 or floats as they are stored, without S.factor, and without the scale where it is folded."""
    if S.rows != "":
        found = floats(tile, t, seen, S)
    else:
        w = tl.arange(0, S.padded_words)
        words = load_words(tile + S.offset, t, w, S)
        bits, start, scale, minimum = words, 0, 0.0, 0.0
        if S.packing.trellis:
            x, before, second, third = x_words(tile, words, t, w, S)
        elif S.packing.narrow > 0:
            bits, start = load_narrow(tile, t, w, S, T)
        if not S.folded:
            scale = block_field(tile, S.scale, t, seen, S)
        if S.minimum >= 0:
            minimum = block_field(tile, S.minimum, t, seen, S)
        # Always so, as LLVM sees at once, and Triton doesn't: it would choose the product's layout by what it finds behind the
        # values, and move each of them between registers once more (a sixth of turbo4's instructions)
        if (splits | 1) != 0:
            if S.packing.trellis:
                found = trellis_entries(words, x, before, second, third, w, table, S, T)
                if S.way != "table":
                    half: tl.constexpr = S.padded // 2
                    found = halves_of(found, T, half)
            else:
                found = entries(words, bits, start, table, S, T)
            if not S.folded:
                if S.subnormal:
                    found = found * 4096.0 * 4096.0
                if S.minimum < 0:
                    found = found * spread(scale, S, T)
                else:
                    found = fused(found, spread(scale, S, T), spread(minimum, S, T))
        else:
            width: tl.constexpr = S.padded
            found = tl.zeros((T, width), tl.float16)
    return found


@triton.jit
def folded_scale(tile, t, seen, S: tl.constexpr):
    """f16 [T]: what the entries of a token are multiplied by, without S.factor."""
    return tl.load((tile + S.scale).to(tl.pointer_type(tl.float16)) + t, mask=seen, other=0.0)


@triton.jit
def magnitude(x):
    """Of f16 about the logarithm to base 2, -15 or more: its bits are one, from a power of two to the next a straight line."""
    return (x.to(tl.int16, bitcast=True) & 0x7FFF).to(tl.float32) * (1 / 1024) - 15.0
