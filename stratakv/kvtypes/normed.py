"""Types of an f16 norm, a randomly signed Hadamard rotation, and a code for each rotated value.

One block of 128 values, or the whole head where 128 doesn't divide head_dim: the norm, then the codes in planes as in
`packing`, the plane of the low bits first. Encoding a block x: n = |x|; y = rotation of x / n; a code
for each value, which stands for an integer; norm = n / |integers * unit|, so that the decoded vector is as long as x.
Decoding is norm * unit * integer in the rotated basis. A zero vector has norm 0.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from stratakv.errors import UserError
from stratakv.kvtypes.hadamard import Rotation, has_hadamard
from stratakv.kvtypes.packing import pack_f16, pack_plane, unpack_f16, unpack_plane
from stratakv.kvtypes.types import Field, KVType

_BLOCK = 128
_SEED = 42
_PLANE_WIDTHS = {2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}


@dataclass(frozen=True, kw_only=True)
class NormedType(KVType):
    """Base of turbo and trellis types. bits: of a code (2, 3, 4, 5, 6 or 8)."""

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
        return (Field("scale", 2), *(Field("codes", block * width // 8) for width in self._widths))

    def rotation(self, head_dim: int) -> Rotation:
        return Rotation(self.block_size(head_dim), _SEED)

    @abstractmethod
    def _unit(self, block: int) -> float:
        """What an integer of 1 stands for in a unit vector."""

    @abstractmethod
    def _choose(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated unit vectors, float32 [n, block] -> uint8 codes and float32 integers, both [n, block]."""

    @abstractmethod
    def _integers(self, codes: Tensor) -> Tensor:
        """uint8 codes [n, block] -> float32 integers [n, block]."""

    @property
    def _widths(self) -> tuple[int, ...]:
        """Bits of a code in each plane, the lowest first."""
        return _PLANE_WIDTHS[self.bits]

    def _pack(self, codes: Tensor) -> list[Tensor]:
        """uint8 codes [n, block] -> their planes."""
        shifts = accumulate(self._widths, initial=0)
        return [pack_plane(codes, shift, width) for shift, width in zip(shifts, self._widths, strict=False)]

    def _unpack(self, planes: Sequence[Tensor]) -> Tensor:
        """The inverse."""
        shifts = accumulate(self._widths, initial=0)
        codes = torch.zeros((), dtype=torch.uint8, device=planes[0].device)
        for plane, width, shift in zip(planes, self._widths, shifts, strict=False):
            codes = codes | (unpack_plane(plane, width) << shift)
        return codes

    def _encode(self, x: Tensor) -> Tensor:
        rows, head_dim = x.shape
        block = self.block_size(head_dim)
        x = x.view(rows * self.blocks(head_dim), block)
        norm = _sqrt(_sum_of_squares(x))
        codes, integers = self._choose(Rotation(block, _SEED).exact(x / torch.where(norm > 0, norm, 1.0)))
        # sums of squared integers are below 2^24: exact in any order
        length = _sqrt(integers.square().sum(-1, keepdim=True).clamp_min(1)) * self._unit(block)
        return torch.cat([pack_f16((norm / length)[:, 0]), *self._pack(codes)], dim=-1)

    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        rows, block, count = len(packed), self.block_size(head_dim), self.blocks(head_dim)
        sizes = [field.nbytes for field in self.fields(head_dim)]
        norm, *planes = torch.split(packed.reshape(rows * count, sum(sizes)), sizes, dim=-1)
        return (self._integers(self._unpack(planes)) * (unpack_f16(norm) * self._unit(block))).view(rows, head_dim)


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
