"""One side (K or V) of a page as the Triton kernels' compile-time constant: where its codes lie and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np

from stratakv.kvtypes import KVType
from stratakv.pages.layout import PageLayout, Region

Name = Literal["k", "v"]
ROWS = {"rows_f32": "f32", "rows_f16": "f16", "rows_bf16": "bf16"}


@dataclass(frozen=True)
class Packing:
    """Planes of codes: bits of the wide one and of the narrow one (0: none); halves: byte j of a block's wide plane holds
    value j and value j + block / 2; signed: codes are signed bytes; trellis: a code has a bit x, see
    kvtypes/trellis.py."""

    wide: int
    narrow: int = 0
    halves: bool = False
    signed: bool = False
    trellis: bool = False


PACKINGS = {
    "pair": Packing(2),
    "pair_1": Packing(2, 1),
    "nibble": Packing(4),
    "nibble_1": Packing(4, 1),
    "nibble_2": Packing(4, 2),
    "byte_index": Packing(8),
    "halves": Packing(4, halves=True),
    "halves_1": Packing(4, 1, halves=True),
    "byte": Packing(8, signed=True),
    "trellis_pair": Packing(2, trellis=True),
    "trellis_pair_1": Packing(2, 1, trellis=True),
    "trellis_nibble": Packing(4, trellis=True),
    "trellis_nibble_1": Packing(4, 1, trellis=True),
    "trellis_nibble_2": Packing(4, 2, trellis=True),
}


@dataclass(frozen=True)
class Side:
    """rows: f32, f16 or bf16 where values lie as floats, "" where they are codes of a packing; dim values in `blocks` blocks.

    Offsets are bytes within a head's tile: of the floats or the wide plane (wide_bytes a token), of the narrow plane
    (narrow_bytes a token, loaded in words of narrow_word bits), of the block's scale and of its minimum (-1: none).

    A value is (entry of its code) * unit * scale + minimum, the entry being table[code], or code - middle where the table is
    empty. padded: values of a vector as the kernel holds them, a power of two; padded_blocks: likewise.

    digest: of this file. Triton keeps compiled kernels, also on disk, by their constants' text, in which properties aren't.
    """

    rows: str
    dim: int
    blocks: int
    page_tokens: int
    offset: int
    packing: Packing
    wide_bytes: int
    narrow: int
    narrow_bytes: int
    narrow_word: int
    scale: int
    minimum: int
    unit: float
    middle: int
    table: tuple[int, ...]
    padded: int
    padded_blocks: int
    digest: str

    @property
    def size(self) -> int:
        """Values of a block."""
        return self.dim // self.blocks

    @property
    def odd(self) -> int:
        """Values that are left where a block is halved as long as that goes."""
        return self.size // (self.size & -self.size)

    @property
    def halvings(self) -> int:
        """Until then."""
        return (self.size & -self.size).bit_length() - 1

    @property
    def per_word(self) -> int:
        """Codes of a 32-bit word of the wide plane."""
        return 32 // self.packing.wide

    @property
    def words(self) -> int:
        """Words of a token's wide plane."""
        return self.wide_bytes // 4

    @property
    def padded_words(self) -> int:
        """The same, a power of two."""
        return self.padded // self.per_word

    @property
    def way(self) -> Literal["consecutive", "short", "mirrored8", "mirrored16", "table"]:
        """How codes become entries: by arithmetic, by byte permutations of 4 or 8 entries, or of 8 or 16 magnitudes under a sign,
        or from a table in shared memory."""
        if not self.table:
            return "consecutive"
        if len(self.table) <= 8:
            return "short"
        if max(self.table) < 128 and self.table == tuple(-entry for entry in reversed(self.table)):
            if self.bits == 4:
                return "mirrored8"
            if self.bits == 5 and self.packing.wide == 4:
                return "mirrored16"
        return "table"

    @property
    def looked_up(self) -> tuple[int, ...]:
        """The table as `unpack.loaded_table` takes it: entries; or four words: of 8 entries as f16 the low bytes, then the high
        bytes; of 8 or 16 magnitudes a byte each."""
        if self.way in ("consecutive", "table"):
            return self.table or (0,)
        if self.way == "short":
            halves = np.resize(np.array(self.table, dtype="<f2"), 8).view(np.uint8).reshape(8, 2)
            return tuple(halves.T.copy().reshape(-1).view("<i4").tolist())
        magnitudes = np.array(self.table[len(self.table) // 2 :], dtype=np.uint8)
        return tuple(np.resize(magnitudes, 16).view("<i4").tolist())

    @property
    def subnormal(self) -> bool:
        """Whether codes become 2^-24 of their entries: an f16 whose bits are a magnitude and a sign."""
        return self.way in ("mirrored8", "mirrored16")

    @property
    def factor(self) -> float:
        """What scores or sums are multiplied by beside scales."""
        return self.unit * 2.0**24 if self.subnormal and self.folded else self.unit

    @property
    def apart(self) -> int:
        """Codes of a word that share a register are so many from each other."""
        return self.per_word // 4 if self.subnormal else self.per_word // 2

    @property
    def bits(self) -> int:
        """Of a code, and of the number of a trellis' level."""
        return self.packing.wide + self.packing.narrow + self.packing.trellis

    @property
    def x_bits(self) -> int:
        """Of a value in the plane that holds a trellis' x."""
        return self.packing.narrow or self.packing.wide

    @property
    def x_words(self) -> int:
        """A block's words of that plane."""
        return self.size * self.x_bits // 32

    @property
    def block_words(self) -> int:
        """A block's words of the wide plane."""
        return self.size * self.packing.wide // 32

    @property
    def stretches(self) -> int:
        """Of a block's wide plane: in the first lie the values 0, stretches, 2 * stretches, ..."""
        return self.packing.wide // self.x_bits

    @property
    def part(self) -> int:
        """Values of K that are multiplied at once, 0 for all: three products of floats of 32 bits fill the registers."""
        return 64 if self.rows == "f32" and self.dim > 128 else 0

    @property
    def folded(self) -> bool:
        """Whether a token's only scale multiplies scores or weights, instead of values."""
        return self.blocks == 1 and self.scale >= 0 and self.minimum < 0


def refusal(type_: KVType, dim: int) -> str | None:
    """Why the kernels don't read vectors of that type and dim, in words."""
    if type_.packing in ROWS:
        return None
    if type_.packing not in PACKINGS:
        return f"no Triton kernel for {type_.name}"
    packing, blocks = PACKINGS[str(type_.packing)], type_.blocks(dim)
    size = dim // blocks
    if blocks > 1 and size & (size - 1):
        return f"no Triton kernel for {type_.name} in blocks of {size}"
    if packing.trellis and (size < 32 or size * (packing.narrow or packing.wide) % 32):
        return f"no Triton kernel for {type_.name} in blocks of {size}: a block's bits x are no whole words"
    if dim * packing.wide % 32 or size * packing.wide % 32 or dim * packing.narrow % 16:
        return f"no Triton kernel for {type_.name} at head_dim {dim}: a token's codes are no whole words"
    return None


@lru_cache(maxsize=256)
def side_of(layout: PageLayout, name: Name) -> Side:
    """The side of a layout that nothing refuses."""
    type_, dim = (layout.k, layout.k_dim) if name == "k" else (layout.v, layout.v_dim)
    regions = [region for region in layout.regions if region.side == name]
    planes = sorted((r for r in regions if r.kind != "scale"), key=lambda r: -r.nbytes)
    scales = [r.offset for r in regions if r.kind == "scale"]
    code, blocks = type_.code(dim), type_.blocks(dim)
    rows = ROWS.get(str(type_.packing), "")
    packing = PACKINGS.get(str(type_.packing), Packing(8))
    narrow = planes[1] if len(planes) > 1 else Region(name, "codes", 0, 0, ())
    table, middle = _entries(code.table, packing)
    size = dim // blocks
    return Side(
        rows=rows,
        dim=dim,
        blocks=blocks,
        page_tokens=layout.page_tokens,
        offset=planes[0].offset,
        packing=packing,
        wide_bytes=planes[0].nbytes,
        narrow=narrow.offset,
        narrow_bytes=narrow.nbytes,
        narrow_word=32 if narrow.nbytes % 4 == 0 else 16,
        scale=scales[0] if scales else -1,
        minimum=scales[1] if len(scales) > 1 else -1,
        unit=code.unit,
        middle=middle,
        table=table,
        padded=max(_power(blocks) * size, 16) if blocks > 1 else max(_power(dim), 16),
        padded_blocks=_power(blocks),
        digest=_digest(),
    )


@cache
def _digest() -> str:
    return sha256(Path(__file__).read_bytes()).hexdigest()[:16]


def _entries(table: tuple[int, ...], packing: Packing) -> tuple[tuple[int, ...], int]:
    """(the table, 0), or ((), what to subtract from a code) where entries are consecutive."""
    if not table:  # bytes: signed ones are read with their highest bit turned
        return (), 128
    if table == tuple(range(table[0], table[0] + len(table))):
        return (), -table[0]
    return table, 0


def _power(n: int) -> int:
    """The least power of two that is n or more."""
    return 1 << (n - 1).bit_length()
