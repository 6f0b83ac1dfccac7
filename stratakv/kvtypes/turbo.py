"""The turbo types: an f16 norm, a randomly signed Hadamard rotation, codebook indices (TurboQuant, arXiv 2504.19874).

One block of 128 values, or the whole head where 128 doesn't divide head_dim; bytes at block 128:

    turbo2   | norm f16 | 32: 2 bits                 |   34 bytes
    turbo3   | norm f16 | 32: low 2 bits | 16: bit 2 |   50
    turbo4   | norm f16 | 64: 4 bits                 |   66
    turbo5   | norm f16 | 64: low 4 bits | 16: bit 4 |   82
    turbo6   | norm f16 | 64: low 4 bits | 32: bits 4, 5 |   98
    turbo8   | norm f16 | 128: one byte a value      |  130

Norm and planes as in `normed`, the value with the lower number in the lower bits. A value's code is the index of the
nearest codebook entry, ties up. There is no residual (QJL) stage: it hurts attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stratakv.kvtypes.code import Code, Encoding
from stratakv.kvtypes.codebook import codebook
from stratakv.kvtypes.normed import NormedType


@dataclass(frozen=True, kw_only=True)
class TurboType(NormedType):
    """A turbo type. bits: of an index (2, 3, 4, 5, 6 or 8)."""

    @property
    def packing(self) -> str:
        return {2: "pair", 3: "pair_1", 4: "nibble", 5: "nibble_1", 6: "nibble_2", 8: "byte_index"}[self.bits]

    def code(self, head_dim: int) -> Code:
        book = codebook(self.block_size(head_dim), self.bits)
        integers, thresholds = tuple(book.integers.tolist()), tuple(book.thresholds.tolist())
        table = integers if self.bits < 8 else ()  # bytes are entries, 128 higher
        return Code(table, book.scale, encoding=Encoding("turbo", self.bits, thresholds, integers, book.scale))

    def _unit(self, block: int) -> float:
        return codebook(block, self.bits).scale

    def _choose(self, y: Tensor) -> tuple[Tensor, Tensor]:
        integers, thresholds = _tables(y.shape[-1], self.bits, y.device)
        indices = torch.bucketize(y, thresholds, right=True, out_int32=True)
        return indices.to(torch.uint8), integers[indices]

    def _integers(self, codes: Tensor) -> Tensor:
        integers, _ = _tables(codes.shape[-1], self.bits, codes.device)
        return integers.index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)


@lru_cache(maxsize=256)
def _tables(block: int, bits: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The codebook's integers as float32 [2^bits], and its thresholds in float32 [2^bits - 1]."""
    book = codebook(block, bits)
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
        integers = torch.tensor(book.integers.tolist(), dtype=torch.float32, device=device)
        return integers, torch.tensor(book.thresholds.tolist(), dtype=torch.float32, device=device)
