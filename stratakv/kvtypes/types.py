"""What a KV type is: the rule that turns one vector of `head_dim` floats into bytes and back.

One vector is one kv head of one token, K or V. Its canonical bytes are `blocks(head_dim)` repetitions of
`fields(head_dim)`, little endian, nothing between them. A type is a frozen value: it holds no tensors and can be a
dictionary key. All types are plain torch, work on any device, and treat each vector by itself: the bytes don't depend
on the rest of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from stratakv.kvtypes.code import Code
from stratakv.kvtypes.hadamard import Rotation
from stratakv.kvtypes.packing import unpack_f16

# Why vectors can't be stored, as the compiled module numbers it
NON_FINITE, TOO_LARGE = 1, 2


@dataclass(frozen=True)
class Field:
    """A run of bytes within a block.

    kind: "scale" is one f16 scale, norm or minimum; "codes" one plane of packed indices; "float" f16, bf16 or f32
    values.
    """

    kind: Literal["scale", "codes", "float"]
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class KVType(ABC):
    """Base of all types. A subclass gives the bytes' structure, `_encode` and `_decode`, and a rotation if it has one.

    name: as llama.cpp or its forks call it. version: changes when the same values would get other bytes.
    turbo: one of the turbo family or a trellis type. rotation_seed: of the rotation's random signs, None without such signs.
    """

    name: str
    version: int = 1
    turbo: ClassVar[bool] = False
    rotation_seed: ClassVar[int | None] = None

    @abstractmethod
    def check(self, head_dim: int) -> None:
        """Raise UserError, naming the head_dims that are allowed, when vectors of head_dim can't be stored."""

    @abstractmethod
    def blocks(self, head_dim: int) -> int:
        """How often `fields` repeat in one vector."""

    @abstractmethod
    def fields(self, head_dim: int) -> tuple[Field, ...]:
        """The fields of one block, in the order of their bytes."""

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor:
        """float32 [n, head_dim], contiguous and finite -> uint8 [n, nbytes] in memory of its own. A scale too large for its
        f16 becomes inf: who calls this looks for it."""

    @abstractmethod
    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        """uint8 [n, nbytes] -> float32 [n, head_dim] in the stored basis, in memory of its own."""

    @property
    def packing(self) -> str | None:
        """How codes lie in the "codes" fields, by the name that kernels have for it (`STRATAKV_PACKINGS` in
        kernels/cpu/attend.h draws them); "rows_f32" and its like for floats. None: only plain torch reads the type."""
        return None

    def code(self, head_dim: int) -> Code:
        """What the codes stand for; for types with a packing."""
        raise NotImplementedError(f"{self.name} has no packing that kernels read")

    def nbytes(self, head_dim: int) -> int:
        """Bytes of one vector. UserError when head_dim can't be stored."""
        self.check(head_dim)
        return self.blocks(head_dim) * sum(field.nbytes for field in self.fields(head_dim))

    def bits_per_value(self, head_dim: int) -> float:
        """Bits of one value, everything counted."""
        return 8 * self.nbytes(head_dim) / head_dim

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Floats [..., head_dim] -> uint8 [..., nbytes]. Reads x only and keeps no reference to it.

        ValueError when x has inf or nan ("non-finite ...") or when a stored float would overflow ("... too large for
        ..."); UserError when head_dim can't be stored.
        """
        packed, code = self.encode_with_status(x)
        if found := int(code):
            raise ValueError(self.refusal(found))
        return packed

    @torch.no_grad()
    def encode_with_status(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same without waiting for x's device: the bytes, and why they are not x's, int32 []: 0 where they are,
        otherwise NON_FINITE or TOO_LARGE."""
        if x.ndim == 0 or not x.is_floating_point():
            raise ValueError(f"{self.name} stores float vectors, not {x.dtype} of shape {list(x.shape)}")
        head_dim = x.shape[-1]
        nbytes = self.nbytes(head_dim)
        finite = torch.isfinite(x)
        rows = torch.where(finite, x, 0.0).to(torch.float32).reshape(x.numel() // head_dim, head_dim).contiguous()
        packed = self._encode(rows)
        code = torch.where(self._fits(packed, head_dim), 0, TOO_LARGE)
        code = torch.where(finite.all(), code, NON_FINITE).to(torch.int32)
        return packed.reshape(*x.shape[:-1], nbytes), code

    def refusal(self, code: int) -> str:
        """Why vectors can't be stored, in words. code: NON_FINITE or TOO_LARGE."""
        if code == NON_FINITE:
            return f"non-finite values (inf or nan) can't be stored as {self.name}"
        return f"values too large for {self.name}, {self._limit}"

    @property
    def _limit(self) -> str:
        return "whose f16 scales go up to 65504"

    def _fits(self, packed: Tensor, head_dim: int) -> Tensor:
        """bool []: whether all floats in packed, uint8 [n, nbytes], are finite."""
        fields = self.fields(head_dim)
        sizes = [field.nbytes for field in fields]
        blocks = packed.reshape(-1, sum(sizes)).split(sizes, dim=-1)
        scales = [unpack_f16(part) for part, field in zip(blocks, fields, strict=True) if field.kind == "scale"]
        return torch.stack(scales).isfinite().all()

    def decode_stored(self, packed: Tensor, head_dim: int) -> Tensor:
        """uint8 [..., nbytes] -> float32 [..., head_dim] in the stored basis: what `rotate` makes of the vectors.

        ValueError when packed isn't uint8 with nbytes(head_dim) as its last dimension.
        """
        nbytes = self.nbytes(head_dim)
        if packed.dtype != torch.uint8 or packed.ndim == 0 or packed.shape[-1] != nbytes:
            raise ValueError(
                f"a {self.name} vector of head_dim {head_dim} is uint8 [..., {nbytes}], "
                f"not {packed.dtype} {list(packed.shape)}"
            )
        rows = packed.reshape(packed.numel() // nbytes, nbytes)
        return self._decode(rows, head_dim).reshape(*packed.shape[:-1], head_dim)

    def decode(self, packed: Tensor, head_dim: int) -> Tensor:
        """uint8 [..., nbytes] -> float32 [..., head_dim], the vectors as they were given, up to quantization."""
        return self.unrotate(self.decode_stored(packed, head_dim))

    def decode_exactly(self, packed: Tensor, head_dim: int) -> Tensor:
        """`decode` with additions in one fixed order: the same to the bit on any device and in any batch."""
        stored, rotation = self.decode_stored(packed, head_dim), self.rotation(head_dim)
        if rotation is None:
            return stored
        return rotation.exact(stored.reshape(-1, rotation.block), back=True).reshape(stored.shape)

    def rotation(self, head_dim: int) -> Rotation | None:
        """The rotation into the stored basis, on each run of its block; None for types that don't rotate."""
        return None

    def rotate(self, x: Tensor) -> Tensor:
        """Floats [..., head_dim] -> float32 of the same shape in the stored basis. Orthogonal; differentiable."""
        rotation = self.rotation(x.shape[-1])
        return rotation.rotate(x) if rotation else x.to(torch.float32)

    def unrotate(self, y: Tensor) -> Tensor:
        """The inverse of `rotate`."""
        rotation = self.rotation(y.shape[-1])
        return rotation.unrotate(y) if rotation else y.to(torch.float32)
