"""Trellis codes to entries (stratakv/kvtypes/trellis.py has the format): a word of x and of those before it on the path go
through the convolutional code at once. A step of the path is 8 values back: one, two or four bytes of the plane that holds x."""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

from stratakv.kernels.triton.lookup import (
    gathered,
    joined,
    nibble_pairs,
    permuted,
    shifted,
    short_pairs,
    wide_pairs,
)


@triton.jit
def x_word(plane, t, w, D: tl.constexpr, S: tl.constexpr):
    """int32 [T, padded_words]: the word of x's plane that is D before the one beside each word of codes. Before a block's
    beginning lies its end, one value further."""
    beside = w % S.block_words % S.x_words - D
    around = beside < 0
    at = w // S.block_words * S.x_words + tl.where(around, beside + S.x_words, beside)
    pointers = plane.to(tl.pointer_type(tl.int32)) + t[:, None] * (S.blocks * S.x_words) + at[None, :]
    if S.words == S.padded_words:
        word = tl.load(pointers)
    else:
        word = tl.load(pointers, mask=(w < S.words)[None, :] & (t >= 0)[:, None], other=0)
    if D > 0:
        field: tl.constexpr = S.x_bits
        first: tl.constexpr = 0xF if field == 4 else 0x00030003 if field == 2 else 0x01010101
        turned = ((word << field) & (-1 - first)) | ((word >> (7 * field)) & first)
        word = tl.where(around[None, :], turned, word)
    return word


@triton.jit
def x_words(tile, words, t, w, S: tl.constexpr):
    """x's word beside each word of codes, and the three before it, as far as they are needed."""
    if S.packing.narrow > 0:
        plane = tile + S.narrow
        x = x_word(plane, t, w, 0, S)
    else:
        plane = tile + S.offset
        x = words
    before = x_word(plane, t, w, 1, S)
    second, third = before, before
    if S.x_bits > 1:
        second = x_word(plane, t, w, 2, S)
    if S.x_bits > 2:
        third = x_word(plane, t, w, 3, S)
    return x, before, second, third


@triton.jit
def subsets(x, before, second, third, start, S: tl.constexpr):
    """2 z1 + z0 of each of a word's codes, in the codes' places."""
    if S.x_bits == 4:
        x1, x2, x3 = before, second, third
    elif S.x_bits == 2:
        x1 = (x << 16) | ((before >> 16) & 0xFFFF)
        x2 = before
        x3 = (before << 16) | ((second >> 16) & 0xFFFF)
    else:
        x1 = (x << 8) | ((before >> 24) & 0xFF)
        x2 = (x << 16) | ((before >> 16) & 0xFFFF)
        x3 = (x << 24) | ((before >> 8) & 0xFFFFFF)
    ones: tl.constexpr = 0x11111111 if S.packing.wide == 4 else 0x55555555
    return (((x ^ x1 ^ x3) >> start) & ones) << 1 | ((x2 >> start) & ones)


@triton.jit
def level_pair(u, z, high, J: tl.constexpr, S: tl.constexpr):
    """The levels of codes J and J + 4 of each word, in a register's halves."""
    found = ((u >> (4 * J)) & 0x000F000F) << 2 | ((z >> (4 * J)) & 0x00030003)
    if S.x_bits == 2:
        found |= ((high >> (4 * J)) & 0x00010001) << 6
    return found


@triton.jit
def trellis_entries(words, x, before, second, third, w, table, S: tl.constexpr, T: tl.constexpr):
    """As int32 pairs of f16 [T, padded / 2], or f16 [T, padded] where levels are looked up in a table."""
    start = (w % S.block_words // S.x_words * S.x_bits)[None, :]
    z = subsets(x, before, second, third, start, S)
    n: tl.constexpr = S.padded // 2
    if S.way == "short":
        even = (z & 0x33333333) | ((words & 0x22222222) << 1)
        odd = ((z >> 2) & 0x33333333) | ((words >> 1) & 0x44444444)
        even, odd = permuted(even, even, 0x3120), permuted(odd, odd, 0x3120)
        found = tl.reshape(short_pairs(even, odd, table), (T, n))
    elif S.way == "mirrored8":
        even = ((words & 0x33333333) << 2) | (z & 0x33333333)
        odd = (words & -0x33333334) | ((z >> 2) & 0x33333333)  # 0xCCCCCCCC
        found = tl.reshape(tl.join(nibble_pairs(even, table), nibble_pairs(odd, table)), (T, n))
    elif S.way == "mirrored16":
        below = ~words & -0x77777778  # 0x88888888: where the highest bit, the sign, is 0
        selectors = (((words << 1) & -0x33333334) | (z & 0x33333333)) ^ (shifted(below, 3) * 15)
        pairs = wide_pairs(selectors, (below << 4) & -0x7F7F7F80, below & -0x7F7F7F80, table)
        found = tl.reshape(pairs, (T, n))
    else:
        u = words
        if S.packing.narrow == 0:
            u = (words >> 1) & 0x77777777
        high = x >> (start + 1)
        pairs = joined(
            level_pair(u, z, high, 0, S),
            level_pair(u, z, high, 1, S),
            level_pair(u, z, high, 2, S),
            level_pair(u, z, high, 3, S),
        )
        found = gathered(tl.reshape(pairs, (T, n)), table, S, T)
    return found
