"""A page layout as the compiled kernels know it: how K and V lie in a head's tile, how they are encoded and rotated."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import Any, Literal

import numpy as np

from stratakv.kernels.native import native
from stratakv.kvtypes import KVType
from stratakv.kvtypes.blocks import BlockType
from stratakv.kvtypes.codebook import codebook
from stratakv.kvtypes.rotated import RotatedType
from stratakv.pages.layout import GROUP, PageLayout, Region, word_bytes
from stratakv.pages.pool import Pool

Side = Literal["k", "v"]

MAX_HEAD_DIM = 1024
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
# The order of Encoder::Form in cpu/encode.h
_FORMS = ("f32", "f16", "bf16", "turbo", "q8", "minimum", "middle")


def knows(*types: KVType) -> bool:
    """Whether the compiled kernels read and write all these types; the others run in plain torch."""
    return all(type_.name.removesuffix("_rot") in _PACKING for type_ in types)


@lru_cache(maxsize=256)
def native_layout(layout: PageLayout) -> Any:
    """The compiled module's `Layout`, made once for each layout."""
    module: Any = native()
    places = layout.regions
    return module.Layout(
        k=_side("k", layout.k, layout.k_dim, [r for r in places if r.side == "k"]),
        v=_side("v", layout.v, layout.v_dim, [r for r in places if r.side == "v"]),
        k_encoder=_encoder(layout, "k"),
        v_encoder=_encoder(layout, "v"),
        kv_heads=layout.kv_heads,
        tile_bytes=layout.tile_bytes,
    )


def compiled(pool: Pool) -> Any:
    """The compiled module's `Layout` of a pool."""
    return pool.once(native_layout, lambda: native_layout(pool.layout))


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


def _encoder(layout: PageLayout, side: Side) -> Any:
    module: Any = native()
    fields = encoder_fields(layout, side)
    return module.Encoder(**{**fields, "rotation": module.Rotation(**fields["rotation"])})


def encoder_fields(layout: PageLayout, side: Side) -> dict[str, Any]:
    """What the compiled module's `Encoder` is made of, its rotation as a dictionary of what `Rotation` is made of."""
    type_, dim = (layout.k, layout.k_dim) if side == "k" else (layout.v, layout.v_dim)
    columns = slice(0, layout.k_bytes) if side == "k" else slice(layout.k_bytes, None)
    return {
        "dim": dim,
        "nbytes": type_.nbytes(dim),
        "blocks": type_.blocks(dim),
        "positions": layout.positions[:, columns].reshape(-1).tolist(),
        "rotation": _rotation(type_, dim),
        **_form(type_, dim),
    }


def _form(type_: KVType, dim: int) -> dict[str, Any]:
    nothing: dict[str, Any] = {"bits": 0, "thresholds": [], "integers": [], "unit": 1.0}
    if type_.turbo:
        bits = int(type_.name.removeprefix("turbo"))
        book = codebook(dim // type_.blocks(dim), bits)
        return {
            "form": _FORMS.index("turbo"),
            "bits": bits,
            "thresholds": book.thresholds.tolist(),
            "integers": book.integers.tolist(),
            "unit": book.scale,
        }
    stored = type_.stored if isinstance(type_, RotatedType) else type_
    if not isinstance(stored, BlockType):
        return {**nothing, "form": _FORMS.index(type_.name)}
    form = "q8" if stored.bits == 8 else "minimum" if stored.minimum else "middle"
    return {**nothing, "form": _FORMS.index(form), "bits": stored.bits}


def _rotation(type_: KVType, dim: int) -> dict[str, Any]:
    rotation = type_.rotation(dim)
    if rotation is None:
        return {"block": 0, "order": 1, "first": [], "second": [], "paley": [], "norm": 1.0}
    first, second, paley = rotation.parts()
    return {
        "block": rotation.block,
        "order": len(paley),
        "first": first.tolist(),
        "second": second.tolist(),
        "paley": paley.astype(np.float32).reshape(-1).tolist(),
        "norm": 1 / sqrt(rotation.block),
    }
