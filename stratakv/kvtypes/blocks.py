"""llama.cpp's stock cache types: blocks of integers under an f16 scale, and under an f16 minimum in the `_1` types.

One block of 32 values; where 32 doesn't divide head_dim, of 16, else of 8, with all code runs shorter in proportion:

    q8_0   | d f16 | 32 x int8                          |  34 bytes   x = d * q
    q5_1   | d f16 | m f16 | 4: bit 4 | 16: low nibbles |  24         x = d * q + m
    q5_0   | d f16 | 4: bit 4 | 16: low nibbles         |  22         x = d * (q - 16)
    q4_1   | d f16 | m f16 | 16: nibbles                |  20         x = d * q + m
    q4_0   | d f16 | 16: nibbles                        |  18         x = d * (q - 8)

Nibbles: byte j holds value j in its low and value j + block/2 in its high half. Bit 4 of value i is bit i%8 of byte
i/8. Codes are computed with the scale before it is rounded to f16, as ggml's reference quantizers do (ggml-quants.c);
for blocks of 32 the bytes equal those of gguf-py's `gguf.quants`. Where d is too small for 1/d to be finite, the codes
are those of d = 0 (the f16 scale is 0 in either case).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stratakv.errors import UserError
from stratakv.kvtypes.code import Code, Encoding
from stratakv.kvtypes.packing import pack_f16, pack_plane, unpack_f16, unpack_plane
from stratakv.kvtypes.types import Field, KVType


@dataclass(frozen=True, kw_only=True)
class BlockType(KVType):
    """A stock type. bits: of a code (4, 5 or 8). minimum: the block stores its minimum too (the `_1` types)."""

    bits: int
    minimum: bool = False

    def check(self, head_dim: int) -> None:
        check_multiple_of_8(self.name, head_dim)

    def block_size(self, head_dim: int) -> int:
        """Values that share a scale: 32, or 16 or 8 where that doesn't divide head_dim."""
        return next(size for size in (32, 16, 8) if head_dim % size == 0)

    def blocks(self, head_dim: int) -> int:
        return head_dim // self.block_size(head_dim)

    def fields(self, head_dim: int) -> tuple[Field, ...]:
        size = self.block_size(head_dim)
        scales = (Field("scale", 2),) * (1 + self.minimum)
        if self.bits == 8:
            return (*scales, Field("codes", size))
        high = (Field("codes", size // 8),) if self.bits == 5 else ()
        return (*scales, *high, Field("codes", size // 2))

    @property
    def packing(self) -> str:
        return {4: "halves", 5: "halves_1", 8: "byte"}[self.bits]

    def code(self, head_dim: int) -> Code:
        if self.bits == 8:
            return Code(encoding=Encoding("q8", bits=8))
        first = 0 if self.minimum else -(2 ** (self.bits - 1))
        table = tuple(range(first, first + 2**self.bits))
        encoding = Encoding("minimum" if self.minimum else "middle", bits=self.bits)
        return Code(table, signed_scale=not self.minimum, encoding=encoding)

    def _encode(self, x: Tensor) -> Tensor:
        rows, head_dim = x.shape
        size = self.block_size(head_dim)
        x = x.view(rows, head_dim // size, size)
        if self.bits == 8:
            scale = x.abs().amax(-1, keepdim=True) / 127
            parts = [pack_f16(scale[..., 0])]
            parts.append(_round_half_away(x * _inverse(scale)).to(torch.int8).view(torch.uint8))
        elif self.minimum:
            low = x.amin(-1, keepdim=True) + 0.0  # -0 becomes 0: which zero is the minimum is the machine's choice
            scale = (x.amax(-1, keepdim=True) - low) / (2**self.bits - 1) + 0.0
            parts = [pack_f16(scale[..., 0]), pack_f16(low[..., 0])]
            parts += self._pack((x - low) * _inverse(scale) + 0.5)
        else:
            half = 2 ** (self.bits - 1)
            # the first of the largest magnitudes, its sign kept, is what -half stands for
            scale = x.gather(-1, x.abs().argmax(-1, keepdim=True)) / -half
            parts = [pack_f16(scale[..., 0])]
            parts += self._pack(x * _inverse(scale) + (half + 0.5))
        return torch.cat(parts, dim=-1).flatten(1)

    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        rows, count = len(packed), self.blocks(head_dim)
        sizes = [field.nbytes for field in self.fields(head_dim)]
        scale_bytes, *rest = torch.split(packed.reshape(rows, count, sum(sizes)), sizes, dim=-1)
        scale = unpack_f16(scale_bytes)
        if self.bits == 8:
            values = scale * rest[0].clone(memory_format=torch.contiguous_format).view(torch.int8)
        elif self.minimum:
            values = scale * self._unpack(rest[1:]) + unpack_f16(rest[0])
        else:
            values = scale * (self._unpack(rest).to(torch.int8) - 2 ** (self.bits - 1))
        return values.reshape(rows, head_dim)

    def _pack(self, codes: Tensor) -> list[Tensor]:
        """Codes plus a half, float32 [n, blocks, size] -> their planes."""
        indices = codes.clamp(0, 2**self.bits - 1).to(torch.uint8)
        first, second = indices.chunk(2, dim=-1)
        nibbles = (first & 15) | (second << 4)
        return [pack_plane(indices, 4, 1), nibbles] if self.bits == 5 else [nibbles]

    def _unpack(self, planes: list[Tensor]) -> Tensor:
        """The planes -> uint8 codes [n, blocks, size]."""
        codes = torch.cat([planes[-1] & 15, planes[-1] >> 4], dim=-1)
        return codes | (unpack_plane(planes[0], 1) << 4) if self.bits == 5 else codes


def check_multiple_of_8(name: str, head_dim: int) -> None:
    """Raise UserError unless vectors of head_dim consist of whole blocks."""
    if head_dim < 8 or head_dim % 8:
        raise UserError(
            f"{name} can't store head_dim {head_dim}: allowed are multiples of 8; take f16, bf16 or f32 for others"
        )


def _inverse(scale: Tensor) -> Tensor:
    """1 / scale, and 0 where that is infinite."""
    inverse = 1 / scale
    return torch.where(torch.isfinite(inverse), inverse, 0.0)


def _round_half_away(x: Tensor) -> Tensor:
    """C's roundf. Adding 0.5 before floor would round 0.49999997 up."""
    magnitude = x.abs()
    floor = magnitude.floor()
    return (floor + (magnitude - floor >= 0.5)) * x.sign()
