"""Packed bytes to f16: what a tile's codes stand for, in the order in which a GPU's registers hold them.

A word of the wide plane holds n codes. Its codes j and j + n / 2 are handled as a pair, one in each half of a 32-bit
register. So the values of a vector come out in an order of their own: `places` says which value is where. Queries are
loaded and outputs stored in that order, and nothing is moved in between.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def places(S: tl.constexpr):
    """int32 [padded]: which of the vector's values stands at each place; S.dim or more: none."""
    i = tl.arange(0, S.padded)
    if S.rows == "":
        n: tl.constexpr = S.per_word
        code = i % n // 2 + i % 2 * (n // 2)
        word = i // n
        if S.packing.halves:
            half: tl.constexpr = S.size // 2
            byte = word * 4 + code // 2
            i = byte // half * S.size + byte % half + half * (code % 2)
        else:
            i = word * n + code
    return i


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
def load_narrow(tile, t, w, S: tl.constexpr):
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
    plane = tile + S.narrow
    if size == 32:
        pointers = plane.to(tl.pointer_type(tl.int32)) + t[:, None] * per_token + (bit // size)[None, :]
    else:
        pointers = plane.to(tl.pointer_type(tl.int16)) + t[:, None] * per_token + (bit // size)[None, :]
    if S.words == S.padded_words:
        bits = tl.load(pointers)
    else:
        bits = tl.load(pointers, mask=(w < S.words)[None, :] & (t >= 0)[:, None], other=0)
    return bits.to(tl.int32), (bit % size)[None, :]


@triton.jit
def looked_up(selectors, table):
    """Two pairs of f16 for the numbers (nibbles 0 and 2, nibbles 1 and 3) below 8 of each selector, by byte permutations: 4 of
    them for 4 values. table: see `loaded_table`."""
    a = permuted(table[0], table[1], selectors)
    b = permuted(table[2], table[3], selectors)
    return permuted(a, b, 0x6240), permuted(a, b, 0x7351)


@triton.jit
def nibble_entries(words, table, S: tl.constexpr, T: tl.constexpr):
    """As int32 pairs [T, padded / 2], for a mirrored table of 16: 8 magnitudes are looked up, then signs are set."""
    moved = permuted(words, words, 0x3120)  # nibbles 0 1 4 5, 2 3 6 7: a pair's are two apart
    below = ~moved & -0x77777778  # 0x88888888: set where an entry is negative
    selectors = (moved ^ (below - ((below >> 3) & 0x11111111))) & 0x77777777
    a, b = looked_up(selectors, table)
    c, d = looked_up(selectors >> 16, table)
    above = ~words
    a, b, c, d = signed(a, above << 12), signed(b, above << 8), signed(c, above << 4), signed(d, above)
    return tl.reshape(joined(a, b, c, d), (T, S.padded // 2))


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
    a, c = looked_up(even, table)
    b, d = looked_up(odd, table)
    e, g = looked_up(even >> 16, table)
    f, h = looked_up(odd >> 16, table)
    pairs = tl.join(joined(a, c, e, g), joined(b, d, f, h))
    return tl.reshape(pairs, (T, S.padded // 2))


@triton.jit
def loaded_table(table, S: tl.constexpr):
    """What codes are looked up in, kept in registers: the entries, f16; or as words the low bytes of 8 entries, then their high
    bytes. Constants would be loaded again at each use."""
    if S.way == "table":
        found = tl.load(table + tl.arange(0, 1 << S.bits)).to(tl.float16)
    elif S.way == "consecutive" or S.rows != "":
        found = 0
    else:
        found = (tl.load(table), tl.load(table + 1), tl.load(table + 2), tl.load(table + 3))
    return found


@triton.jit
def entries(words, bits, start, table, S: tl.constexpr, T: tl.constexpr):
    """f16 [T, padded]: the entries that the tile's codes stand for, integers below 256: exact."""
    n: tl.constexpr = S.padded // 2
    if S.way == "nibble":
        found = halves_of(nibble_entries(words, table, S, T), T, n)
    elif S.way == "short":
        found = halves_of(short_entries(words, bits, start, table, S, T), T, n)
    else:
        pairs = tl.reshape(code_pairs(words, bits, start, S, T), (T, n))
        if S.way == "table":
            codes = tl.reshape(tl.join(pairs & 0xFFFF, pairs >> 16), (T * S.padded,))
            found = tl.reshape(tl.gather(table, codes, 0), (T, S.padded))
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
    """[T, padded] of one side, f16 or floats as they are stored, without S.unit, and without the scale where it is folded."""
    if S.rows != "":
        found = floats(tile, t, seen, S)
    else:
        w = tl.arange(0, S.padded_words)
        words = load_words(tile + S.offset, t, w, S)
        bits, start, scale, minimum = words, 0, 0.0, 0.0
        if S.packing.narrow > 0:
            bits, start = load_narrow(tile, t, w, S)
        if not S.folded:
            scale = block_field(tile, S.scale, t, seen, S)
        if S.minimum >= 0:
            minimum = block_field(tile, S.minimum, t, seen, S)
        # Always so, as LLVM sees at once, and Triton doesn't: it would choose the product's layout by what it finds behind the
        # values, and move each of them between registers once more (a sixth of turbo4's instructions)
        if (splits | 1) != 0:
            found = entries(words, bits, start, table, S, T)
            if not S.folded:
                if S.minimum < 0:
                    found = found * spread(scale, S, T)
                else:
                    found = tl.fma(found, spread(scale, S, T), spread(minimum, S, T))
        else:
            width: tl.constexpr = S.padded
            found = tl.zeros((T, width), tl.float16)
    return found


@triton.jit
def folded_scale(tile, t, seen, S: tl.constexpr):
    """float32 [T]: what the entries of a token are multiplied by, without S.unit."""
    return tl.load((tile + S.scale).to(tl.pointer_type(tl.float16)) + t, mask=seen, other=0.0).to(tl.float32)
