"""Decode attention by the compiled kernels: a view's pages and a query in, the attended values out."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from stratakv.cache.handle import PackedView, Side
from stratakv.cache.layout import GROUP, PageLayout, Region, regions, word_bytes
from stratakv.kernels.choice import kernel_name
from stratakv.kernels.native import native
from stratakv.kvtypes import KVType
from stratakv.kvtypes.codebook import codebook

# The order of `Codes` in cpu/attend.h
_CODES = (
    *("rows_f32", "rows_f16", "rows_bf16", "byte", "byte_index", "nibble", "nibble_1", "nibble_2"),
    *("pair", "pair_1", "halves", "halves_1"),
)
_PACKING = {
    "f32": "rows_f32",
    "f16": "rows_f16",
    "bf16": "rows_bf16",
    "q8_0": "byte",
    "q5_1": "halves_1",
    "q5_0": "halves_1",
    "q4_1": "halves",
    "q4_0": "halves",
    "turbo2": "pair",
    "turbo3": "pair_1",
    "turbo4": "nibble",
    "turbo5": "nibble_1",
    "turbo6": "nibble_2",
    "turbo8": "byte_index",
}
_FIRST_CODE = {"q4_0": -8, "q5_0": -16, "q4_1": 0, "q5_1": 0}
MAX_QUERY_TOKENS = 8
MAX_HEAD_DIM = 1024


def attend(
    query: torch.Tensor,
    view: PackedView,
    first: torch.Tensor,
    last: torch.Tensor,
    *,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    precise: bool = False,
    kernel: str | None = None,
) -> torch.Tensor:
    """Attention of a few query tokens over a view's pages, on the CPU.

    query: float32 [batch, q_heads, q_tokens, k_dim] in K's stored basis. first, last: int32 [batch, q_tokens], each query
    sees the view's tokens first .. last - 1. Returns float32 [batch, q_heads, q_tokens, v_dim] in V's stored basis; zeros
    where a query sees nothing.
    """
    layout = view.store.layout
    out = torch.empty(*query.shape[:3], layout.v_dim)
    batch, pages = view.addresses.shape
    k, v = sides(layout)
    module: Any = native()
    module.attend(
        kernel or kernel_name(),
        k,
        v,
        layout.tile_bytes,
        layout.kv_heads,
        query.contiguous(),
        out,
        view.addresses.reshape(-1),
        np.arange(batch, dtype=np.int64) * pages,
        (first + view.start).contiguous(),
        (last + view.start).contiguous(),
        None if sinks is None else sinks.float().contiguous(),
        scale,
        softcap or 0.0,
        precise,
        torch.get_num_threads(),
    )
    return out


@lru_cache(maxsize=256)
def sides(layout: PageLayout) -> tuple[Any, Any]:
    """The compiled module's descriptions of a layout's K and V."""
    places = regions(layout.k, layout.v, layout.k_dim, layout.v_dim)
    return (
        _side("k", layout.k, layout.k_dim, [r for r in places if r.side == "k"]),
        _side("v", layout.v, layout.v_dim, [r for r in places if r.side == "v"]),
    )


def _side(side: Side, type_: KVType, dim: int, places: list[Region]) -> Any:
    plain = type_.name.removesuffix("_rot")
    blocks = type_.blocks(dim)
    scales = [r for r in places if r.kind == "scale"]
    # the base plane is the larger one: q5's high bits come before it
    planes = sorted((r for r in places if r.kind != "scale"), key=lambda r: -r.nbytes)
    base, high = planes[0], planes[1] if len(planes) > 1 else None
    unit, table = 1.0, list[int]()
    if type_.turbo:
        book = codebook(dim // blocks, int(plain.removeprefix("turbo")))
        unit, table = book.scale, book.integers.tolist() if len(book.integers) <= 64 else []
    elif plain in _FIRST_CODE:
        table = [code + _FIRST_CODE[plain] for code in range(32 if plain.startswith("q5") else 16)]
    module: Any = native()
    return module.Side(
        codes=_CODES.index(_PACKING[plain]),
        dim=dim,
        nbytes=type_.nbytes(dim),
        blocks=blocks,
        group=GROUP[side],
        base_bytes=base.nbytes,
        base_word=word_bytes(side, base.nbytes),
        base=base.offset,
        high_bytes=high.nbytes if high else 0,
        high_word=word_bytes(side, high.nbytes) if high else 1,
        high=high.offset if high else 0,
        scale=scales[0].offset if scales else 0,
        minimum=scales[1].offset if len(scales) > 1 else -1,
        signed_scale=plain in ("q4_0", "q5_0"),
        unit=unit,
        table=table,
    )
