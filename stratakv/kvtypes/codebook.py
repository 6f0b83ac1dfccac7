"""The turbo types' codebooks: int8 integers times one scale, for one coordinate of a random unit vector.

A coordinate x of a random unit vector in `block` dimensions has the density C (1 - x^2)^((block - 3) / 2), variance
1 / block. Lloyd-Max gives the entries of least squared error; they are then rounded to integers under the scale that
loses least, so that integer kernels are exact: it adds 0.05 % to the error at 4 bits, 0.6 % at 5, 2 % at 6. Eight bits
are uniform levels, their step the one of least error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi, sqrt

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Codebook:
    """Entry i is integers[i] * scale.

    integers: int8 [2^bits], ascending, read-only; symmetric below 8 bits, -128 ... 127 at 8. scale: a float.
    distortion: mean squared error of one coordinate over its variance, before a norm is stored.
    """

    integers: NDArray[np.int8]
    scale: float
    distortion: float

    @property
    def entries(self) -> _Floats:
        """float64 [2^bits]."""
        return self.integers.astype(np.float64) * self.scale

    @property
    def thresholds(self) -> _Floats:
        """float64 [2^bits - 1], midpoints: x has index i when thresholds[i - 1] <= x < thresholds[i]."""
        return (self.integers[1:].astype(np.float64) + self.integers[:-1]) / 2 * self.scale


@lru_cache(maxsize=256)
def codebook(block: int, bits: int) -> Codebook:
    """The codebook for blocks of `block` values (8 or more) and 2 to 6 or 8 bits, always the same object.

    Scales lie on a grid, 1 / (r sqrt(block)) with r a multiple of 1/100 (8 bits: multiples of 1 / (10000 sqrt(block))),
    so that differences in the last bit between machines don't reach the codebook.
    """
    deviation = 1 / sqrt(block)
    if bits == 8:
        steps = np.arange(100, 400) / 10000 * deviation
        levels = np.arange(-128, 128)
        distortion = 1 + block * _cost(block, levels * steps[:, None], -1.0)
        best = int(distortion.argmin())
        return _frozen(levels, float(steps[best]), float(distortion[best]))
    half = _lloyd_max(block, bits) / deviation
    fit = 127 / half[-1]  # where the largest entry is 127; beyond that the tail is clipped, which can be worth it
    ratios = np.arange(int(50 * fit), int(130 * fit)) / 100
    integers = np.rint(half * ratios[:, None]).clip(max=127)
    scales = 1 / (ratios * sqrt(block))
    best = int(_distortion(block, integers * scales[:, None]).argmin())
    scale = float(scales[best])
    half = _improved(block, integers[best], scale)
    return _frozen(np.concatenate([-half[::-1], half]), scale, float(_distortion(block, half * scale)))


def _frozen(integers: NDArray[np.integer] | _Floats, scale: float, distortion: float) -> Codebook:
    frozen = integers.astype(np.int8)
    frozen.setflags(write=False)
    return Codebook(frozen, scale, distortion)


def _improved(block: int, half: _Floats, scale: float) -> _Floats:
    """Integers moved by 1, the best move first, while that helps: rounding each alone costs 1 % more at 6 bits."""
    best = float(_distortion(block, half * scale))
    steps = np.concatenate([np.eye(len(half)), -np.eye(len(half))])
    while True:
        moved = half + steps
        moved = moved[(np.diff(moved, prepend=0, axis=1) > 0).all(1) & (moved[:, -1] <= 127)]
        distortion = _distortion(block, moved * scale)
        choice = int(distortion.argmin())
        if distortion[choice] > best * (1 - 1e-9):
            return half
        half, best = moved[choice], float(distortion[choice])


def _lloyd_max(block: int, bits: int) -> _Floats:
    """The positive half of the entries, float64 [2^(bits - 1)] (S. Lloyd, "Least squares quantization in PCM")."""
    count = 2 ** (bits - 1)
    edges = np.linspace(0, min(1.0, 4 / sqrt(block)), count + 1)
    entries = (edges[1:] + edges[:-1]) / 2
    while True:
        mass, moment = _moments(block, np.concatenate([[0.0], (entries[1:] + entries[:-1]) / 2, [1.0]]))
        centroids = np.diff(moment) / np.diff(mass)
        change = float(np.abs(centroids - entries).max())
        entries = centroids
        if change < 1e-12:
            return entries


def _distortion(block: int, half: _Floats) -> _Floats:
    """Relative squared error [...] of ascending positive entries [..., n] and their negatives under the nearest-entry rule."""
    return np.asarray(1 + 2 * block * _cost(block, half, 0.0))


def _cost(block: int, entries: _Floats, low: float) -> _Floats:
    """Squared error [...] of ascending entries [..., n] between `low` and 1, less that of entries that are all 0."""
    middle = ((entries[..., 1:] + entries[..., :-1]) / 2).clip(-1, 1)
    end = np.ones((*entries.shape[:-1], 1))
    mass, moment = _moments(block, np.concatenate([low * end, middle, end], axis=-1))
    return np.asarray((entries**2 * np.diff(mass) - 2 * entries * np.diff(moment)).sum(-1))


def _moments(block: int, edges: _Floats) -> tuple[_Floats, _Floats]:
    """Integrals from 0 to each edge of the density and of x times the density.

    With x = sin t the density is C cos(t)^n, n = block - 2, and by parts n I(n) = x cos(t)^(n - 1) + (n - 1) I(n - 2). So the
    mass is a polynomial of cos(t)^2 times x (times cos t, and t is added, where n is even), here by Horner's rule.
    """
    n, square = block - 2, 1 - edges**2
    whole, factors = (1.0, [1.0]) if n % 2 else (pi / 2, [])
    for step in range(2 + n % 2, n + 1, 2):
        whole *= (step - 1) / step  # I(step) from 0 to 1
        factors.append(1 / (step * whole))
    series = np.full_like(edges, factors[-1])
    for factor in reversed(factors[:-1]):
        series *= square
        series += factor
    mass = edges * series if n % 2 else edges * np.sqrt(square) * series + np.arcsin(edges) / (pi / 2)
    return mass / 2, -(square ** ((n + 1) / 2)) / (2 * whole * (n + 1))
