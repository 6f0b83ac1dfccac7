"""How much a program of the attention kernel takes at once."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from stratakv.kernels.triton.side import Side
from stratakv.pages.layout import PageLayout

MAX_HEAD_DIM = 256
_MOST_GROUPS = 64


@dataclass(frozen=True)
class Shape:
    """queries: query tokens of a program. rows: query tokens times heads of a kv head, padded to a power of two. tile: tokens
    that are decoded at once. resident: programs that a multiprocessor should have. registers: a thread's at most; None
    where ptxas chooses."""

    groups: int
    queries: int
    rows: int
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
            "T": self.tile,
            "SOFTCAP": softcap,
        }


def shape_of(layout: PageLayout, groups: int, queries: int) -> Shape:
    """For q_heads = groups * kv_heads, and sequences of that many query tokens or fewer."""
    names = layout.k.name, layout.v.name
    wide, exact = max(layout.k_dim, layout.v_dim) > 128, "f32" in names
    # so that nothing spills: products of floats take more registers than those of halves, and so do rows of 256 sums
    rows = 16 if exact or queries * groups <= 16 else 32 if wide or "bf16" in names else 64
    rows = max(rows, 1 << (groups - 1).bit_length())
    # f16 beside heads that are no power of two, whose padding is masked: 8 bytes spilled with 64 tokens (3.7.1, f16/q5_1, 96)
    padded = any(dim & (dim - 1) for dim in (layout.k_dim, layout.v_dim)) and not {"f16", "bf16"}.isdisjoint(names)
    tile = gcd(64 // (1 + wide) // (1 + exact) // (1 + padded), layout.page_tokens)  # within a page
    warps, stages = (8 if rows > 32 or (wide and (rows > 16 or exact)) else 4), (1 if wide and exact else 2)
    # left to itself ptxas spills some registers to fit one program more; told how many there are, it makes do: 3 programs of 128
    # threads have 168 each, 2 have 255. Trellis types need more than 168 in some shapes
    trellis = rows == 16 and any(str(side.packing).startswith("trellis") for side in (layout.k, layout.v))
    three = rows == 16 and not trellis and {"bf16", "f32"}.isdisjoint(names)
    registers = (168 if three else 255) if wide or trellis else None
    return Shape(groups, rows // groups, rows, tile, warps, stages, 4 if rows == 16 and not trellis else 2, registers)
