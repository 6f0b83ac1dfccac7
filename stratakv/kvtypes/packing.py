"""Bytes of indices and of f16 scales, shared by the types that pack.

A plane holds `width` bits of every index, 8 / width indices a byte, the first in the low bits:

    width 1   byte i/8   bit i%8             width 4   byte i/2   nibble i%2, low first
    width 2   byte i/4   bits 2*(i%4)        width 8   byte i
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack_plane(indices: Tensor, shift: int, width: int) -> Tensor:
    """Bits [shift, shift + width) of uint8 indices [..., n] -> uint8 [..., n * width / 8]. 8 / width must divide n."""
    if width == 8:
        return indices
    per_byte = 8 // width
    part = (indices >> shift) & ((1 << width) - 1)
    part = part.reshape(*indices.shape[:-1], indices.shape[-1] // per_byte, per_byte)
    packed = part[..., 0].clone()
    for i in range(1, per_byte):
        packed |= part[..., i] << (width * i)
    return packed


def unpack_plane(packed: Tensor, width: int) -> Tensor:
    """The inverse: uint8 [..., m] -> uint8 [..., m * 8 / width], values below 2^width."""
    if width == 8:
        return packed
    mask = (1 << width) - 1
    parts = [(packed >> (width * i)) & mask for i in range(8 // width)]
    return torch.stack(parts, dim=-1).flatten(-2)


def pack_f16(values: Tensor) -> Tensor:
    """float32 [...] -> uint8 [..., 2], rounded to nearest even; beyond 65504 inf."""
    return values.to(torch.float16).unsqueeze(-1).view(torch.uint8)


def unpack_f16(packed: Tensor) -> Tensor:
    """uint8 [..., 2] -> float32 [..., 1]."""
    # the clone aligns it: a slice of packed bytes may begin at an odd address
    return packed.clone(memory_format=torch.contiguous_format).view(torch.float16).to(torch.float32)
