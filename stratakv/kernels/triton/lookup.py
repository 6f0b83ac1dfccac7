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
    """PTX's prmt: byte b of the result is byte (selector >> 4 b) & 7 of (low, high); selectors' highest bits are 0."""
    if INTERPRETED:
        out = low * 0 + high * 0 + selector * 0
        selector += out
        for b in tl.static_range(4):
            pick = (selector >> (4 * b)) & 7
            word = tl.where(pick < 4, low, high)
            out |= ((word >> (8 * (pick & 3))) & 255) << (8 * b)
    else:
        out = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1
        )
    return out


@triton.jit
def signed(x, signs):
    """x with both of its f16 negated where bits 15 and 31 of `signs` say so. One instruction that the compiler can't take apart:
    it would compute the halves one by one."""
    if INTERPRETED:
        out = x ^ (signs & -0x7FFF8000)
    else:
        out = tl.inline_asm_elementwise(
            "lop3.b32 $0, $1, $2, 0x80008000, 0x78;", "=r,r,r", [x, signs], dtype=tl.int32, is_pure=True, pack=1
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
def nibble_pairs(words, table):
    """int32 pairs [T, words, 4] of nibbles 0 and 4, 1 and 5, ..., for a mirrored table of 16: 8 magnitudes are looked up, then
    signs are set."""
    moved = permuted(words, words, 0x3120)  # nibbles 0 1 4 5, 2 3 6 7: a pair's are two apart
    below = ~moved & -0x77777778  # 0x88888888: set where an entry is negative
    selectors = (moved ^ (below - ((below >> 3) & 0x11111111))) & 0x77777777
    a, b = looked_up(selectors, table)
    c, d = looked_up(selectors >> 16, table)
    above = ~words
    a, b, c, d = signed(a, above << 12), signed(b, above << 8), signed(c, above << 4), signed(d, above)
    return joined(a, b, c, d)


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
