"""How one side of a page is written, as the Triton kernel's compile-time constant, and the numbers that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import inf

import numpy as np
import torch

from stratakv.kernels.triton.side import Name, side_of
from stratakv.pages.layout import PageLayout

FORMS = ("f32", "f16", "bf16", "q8", "minimum", "middle", "turbo", "trellis")


@dataclass(frozen=True)
class Encoder:
    """form: the encoding's rule, see `kvtypes.code.Encoding`, whose bits and unit these are. rotation: values that are rotated
    together, 0 where none are: in runs of `paley` values by Paley's matrix (1: none), held in `run` places, a power of two, and
    in `steps` butterflies. tokens: of a program. bins: of a trellis, how many a coordinate of 1 is from 0."""

    form: str
    bits: int
    unit: float
    rotation: int
    paley: int
    run: int
    steps: int
    tokens: int
    bins: float = 0.0


@dataclass(frozen=True)
class Numbers:
    """On a device: signs, float32 [2, padded], before and after the rotation; paley, float32 [Encoder.paley, Encoder.run], the
    columns of Paley's matrix; thresholds, float32 [2^bits], the last one
    infinite; integers, int32 [2^bits], of a trellis twice as many; and of a trellis numbers, uint8 [bins, 4], and costs, int64
    [bins], 16 bits for each subset, the first in the low ones."""

    signs: torch.Tensor
    paley: torch.Tensor
    thresholds: torch.Tensor
    integers: torch.Tensor
    numbers: torch.Tensor
    costs: torch.Tensor


@lru_cache(maxsize=256)
def encoder_of(layout: PageLayout, name: Name) -> Encoder | None:
    """None where the type encodes itself, in torch: rules that the kernel doesn't know."""
    type_, dim = (layout.k, layout.k_dim) if name == "k" else (layout.v, layout.v_dim)
    encoding, rotation = type_.code(dim).encoding, type_.rotation(dim)
    if encoding is None or encoding.form not in FORMS:
        return None
    block = 0 if rotation is None else rotation.block
    paley = 1 if rotation is None else len(rotation.parts()[2])
    run, steps = 1 << (paley - 1).bit_length(), max(block // paley - 1, 0).bit_length()
    return Encoder(encoding.form, encoding.bits, encoding.unit, block, paley, run, steps, 4, encoding.bins)


def numbers_of(layout: PageLayout, name: Name, device: torch.device) -> Numbers:
    """For a side that has an encoder."""
    type_, dim = (layout.k, layout.k_dim) if name == "k" else (layout.v, layout.v_dim)
    side, encoding, rotation = side_of(layout, name), type_.code(dim).encoding, type_.rotation(dim)
    signs, columns = np.ones((2, side.padded), dtype=np.float32), np.ones((1, 1), dtype=np.float32)
    if rotation is not None:
        first, second, paley = rotation.parts()
        columns = np.zeros((len(paley), 1 << (len(paley) - 1).bit_length()), dtype=np.float32)
        columns[:, : len(paley)] = paley.T
        signs[:, :dim] = np.tile(np.stack([first, second]), dim // rotation.block)
    thresholds, integers = (encoding.thresholds, encoding.integers) if encoding else ((), ())
    costs = np.array(encoding.costs if encoding else (), dtype=np.int64).reshape(-1, 4)
    return Numbers(
        torch.from_numpy(signs).to(device),
        torch.from_numpy(columns).to(device),
        torch.tensor([*thresholds, inf], dtype=torch.float32, device=device),
        torch.tensor(integers or (0,), dtype=torch.int32, device=device),
        torch.tensor(encoding.numbers if encoding else (), dtype=torch.uint8, device=device),
        torch.from_numpy((costs << np.arange(4) * 16).sum(1)).to(device),
    )
