"""How much a program of the attention kernel takes at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from stratakv.kernels.triton.side import Side
from stratakv.kvtypes import KVType
from stratakv.pages.layout import PageLayout

MAX_HEAD_DIM = 256
TURNED_ROWS = 8  # columns of the matrix units' least product


@dataclass(frozen=True)
class Shape:
    """queries: query tokens of a program. rows: query tokens times heads of a kv head, padded to a power of two. turned: whether
    they are the columns of products. tile: tokens that are decoded at once. resident: programs that a multiprocessor should
    have. registers: a thread's at most; None where ptxas chooses."""

    groups: int
    queries: int
    rows: int
    turned: bool
    tile: int
    warps: int
    stages: int
    resident: int
    registers: int | None

    def constants(self, k: Side, v: Side, layout: PageLayout, softcap: bool) -> dict[str, Any]:
        """The template's compile-time constants."""
        return {
            "K": k,
            "V": v,
            "KV_HEADS": layout.kv_heads,
            "GROUPS": self.groups,
            "TILE_BYTES": layout.tile_bytes,
            "M": self.rows,
            "QUERIES": self.queries,
            "T": self.tile,
            "TURNED": self.turned,
            "SOFTCAP": softcap,
        }


def shape_of(layout: PageLayout, groups: int, queries: int) -> Shape:
    """For q_heads = groups * kv_heads, and sequences of that many query tokens or fewer."""
    names = layout.k.name, layout.v.name
    wide, exact = max(layout.k_dim, layout.v_dim) > 128, "f32" in names
    if queries * groups <= TURNED_ROWS:
        return _turned(layout, groups, queries)
    # so that nothing spills: products of floats take more registers than those of halves, and so do rows of 256 sums
    rows = 16 if exact or queries * groups <= 16 else 32 if wide or "bf16" in names else 64
    rows = max(rows, 1 << (groups - 1).bit_length())
    queries = min(queries, rows // groups)
    if wide and exact:
        return Shape(groups, queries, rows, False, gcd(32, layout.page_tokens), 8, 1, 1, 255)
    # f16 beside heads that are no power of two, whose padding is masked: 8 bytes spilled with 64 tokens (3.7.1, f16/q5_1, 96)
    padded = any(dim & (dim - 1) for dim in (layout.k_dim, layout.v_dim)) and not {"f16", "bf16"}.isdisjoint(names)
    tile = gcd(64 // (1 + wide) // (1 + exact) // (1 + padded), layout.page_tokens)  # within a page
    warps = 8 if rows > 32 or (wide and rows > 16) else 4
    # left to itself ptxas spills some registers to fit one program more; told how many there are, it makes do: 3 programs of 128
    # threads have 168 each, 2 have 255. Trellis types need more than 168 in some shapes
    trellis = rows == 16 and any(str(side.packing).startswith("trellis") for side in (layout.k, layout.v))
    three = rows == 16 and not trellis and {"bf16", "f32"}.isdisjoint(names)
    registers = (168 if three else 255) if wide or trellis else None
    resident = 4 if rows == 16 and not trellis else 2
    return Shape(groups, queries, rows, False, tile, warps, 2, resident, registers)


def _turned(layout: PageLayout, groups: int, queries: int) -> Shape:
    """Few rows: two warps, of which a multiprocessor holds 10 at 200 registers a thread. It would hold 12 at 168, where some
    types spill (10.0: 16 to 40 bytes); with 200 turbo8 at 256 spills 24 bytes, tcq3 at 96 80, and two sides of bytes 8 to 24."""
    wide, names = max(layout.k_dim, layout.v_dim) > 128, (layout.k.name, layout.v.name)
    tile = 64 // (1 + wide) // max(_need(layout.k, layout.k_dim), _need(layout.v, layout.v_dim))
    warps, registers, resident = 2, 200, 5
    if "f32" in names:
        warps, registers, resident = (8, 255, 1) if wide else (4, 255, 2)
        tile = 32 if wide else tile
    elif (
        "bf16" in names
        or (wide and "turbo8" in names)
        or all(str(side.packing).startswith("byte") for side in (layout.k, layout.v))  # 10.0: 8 to 24 bytes
        or any("trellis" in str(side.packing) for side in (layout.k, layout.v))
    ):
        registers, resident = 255, 4
    tile = gcd(tile, layout.page_tokens)  # within a page
    return Shape(groups, queries, TURNED_ROWS, True, tile, warps, 2, resident, registers)


def _need(type_: KVType, dim: int) -> int:
    """How many times the registers of most types: floats as they are loaded, trellis types by their steps' words, tables in
    shared memory."""
    packing = str(type_.packing)
    padded = dim & (dim - 1)  # tcq3 at 96: 8 bytes spilled
    much = packing.startswith(("rows", "trellis" if padded else "trellis_nibble")) or len(type_.code(dim).table) > 32
    return 2 if much else 1
