"""The turbo types: an f16 norm, a randomly signed Hadamard rotation, codebook indices (TurboQuant, arXiv 2504.19874).

One block of 128 values, or the whole head where 128 doesn't divide head_dim; bytes at block 128:

    turbo2   | norm f16 | 32: 2 bits                 |   34 bytes
    turbo3   | norm f16 | 32: low 2 bits | 16: bit 2 |   50
    turbo4   | norm f16 | 64: 4 bits                 |   66
    turbo5   | norm f16 | 64: low 4 bits | 16: bit 4 |   82
    turbo6   | norm f16 | 64: low 4 bits | 32: bits 4, 5 |   98
    turbo8   | norm f16 | 128: one byte a value      |  130

Planes as in `packing`: the value with the lower number in the lower bits. Encoding a block x: n = |x|; y = rotation of
x / n; index of the nearest codebook entry c, ties up; norm = n / |c[indices]|, so that the decoded vector is as long as
x. Decoding is norm * c[index] in the rotated basis. A zero vector has norm 0. There is no residual (QJL) stage: it
hurts attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from stratakv.errors import UserError
from stratakv.kvtypes.code import Code, Encoding
from stratakv.kvtypes.codebook import codebook
from stratakv.kvtypes.hadamard import Rotation, has_hadamard
from stratakv.kvtypes.packing import pack_f16, pack_plane, unpack_f16, unpack_plane
from stratakv.kvtypes.types import Field, KVType

_BLOCK = 128
_SEED = 42
_PLANE_WIDTHS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


@dataclass(frozen=True, kw_only=True)
class TurboType(KVType):
    """A turbo type. bits: of an index (2, 3, 4, 5, 6 or 8)."""

    bits: int
    turbo: ClassVar[bool] = True
    rotation_seed: ClassVar[int | None] = _SEED

    def check(self, head_dim: int) -> None:
        if head_dim < 8 or head_dim % 8 or not (head_dim % _BLOCK == 0 or has_hadamard(head_dim)):
            raise UserError(
                f"{self.name} can't store head_dim {head_dim}: allowed are multiples of 128 and "
                "8 16 24 32 40 48 56 64 80 96 112 160 192 224 320 448; take f16, or q8_0 or q4_0_rot (multiples of 8)"
            )

    def block_size(self, head_dim: int) -> int:
        """Values that share a norm and a rotation."""
        return _BLOCK if head_dim % _BLOCK == 0 else head_dim

    def blocks(self, head_dim: int) -> int:
        return head_dim // self.block_size(head_dim)

    def fields(self, head_dim: int) -> tuple[Field, ...]:
        block = self.block_size(head_dim)
        return (Field("scale", 2), *(Field("codes", block * width // 8) for width in _PLANE_WIDTHS[self.bits]))

    @property
    def packing(self) -> str:
        return {2: "pair", 3: "pair_1", 4: "nibble", 5: "nibble_1", 6: "nibble_2", 8: "byte_index"}[self.bits]

    def code(self, head_dim: int) -> Code:
        book = codebook(self.block_size(head_dim), self.bits)
        integers, thresholds = tuple(book.integers.tolist()), tuple(book.thresholds.tolist())
        table = integers if self.bits < 8 else ()  # bytes are entries, 128 higher
        return Code(table, book.scale, encoding=Encoding("turbo", self.bits, thresholds, integers, book.scale))

    def rotation(self, head_dim: int) -> Rotation:
        return Rotation(self.block_size(head_dim), _SEED)

    def _encode(self, x: Tensor) -> Tensor:
        rows, head_dim = x.shape
        block = self.block_size(head_dim)
        x = x.view(rows * self.blocks(head_dim), block)
        norm = _sqrt(_sum_of_squares(x))
        y = Rotation(block, _SEED).exact(x / torch.where(norm > 0, norm, 1.0))
        integers, thresholds = _tables(block, self.bits, x.device)
        indices = torch.bucketize(y, thresholds, right=True, out_int32=True)
        # sums of squared integers are below 2^24: exact in any order
        length = _sqrt(integers[indices].square().sum(-1, keepdim=True).clamp_min(1)) * codebook(block, self.bits).scale
        parts = [pack_f16((norm / length)[:, 0])]
        shift = 0
        for width in _PLANE_WIDTHS[self.bits]:
            parts.append(pack_plane(indices.to(torch.uint8), shift, width))
            shift += width
        return torch.cat(parts, dim=-1)

    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        rows, block, count = len(packed), self.block_size(head_dim), self.blocks(head_dim)
        sizes = [field.nbytes for field in self.fields(head_dim)]
        norm, *planes = torch.split(packed.reshape(rows * count, sum(sizes)), sizes, dim=-1)
        shift, indices = 0, torch.zeros((), dtype=torch.uint8, device=packed.device)
        for plane, width in zip(planes, _PLANE_WIDTHS[self.bits], strict=True):
            indices = indices | (unpack_plane(plane, width) << shift)
            shift += width
        integers, _ = _tables(block, self.bits, packed.device)
        values = integers.index_select(0, indices.flatten().to(torch.int32)).view(rows * count, block)
        return (values * (unpack_f16(norm) * codebook(block, self.bits).scale)).view(rows, head_dim)


def _sum_of_squares(x: Tensor) -> Tensor:
    """float32 [n, m] -> [n, 1], by halving and then one by one: a fixed order of additions, unlike `sum`'s."""
    squares = x.square()
    while squares.shape[-1] % 2 == 0:
        first, second = squares.chunk(2, dim=-1)
        squares = first + second
    total = squares[:, :1]
    for i in range(1, squares.shape[-1]):
        total = total + squares[:, i : i + 1]
    return total


def _sqrt(x: Tensor) -> Tensor:
    """The correctly rounded float32 root, as C's sqrtf: torch's own may differ in the last bit (MKL's vector library)."""
    return x.to(torch.float64).sqrt().to(torch.float32)


@lru_cache(maxsize=256)
def _tables(block: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The codebook's integers as float32 [2^bits], and its thresholds in float32 [2^bits - 1]."""
    book = codebook(block, bits)
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
        integers = torch.tensor(book.integers.tolist(), dtype=torch.float32, device=device)
        return integers, torch.tensor(book.thresholds.tolist(), dtype=torch.float32, device=device)
