"""Where each byte of a page lies. Pure arithmetic, no tensors of a model.

A page holds page_tokens tokens of one layer for all its kv heads: [kv_heads][tile], one contiguous tile a head:

    tile = [K fields of codes and floats][V fields of codes and floats][K scales][V scales]

Within a field the bytes are a permutation of the types' canonical bytes. Order "tile" is what a CPU's vector instructions read:

    K codes    [token / 16][byte / 4][token % 16][byte % 4]   a 32-bit lane is one token x 4 code bytes: integer dot
               products accumulate per token, nothing is summed across lanes
    V codes    [token / 4][byte][token % 4]                   a 32-bit lane is 4 tokens x one code byte: softmax weights of 4
               tokens multiply one (or, packed, two or four) dims
    floats     [token][byte]                                  f16, bf16, f32: rows, as dense attention reads them
    scales     [scale][token]                                 f16 norms, scales and minima: one vector load for many tokens

Where 4 does not divide a field's bytes, the words of K are 2 or 1 bytes long. Order "rows" is what a GPU reads: codes of K and V
lie as floats do, [token][byte], so that neighbouring threads load neighbouring words of a token. A layout's name says tokens and
order, and kernels check it. Saved slots hold canonical bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from stratakv.kvtypes import KVType
from stratakv.profile import LayerGeometry, LayerStorage, spans

PAGE_TOKENS = spans.PAGE_TOKENS  # of the engines' own pages; spans are counted in them
Order = Literal["tile", "rows"]
ORDERS: tuple[Order, ...] = ("tile", "rows")
VERSION = "v1"  # another one when an order's bytes lie otherwise
# tokens that share a vector of code bytes
GROUP = {"k": 16, "v": 4}


@dataclass(frozen=True)
class PageLayout:
    """The layout of one layer's pages.

    k, v: types; k_dim, v_dim: values of one K and one V vector (they may differ); kv_heads: heads that share a page; page_tokens:
    tokens of a page, a multiple of 16; order: how bytes lie in a tile.
    """

    k: KVType
    v: KVType
    k_dim: int
    v_dim: int
    kv_heads: int
    page_tokens: int = PAGE_TOKENS
    order: Order = "tile"

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ValueError(f"pages in order {self.order!r}: allowed are {', '.join(ORDERS)}")
        if self.page_tokens < 1 or self.page_tokens % GROUP["k"]:
            raise ValueError(f"pages of {self.page_tokens} tokens: allowed are multiples of {GROUP['k']}")

    @property
    def name(self) -> str:
        """Of size and order, "tile16-v1" for example: kernels read pages of names that they know."""
        return f"{self.order}{self.page_tokens}-{VERSION}"

    @property
    def k_bytes(self) -> int:
        """Bytes of one K vector."""
        return self.k.nbytes(self.k_dim)

    @property
    def v_bytes(self) -> int:
        """Bytes of one V vector."""
        return self.v.nbytes(self.v_dim)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one head's tile: page_tokens tokens, K and V."""
        return self.page_tokens * (self.k_bytes + self.v_bytes)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.kv_heads * self.tile_bytes

    @property
    def positions(self) -> NDArray[np.int64]:
        """[page_tokens, k_bytes + v_bytes]: where in the tile canonical byte b of a token's K, then V, lies. A permutation."""
        return _positions(self)

    @property
    def regions(self) -> tuple[Region, ...]:
        """The tile's regions in the order of their offsets: codes and floats of K, then of V, scales of K, then of V."""
        return _regions(self)


def layout_of(layer: LayerGeometry, storage: LayerStorage, order: Order = "tile") -> PageLayout:
    """The layout of a layer's pages in the engines' own size."""
    return PageLayout(storage.k, storage.v, *layer.head_dim, layer.kv_heads, order=order)


@dataclass(frozen=True)
class Region:
    """One field of one side, all blocks together: kind and nbytes (a token) of the field, offset of its bytes in the tile.

    columns: which canonical bytes of the side's vector these are.
    """

    side: Literal["k", "v"]
    kind: Literal["scale", "codes", "float"]
    nbytes: int
    offset: int
    columns: tuple[int, ...]


@lru_cache(maxsize=256)
def _regions(layout: PageLayout) -> tuple[Region, ...]:
    found: list[Region] = []
    offset = 0
    for scales in (False, True):
        for side, type_, dim in (("k", layout.k, layout.k_dim), ("v", layout.v, layout.v_dim)):
            fields, blocks = type_.fields(dim), type_.blocks(dim)
            block_bytes, start = sum(field.nbytes for field in fields), 0
            for field in fields:
                if (field.kind == "scale") is scales:
                    columns = tuple(b * block_bytes + start + i for b in range(blocks) for i in range(field.nbytes))
                    found.append(Region(cast(Literal["k", "v"], side), field.kind, len(columns), offset, columns))
                    offset += layout.page_tokens * len(columns)
                start += field.nbytes
    return tuple(found)


def word_bytes(side: Literal["k", "v"], nbytes: int) -> int:
    """Code bytes of one token that lie side by side."""
    return gcd(nbytes, 4) if side == "k" else 1


@lru_cache(maxsize=256)
def _positions(layout: PageLayout) -> NDArray[np.int64]:
    table = np.full((layout.page_tokens, layout.k_bytes + layout.v_bytes), -1, dtype=np.int64)
    for region in layout.regions:
        columns = np.array(region.columns) + (0 if region.side == "k" else layout.k_bytes)
        table[:, columns] = region.offset + _field_positions(region, layout)
    table.setflags(write=False)
    return table


def _field_positions(region: Region, layout: PageLayout) -> NDArray[np.int64]:
    """[page_tokens, nbytes]: positions within the region."""
    token = np.arange(layout.page_tokens, dtype=np.int64)[:, None]
    byte = np.arange(region.nbytes, dtype=np.int64)[None, :]
    if region.kind == "scale":
        return (byte // 2) * (2 * layout.page_tokens) + token * 2 + byte % 2
    if region.kind == "float" or layout.order == "rows":
        return token * region.nbytes + byte
    group, word = GROUP[region.side], word_bytes(region.side, region.nbytes)
    return (
        (token // group) * (group * region.nbytes)
        + (byte // word) * (group * word)
        + (token % group) * word
        + byte % word
    )
