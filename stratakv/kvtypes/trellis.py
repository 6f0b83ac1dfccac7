"""The trellis types: turbo's bytes with a third less error (trellis-coded quantization, Marcellin and Fischer, 1990).

One block of 128 values, or the whole head where 128 doesn't divide head_dim; bytes at block 128:

    tcq2   | norm f16 | 32: x, u                   |   34 bytes
    tcq3   | norm f16 | 32: u        | 16: x       |   50
    tcq4   | norm f16 | 64: x, u                   |   66
    tcq5   | norm f16 | 64: u        | 16: x       |   82
    tcq6   | norm f16 | 64: u bits 0 to 3 | 32: x, u bit 4 |   98

There are twice as many levels as codes. A bit x of each value and of those before it, going round the block, says in
which quarter of the levels the value lies; its other bits u say where there:

    level(i) = 4 u(i) + 2 z1(i) + z0(i), levels ascending;  with 8 states  z1 = x(i) ^ x(i-1) ^ x(i-3),  z0 = x(i-2)

Here i - 1 is the value before i on a path in strides of 8: 0, 8, 16, ... to the block's end, then 1, 9, 17, ..., and
from the last value back to 0; so that a kernel finds x(i - 1) one byte before x(i). Other numbers of states take more
delays (`viterbi`). Encoding finds the x that cost least by Viterbi's algorithm; decoding is a few exclusive ors of
whole planes and a look-up.

The narrow (or only) plane of c = 1, 2 or 4 bits has x in the lowest of them, and is in the order of values. The wide
plane of b bits before it is not: first come the values 0, r, 2 r, ... with r = b / c, then 1, r + 1, ...; so that
fields side by side in the narrow plane are as many bytes apart in the wide one as the narrow has.

Norm, rotation and all else as in `normed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import torch
from torch import Tensor

from stratakv.kvtypes.code import Code, Encoding
from stratakv.kvtypes.normed import NormedType
from stratakv.kvtypes.packing import pack_plane, unpack_plane
from stratakv.kvtypes.trellis_levels import BINS, BINS_A_DEVIATION, LEVELS, Levels
from stratakv.kvtypes.viterbi import TRELLISES, Trellis

_STRIDE = 8


@dataclass(frozen=True, kw_only=True)
class TrellisType(NormedType):
    """A trellis type. bits: of a code (2 to 6). states: of the convolutional code (8, 64 or 256)."""

    states: int = 8

    @property
    def levels(self) -> Levels:
        return LEVELS[self.bits, self.states]

    @property
    def trellis(self) -> Trellis:
        return TRELLISES[self.states]

    @property
    def packing(self) -> str | None:
        codes = {2: "pair", 3: "pair_1", 4: "nibble", 5: "nibble_1", 6: "nibble_2"}[self.bits]
        return f"trellis_{codes}" if self.states == 8 else None  # kernels know 8 states

    def code(self, head_dim: int) -> Code:
        return _code(self.levels, self.bits, self.block_size(head_dim)) if self.states == 8 else super().code(head_dim)

    def _unit(self, block: int) -> float:
        return self.levels.unit(block)

    def _choose(self, y: Tensor) -> tuple[Tensor, Tensor]:
        numbers, costs, integers = _tables(self.levels, y.device)
        bins = bins_of(y)
        x = _unstrided(self.trellis.cheapest(costs[_strided(bins, _STRIDE)]), _STRIDE)
        subsets = self._subsets(x).to(torch.int64)
        u = numbers[bins].gather(-1, subsets[..., None])[..., 0]
        return self._codes(u, x.to(torch.uint8)), integers[4 * u.to(torch.int64) + subsets]

    def _integers(self, codes: Tensor) -> Tensor:
        codes = codes.to(torch.int32)
        low = self._wide
        u = codes & ((1 << low) - 1) | (codes >> (low + 1)) << low
        levels = 4 * u + self._subsets(codes >> low & 1)
        _, _, integers = _tables(self.levels, codes.device)
        return integers.index_select(0, levels.flatten()).view(codes.shape)

    @property
    def _wide(self) -> int:
        """Bits of the wide plane, below x in a code; 0 where there is one plane only."""
        return self._widths[0] if len(self._widths) > 1 else 0

    def _codes(self, u: Tensor, x: Tensor) -> Tensor:
        """uint8 u and x -> uint8 codes, x between the bits of the wide plane and the others."""
        low = self._wide
        return u & ((1 << low) - 1) | x << low | (u >> low) << (low + 1)

    def _subsets(self, x: Tensor) -> Tensor:
        return _unstrided(self.trellis.subsets(_strided(x, _STRIDE)), _STRIDE)

    def _pack(self, codes: Tensor) -> list[Tensor]:
        if not self._wide:
            return super()._pack(codes)
        wide, narrow = self._widths
        return [pack_plane(_strided(codes, wide // narrow), 0, wide), pack_plane(codes, wide, narrow)]

    def _unpack(self, planes: Sequence[Tensor]) -> Tensor:
        if not self._wide:
            return super()._unpack(planes)
        wide, narrow = self._widths
        low, high = unpack_plane(planes[0], wide), unpack_plane(planes[1], narrow)
        return _unstrided(low, wide // narrow) | high << wide


def _strided(values: Tensor, stride: int) -> Tensor:
    """[n, block] in the order of values -> 0, stride, 2 * stride, ... and then 1, stride + 1, ..."""
    n, block = values.shape
    return values.reshape(n, block // stride, stride).transpose(1, 2).reshape(n, block)


def _unstrided(values: Tensor, stride: int) -> Tensor:
    """The inverse."""
    n, block = values.shape
    return values.reshape(n, stride, block // stride).transpose(1, 2).reshape(n, block)


def bins_of(y: Tensor) -> Tensor:
    """Coordinates of unit vectors, float32 [n, block] -> their bins, int64, halves to even; not a number to the first."""
    scaled = (y * (BINS_A_DEVIATION * sqrt(y.shape[-1]))).nan_to_num(nan=-BINS // 2)
    return scaled.clamp(-BINS // 2, BINS // 2 - 1).round().to(torch.int64) + BINS // 2


@lru_cache(maxsize=256)
def _code(levels: Levels, bits: int, block: int) -> Code:
    numbers, costs = (tuple(table.reshape(-1).tolist()) for table in levels.table())
    integers, unit = levels.integers, levels.unit(block)
    encoding = Encoding("trellis", bits, (), integers, unit, BINS_A_DEVIATION * sqrt(block), numbers, costs)
    return Code(integers, unit, encoding=encoding)


@lru_cache(maxsize=64)
def _tables(levels: Levels, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers uint8 and costs int32 of `Levels.table`, and the integers as float32."""
    numbers, costs = levels.table()
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
        integers = torch.tensor(levels.integers, dtype=torch.float32, device=device)
        return torch.tensor(numbers, device=device), torch.tensor(costs, device=device), integers
