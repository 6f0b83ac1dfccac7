"""A stock block type in the Hadamard basis: what current llama.cpp stores when its cache type is quantized.

The bytes are the stock type's own (drawn in `blocks`), of R x in place of x:

    q4_0_rot   | d f16 | 16: nibbles | ...   R x = d * (q - 8), and likewise q4_1_rot, q5_0_rot, q5_1_rot, q8_0_rot

R is the normalised Walsh-Hadamard matrix, without random signs, on each run of the largest power of two that divides
head_dim. llama.cpp (pull request 21038, llama-kv-cache.cpp) does so for K where 64 divides head_dim and rotates nothing
else; for V it takes runs of 64 at any head_dim. Here K and V follow K's rule, and every head_dim that the stock type
can store is rotated.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from stratakv.kvtypes.blocks import BlockType, check_multiple_of_8
from stratakv.kvtypes.code import Code
from stratakv.kvtypes.hadamard import Rotation
from stratakv.kvtypes.types import Field, KVType


@dataclass(frozen=True, kw_only=True)
class RotatedType(KVType):
    """stored: the type that the rotated vectors are stored as."""

    stored: BlockType

    def check(self, head_dim: int) -> None:
        check_multiple_of_8(self.name, head_dim)

    def blocks(self, head_dim: int) -> int:
        return self.stored.blocks(head_dim)

    def fields(self, head_dim: int) -> tuple[Field, ...]:
        return self.stored.fields(head_dim)

    def rotation(self, head_dim: int) -> Rotation:
        return Rotation(head_dim & -head_dim, None)  # the lowest set bit: the largest power of two that divides it

    @property
    def packing(self) -> str:
        return self.stored.packing

    def code(self, head_dim: int) -> Code:
        return self.stored.code(head_dim)

    def _encode(self, x: Tensor) -> Tensor:
        rotation = self.rotation(x.shape[-1])
        return self.stored._encode(rotation.exact(x.view(-1, rotation.block)).view(x.shape))

    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        return self.stored._decode(packed, head_dim)
