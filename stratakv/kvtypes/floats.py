"""Floats stored as they are.

    f32    4 bytes a value, IEEE single
    f16    2 bytes a value, IEEE half: 1 sign, 5 exponent, 10 mantissa bits; up to 65504
    bf16   2 bytes a value, the upper half of a single: 1 sign, 8 exponent, 7 mantissa bits

Values are rounded to nearest even. What would become inf is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stratakv.errors import UserError
from stratakv.kvtypes.code import Code, Encoding
from stratakv.kvtypes.types import Field, KVType


@dataclass(frozen=True, kw_only=True)
class FloatType(KVType):
    """[head_dim values], any head_dim. dtype: float32, float16 or bfloat16."""

    dtype: torch.dtype

    def check(self, head_dim: int) -> None:
        if head_dim < 1:
            raise UserError(f"{self.name} can't store head_dim {head_dim}: allowed is any of 1 or more")

    def blocks(self, head_dim: int) -> int:
        return 1

    def fields(self, head_dim: int) -> tuple[Field, ...]:
        return (Field("float", head_dim * self.dtype.itemsize),)

    @property
    def packing(self) -> str:
        return f"rows_{self.name}"

    def code(self, head_dim: int) -> Code:
        return Code(encoding=Encoding(self.name))

    def _encode(self, x: Tensor) -> Tensor:
        return x.to(self.dtype, copy=True).view(torch.uint8)

    @property
    def _limit(self) -> str:
        return f"which goes up to {torch.finfo(self.dtype).max:g}"

    def _fits(self, packed: Tensor, head_dim: int) -> Tensor:
        return packed.view(self.dtype).isfinite().all()

    def _decode(self, packed: Tensor, head_dim: int) -> Tensor:
        # the clone aligns it: packed bytes may begin at an odd address
        return packed.clone(memory_format=torch.contiguous_format).view(self.dtype).to(torch.float32)
