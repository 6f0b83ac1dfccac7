"""A page layout as the compiled kernels know it: how K and V lie in a head's tile, how they are encoded and rotated."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import Any, Literal

import numpy as np

from stratakv.kernels.native import native
from stratakv.kvtypes import KVType
from stratakv.kvtypes.code import Encoding
from stratakv.pages.layout import GROUP, PageLayout, Region, word_bytes
from stratakv.pages.pool import Pool

Side = Literal["k", "v"]

MAX_HEAD_DIM = 1024


@lru_cache(maxsize=1)
def _names() -> tuple[list[str], list[str]]:
    """Packings and encodings that the compiled module knows, in its order; none without the module."""
    module = native()
    return (module.packings(), module.encodings()) if module else ([], [])


def knows(*types: KVType) -> bool:
    """Whether the compiled kernels read pages of all these types; the others run in plain torch."""
    packings, _ = _names()
    return all(type_.packing in packings for type_ in types)


def encodes(layout: PageLayout) -> bool:
    """Whether they write them too; otherwise the types do it themselves."""
    sides = (layout.k, layout.k_dim), (layout.v, layout.v_dim)
    _, encodings = _names()
    found = [type_.code(dim).encoding for type_, dim in sides]
    return all(encoding is not None and encoding.form in encodings for encoding in found)


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
    blocks, code = type_.blocks(dim), type_.code(dim)
    scales = [r for r in places if r.kind == "scale"]
    # the base plane is the larger one: q5's high bits come before it
    planes = sorted((r for r in places if r.kind != "scale"), key=lambda r: -r.nbytes)
    base, high = planes[0], planes[1] if len(planes) > 1 else None
    module: Any = native()
    return module.Side(
        codes=_names()[0].index(str(type_.packing)),
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
        signed_scale=code.signed_scale,
        unit=code.unit,
        table=list(code.table),
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
    encoding, forms = type_.code(dim).encoding, _names()[1]
    if encoding is None or encoding.form not in forms:
        encoding, form = Encoding("none"), len(forms)
    else:
        form = forms.index(encoding.form)
    return {
        "form": form,
        "bits": encoding.bits,
        "thresholds": list(encoding.thresholds),
        "integers": list(encoding.integers),
        "unit": encoding.unit,
        "bins": encoding.bins,
        "numbers": list(encoding.numbers),
        "costs": list(encoding.costs),
    }


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
