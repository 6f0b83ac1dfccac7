"""A file of states and of the bytes that the torch bodies make of them, which `native/encode_check.cpp` reads."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stratakv.kernels.cpu.layout import encoder_fields
from stratakv.kvtypes import KVType, kv_type, type_names
from stratakv.pages.layout import PageLayout

DIMS = (8, 16, 64, 80, 96, 128, 256)
HEADS, PAGES = 2, 2
# The order of `Precision` in cpu/matrices.h
PRECISIONS = (torch.float32, torch.float16, torch.bfloat16)
# Runs of four from a multiple of four, runs from elsewhere, a page's end and the next one's start, strays, some not stored
SLOTS = [*range(4, 12), 13, 14, 15, 16, -1, *range(122, 134), -1, 200, 77, 255, 0, 138, -1]


def write_cases(path: Path) -> None:
    """Every type at every dim, at some in every precision, a K wider than V, and states that can't be stored."""
    types = [kv_type(name) for name in type_names()]
    with path.open("wb") as out:
        for i, type_ in enumerate(types):
            for dim in DIMS:
                for precision in PRECISIONS if dim in (16, 80, 128) else PRECISIONS[:1]:
                    partner = types[(i + dim + PRECISIONS.index(precision)) % len(types)]
                    out.write(_case(type_, partner, dim, dim, precision))
            out.write(_case(type_, type_, 192, 128, torch.float32))
            for bad in (float("nan"), float("inf"), -float("inf"), 1e30):
                for dim in (80, 128):
                    out.write(_case(type_, kv_type("turbo2"), dim, dim, torch.float32, bad))


def _case(k: KVType, v: KVType, k_dim: int, v_dim: int, precision: torch.dtype, bad: float | None = None) -> bytes:
    layout = PageLayout(k, v, k_dim, v_dim, HEADS)
    generator = torch.Generator().manual_seed(k_dim)
    name = f"{k.name}/{v.name} dim {k_dim}/{v_dim} {precision} bad {bad}".encode()
    parts = [_vector(name), struct.pack("=iiq", HEADS, PAGES, layout.tile_bytes), _vector(np.array(SLOTS))]
    for side, type_, dim in (("k", k, k_dim), ("v", v, v_dim)):
        states = _states(dim, precision, generator)
        if bad is not None and side == "k":
            states[5, 1, dim // 2] = bad
        parts += [_encoder(encoder_fields(layout, side)), struct.pack("=i", PRECISIONS.index(precision))]
        parts.append(_vector(states.view(torch.uint8).numpy()))
        try:
            parts += [struct.pack("=i", 0), _vector(type_.encode(states.float()).numpy())]
        except ValueError as error:
            parts += [struct.pack("=i", 1 if "non-finite" in str(error) else 2), _vector(b"")]
    return b"".join(parts)


def _states(dim: int, precision: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """[tokens, HEADS, dim], some of them nothing, next to nothing, large and all alike."""
    states = torch.randn(len(SLOTS), HEADS, dim, generator=generator)
    states[0], states[1, 0] = 0, 0.5
    states[2] *= 1e-30
    states[3, 1] *= 1e-5
    states[9] *= 500
    return states.to(precision)


def _encoder(fields: dict[str, Any]) -> bytes:
    rotation = fields["rotation"]
    numbers = (fields[name] for name in ("form", "dim", "nbytes", "blocks", "bits", "unit"))
    return b"".join(
        [
            struct.pack("=iiiiif", *numbers),
            _vector(np.array(fields["thresholds"], dtype=np.float32)),
            _vector(np.array(fields["integers"], dtype=np.int32)),
            struct.pack("=f", fields["bins"]),
            *(_vector(np.array(fields[name], dtype=np.int32)) for name in ("numbers", "costs", "positions")),
            struct.pack("=iif", rotation["block"], rotation["order"], rotation["norm"]),
            *(_vector(np.array(rotation[name], dtype=np.float32)) for name in ("first", "second", "paley")),
        ]
    )


def _vector(values: NDArray[Any] | bytes) -> bytes:
    """Its length, then itself."""
    length = len(values) if isinstance(values, bytes) else values.size
    return struct.pack("=i", length) + (values if isinstance(values, bytes) else values.tobytes())
