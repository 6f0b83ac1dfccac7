"""Encoding by the compiled kernels: states in, bytes straight into pages, the same bytes as the types' torch bodies."""

from __future__ import annotations

from functools import lru_cache
from math import sqrt
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.cache.layout import PageLayout
from stratakv.kernels.choice import kernel_name
from stratakv.kernels.native import native
from stratakv.kvtypes import KVType
from stratakv.kvtypes.blocks import BlockType
from stratakv.kvtypes.codebook import codebook
from stratakv.kvtypes.rotated import RotatedType

# The order of Encoder::Form in cpu/encode.h
_FORMS = ("f32", "f16", "bf16", "turbo", "q8", "minimum", "middle")
_NO_SIGNS = list[float]()


def encode_into_pages(
    states: torch.Tensor,
    layout: PageLayout,
    side: Literal["k", "v"],
    pages: NDArray[np.uint64],
    start: int,
    kernel: str | None = None,
) -> None:
    """Encode K or V states into their pages.

    states: float [batch, kv_heads, tokens, head_dim] on the CPU. pages: addresses [batch, pages] of the pages that the
    tokens fall into; start: the first token's position in the first of them. ValueError for inf and nan, and for values too
    large for the type: what was written of them lies beyond the cache's length.
    """
    type_ = layout.k if side == "k" else layout.v
    module: Any = native()
    rows = states.detach().to(torch.float32).contiguous()
    failed = module.encode(
        kernel or kernel_name(), _encoder(layout, side), rows, pages, start, layout.tile_bytes, torch.get_num_threads()
    )
    if failed == 1:
        raise ValueError(f"non-finite values (inf or nan) can't be stored as {type_.name}")
    if failed:
        raise ValueError(f"values too large for {type_.name} (a stored f16 would be beyond 65504)")


@lru_cache(maxsize=512)
def _encoder(layout: PageLayout, side: Literal["k", "v"]) -> Any:
    type_, dim = (layout.k, layout.k_dim) if side == "k" else (layout.v, layout.v_dim)
    columns = slice(0, layout.k_bytes) if side == "k" else slice(layout.k_bytes, None)
    module: Any = native()
    return module.Encoder(
        dim=dim,
        nbytes=type_.nbytes(dim),
        blocks=type_.blocks(dim),
        positions=layout.positions[:, columns].reshape(-1).tolist(),
        **_form(type_, dim),
        **_rotation(type_, dim),
    )


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
        return {
            "rotation": 0,
            "order": 1,
            "first_signs": _NO_SIGNS,
            "second_signs": _NO_SIGNS,
            "paley": _NO_SIGNS,
            "norm_of_rotation": 1.0,
        }
    first, second, paley = rotation.parts()
    return {
        "rotation": rotation.block,
        "order": len(paley),
        "first_signs": first.tolist(),
        "second_signs": second.tolist(),
        "paley": paley.astype(np.float32).reshape(-1).tolist(),
        "norm_of_rotation": 1 / sqrt(rotation.block),
    }
