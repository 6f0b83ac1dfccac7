"""Looking up f16 entries for packed codes within registers, and the instructions of PTX that it takes.

Each of them has an emulation beside it, which the interpreter runs.
"""

# mypy: ignore-errors
# ruff: noqa: SIM108
from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def permuted(low, high, selector):
    """PTX's prmt: byte b of the result is byte (selector >> 4 b) & 7 of (low, high), or that byte's highest bit eight times
    where the selector's bit 4 b + 3 is set."""
    if INTERPRETED:
        out = low * 0 + high * 0 + selector * 0
        selector += out
        for b in tl.static_range(4):
            pick = (selector >> (4 * b)) & 15
            word = tl.where((pick & 4) == 0, low, high)
            byte = (word >> (8 * (pick & 3))) & 255
            out |= tl.where(pick < 8, byte, (byte >> 7) * 255) << (8 * b)
    else:
        out = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    return out


@triton.jit
def fused(a, b, c):
    """a * b + c of f16, rounded once, as the machine does it. The interpreter's own rounds the product too."""
    if INTERPRETED:
        out = (a.to(tl.float32) * b.to(tl.float32) + c.to(tl.float32)).to(tl.float16)
    else:
        out = tl.fma(a, b, c)
    return out


@triton.jit
def as_f16(x):
    """The lower half of int32, taken for an f16."""
    return x.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def halves_of(pairs, T: tl.constexpr, N: tl.constexpr):
    """int32 [T, N], two f16 each -> f16 [T, 2 N]."""
    return tl.reshape(tl.join(as_f16(pairs), as_f16(pairs >> 16)), (T, 2 * N))


@triton.jit
def joined(a, b, c, d):
    """[..., 4]: what a thread has of each stays with it."""
    return tl.join(tl.join(a, c), tl.join(b, d))


@triton.jit
def looked_up(selectors, table):
    """Two pairs of f16 for the numbers (nibbles 0 and 2, nibbles 1 and 3) below 8 of each selector, by byte permutations: 4 of
    them for 4 values. table: see `loaded_table`."""
    a = permuted(table[0], table[1], selectors)
    b = permuted(table[2], table[3], selectors)
    return permuted(a, b, 0x6240), permuted(a, b, 0x7351)


@triton.jit
def shifted(x, by: tl.constexpr):
    """To the right, zeros from the left."""
    return (x.to(tl.uint32, bitcast=True) >> by).to(tl.int32, bitcast=True)


@triton.jit
def signed_pairs(low, high, even, odd):
    """int32 pairs [..., 4] of nibbles 0 and 2, 1 and 3, 4 and 6, 5 and 7. low, high: magnitudes of nibbles 0 to 3, 4 to 7, a byte
    each. even, odd: signs of nibbles 0, 2, 4, 6, and 1, 3, 5, 7, in the highest bit of a byte each. A magnitude below a sign is
    an f16, a subnormal one: 2^-24 of the magnitude."""
    return joined(
        permuted(low, even, 0x5240),
        permuted(low, odd, 0x5341),
        permuted(high, even, 0x7260),
        permuted(high, odd, 0x7361),
    )


@triton.jit
def nibble_pairs(words, table):
    """Of a mirrored table of 16: each nibble is a sign above one of 8 magnitudes, counted from the other end where the sign bit
    is 0 and the entry negative."""
    below = ~words & -0x77777778  # 0x88888888
    selectors = (words ^ (below - shifted(below, 3))) & 0x77777777
    low, high = permuted(table[0], table[1], selectors), permuted(table[0], table[1], selectors >> 16)
    return signed_pairs(low, high, (below << 4) & -0x7F7F7F80, below & -0x7F7F7F80)  # 0x80808080


@triton.jit
def wide_pairs(selectors, even, odd, table):
    """Of a mirrored table of 32. selectors: which of 16 magnitudes, a nibble each. A byte permutation knows 8 and gives 0, the
    magnitudes' highest bit, for a selector of 8 or more."""
    others = selectors ^ -0x77777778
    low = permuted(table[0], table[1], selectors) | permuted(table[2], table[3], others)
    high = permuted(table[0], table[1], selectors >> 16) | permuted(table[2], table[3], others >> 16)
    return signed_pairs(low, high, even, odd)


@triton.jit
def nibble_and_bit_pairs(words, bits, table):
    """Of a mirrored table of 32: nibbles, and a sign bit for each, in the low byte of bits."""
    signs = ((bits & 0xFF) | (bits << 4)) & 0x0F0F
    signs = (signs | (signs << 2)) & 0x3333  # two nibbles' signs select a byte for both
    selectors = words ^ permuted(0x000FF0FF, 0, signs)
    return wide_pairs(selectors, permuted(0x00800080, 0, signs), permuted(0x00008080, 0, signs), table)


@triton.jit
def short_pairs(even, odd, table):
    """int32 pairs [T, words, 4, 2] for tables of 8: codes 0, 2, 8, 10 of a word in the nibbles of even's lower half, 4, 6, 12, 14
    above them, and the others likewise in odd."""
    a, c = looked_up(even, table)
    b, d = looked_up(odd, table)
    e, g = looked_up(even >> 16, table)
    f, h = looked_up(odd >> 16, table)
    return tl.join(joined(a, c, e, g), joined(b, d, f, h))


@triton.jit
def gathered(pairs, table, S: tl.constexpr, T: tl.constexpr):
    """f16 [T, padded] from a table of any length, for pairs of codes, int32 [T, padded / 2]."""
    codes = tl.reshape(tl.join(pairs & 0xFFFF, pairs >> 16), (T * S.padded,))
    return tl.reshape(tl.gather(table, codes, 0), (T, S.padded))
