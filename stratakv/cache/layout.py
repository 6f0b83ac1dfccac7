"""Where each byte of a page lies. Pure arithmetic, no tensors of a model.

A page holds PAGE_TOKENS tokens of one layer for all its kv heads: [kv_heads][tile], one contiguous tile a head:

    tile = [K fields of codes and floats][V fields of codes and floats][K scales][V scales]

Within a field the bytes are a permutation of the types' canonical bytes, in the order that vector instructions read:

    K codes    [token / 16][byte / 4][token % 16][byte % 4]   a 32-bit lane is one token x 4 code bytes: integer dot
               products accumulate per token, nothing is summed across lanes
    V codes    [token / 4][byte][token % 4]                   a 32-bit lane is 4 tokens x one code byte: softmax weights of 4
               tokens multiply one (or, packed, two or four) dims
    floats     [token][byte]                                  f16, bf16, f32: rows, as dense attention reads them
    scales     [scale][token]                                 f16 norms, scales and minima: one vector load for many tokens

Where 4 does not divide a field's bytes, the words of K are 2 or 1 bytes long. The name changes when the order does, since
saved states and kernels refer to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import gcd

import numpy as np
from numpy.typing import NDArray

from stratakv.kvtypes import Field, KVType

PAGE_TOKENS = 128
LAYOUT_NAME = "tile128-v1"
_K_GROUP = 16
_V_GROUP = 4


@dataclass(frozen=True)
class PageLayout:
    """The layout of one layer's pages.

    k, v: types; k_dim, v_dim: values of one K and one V vector (they may differ); kv_heads: heads that share a page.
    """

    k: KVType
    v: KVType
    k_dim: int
    v_dim: int
    kv_heads: int

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
        """Bytes of one head's tile: PAGE_TOKENS tokens, K and V."""
        return PAGE_TOKENS * (self.k_bytes + self.v_bytes)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page."""
        return self.kv_heads * self.tile_bytes

    @property
    def positions(self) -> NDArray[np.int64]:
        """[PAGE_TOKENS, k_bytes + v_bytes]: where in the tile canonical byte b of a token's K, then V, lies. A permutation."""
        return _positions(self.k, self.v, self.k_dim, self.v_dim)


@lru_cache(maxsize=256)
def _positions(k: KVType, v: KVType, k_dim: int, v_dim: int) -> NDArray[np.int64]:
    k_bytes, v_bytes = k.nbytes(k_dim), v.nbytes(v_dim)
    table = np.full((PAGE_TOKENS, k_bytes + v_bytes), -1, dtype=np.int64)
    sides = ((k, k_dim, 0, _K_GROUP), (v, v_dim, k_bytes, _V_GROUP))
    base = 0
    for scales in (False, True):  # all codes of K and V first, then the scales
        for type_, dim, first, group in sides:
            for field, columns in _fields(type_, dim):
                if (field.kind == "scale") is not scales:
                    continue
                order = _field_positions(field.kind, len(columns), group)
                table[:, columns + first] = base + order
                base += order.size
    table.setflags(write=False)
    return table


def _fields(type_: KVType, dim: int) -> list[tuple[Field, NDArray[np.int64]]]:
    """The type's fields with their canonical byte columns, the same field of all blocks together."""
    fields, blocks = type_.fields(dim), type_.blocks(dim)
    block_bytes = sum(field.nbytes for field in fields)
    out, start = [], 0
    for field in fields:
        columns = np.arange(blocks)[:, None] * block_bytes + start + np.arange(field.nbytes)[None, :]
        out.append((field, columns.reshape(-1).astype(np.int64)))
        start += field.nbytes
    return out


def _field_positions(kind: str, nbytes: int, group: int) -> NDArray[np.int64]:
    """[PAGE_TOKENS, nbytes]: positions within one field's region."""
    token = np.arange(PAGE_TOKENS, dtype=np.int64)[:, None]
    byte = np.arange(nbytes, dtype=np.int64)[None, :]
    if kind == "float":
        return token * nbytes + byte
    if kind == "scale":
        return (byte // 2) * (2 * PAGE_TOKENS) + token * 2 + byte % 2
    word = gcd(nbytes, 4) if group == _K_GROUP else 1
    return (token // group) * (group * nbytes) + (byte // word) * (group * word) + (token % group) * word + byte % word
