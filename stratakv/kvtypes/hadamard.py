"""Hadamard matrices and the orthogonal rotations made of them.

Orders: 2^k, the Walsh-Hadamard matrix in natural order (Sylvester); m * 2^k for m = 12, 20, 28, the Kronecker product
of Sylvester's matrix of order 2^k with Paley's of order m (R. Paley, "On orthogonal matrices", 1933): construction I
with the quadratic residues of 11 and 19 for 12 and 20, construction II with those of 13 for 28.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PALEY_FACTORS = (12, 20, 28)


def has_hadamard(order: int) -> bool:
    """Whether `hadamard` knows a matrix of this order."""
    return order >= 1 and any(order % m == 0 and _is_power_of_two(order // m) for m in (1, *_PALEY_FACTORS))


@lru_cache(maxsize=64)
def hadamard(order: int) -> NDArray[np.int8]:
    """H, int8 [order, order] of -1 and 1, rows orthogonal. Read-only. ValueError for an order that isn't covered."""
    if not has_hadamard(order):
        raise ValueError(f"no Hadamard matrix of order {order} is known here: 2^k, 12*2^k, 20*2^k, 28*2^k are")
    matrix = _paley(_paley_factor(order))
    while len(matrix) < order:
        matrix = np.kron(np.array([[1, 1], [1, -1]], dtype=np.int8), matrix)
    matrix.setflags(write=False)
    return matrix


@dataclass(frozen=True)
class Rotation:
    """y = s2 * (H (s1 * x)) / sqrt(block) on each run of `block` values of a vector.

    s1, s2: two draws of `block` signs from numpy's default_rng(seed); all 1 when seed is None.
    """

    block: int
    seed: int | None

    def parts(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int8]]:
        """First signs, second signs [block], and Paley's matrix ([[1]] where the order is a power of two)."""
        first, second = _sign_arrays(self.block, self.seed)
        return first, second, _paley(_paley_factor(self.block))

    def exact(self, x: Tensor, *, back: bool = False) -> Tensor:
        """float32 [n, block] -> float32 [n, block], the rotation, or the way back, with additions in one fixed order.

        A vector's result is the same to the bit alone and in any batch, which no matrix product promises. Encoding and
        sealing need that; reading doesn't. Order: Paley's rows (if any) term by term, then butterflies of growing stride.
        """
        n, m = len(x), _paley_factor(self.block)
        first, second = _signs(self.block, self.seed, x.device)
        norm = 1 / sqrt(self.block)
        y = (second * x * norm if back else first * x).view(n, self.block // m, m)
        if m > 1:
            columns = _columns(m, back, x.device)
            total = columns[0] * y[..., :1]
            for column, value in zip(columns[1:], y.unbind(-1)[1:], strict=True):
                total = total + column * value.unsqueeze(-1)
            y = total
        step = m
        while step < self.block:
            a, b = y.reshape(n, self.block // (2 * step), 2, step).unbind(2)
            y = torch.stack((a + b, a - b), dim=2)
            step *= 2
        y = y.reshape(n, self.block)
        return first * y if back else second * y * norm

    def rotate(self, x: Tensor) -> Tensor:
        """Floats [..., k * block] -> float32 of the same shape, as one matrix product."""
        return self._apply(x, _matrix(self.block, self.seed, x.device).T)

    def unrotate(self, y: Tensor) -> Tensor:
        """The inverse of `rotate`."""
        return self._apply(y, _matrix(self.block, self.seed, y.device))

    def _apply(self, x: Tensor, matrix: Tensor) -> Tensor:
        blocks = x.to(torch.float32).reshape(*x.shape[:-1], x.shape[-1] // self.block, self.block)
        return torch.matmul(blocks, matrix).flatten(-2)


def _is_power_of_two(n: int) -> bool:
    return n >= 1 and n & (n - 1) == 0


def _paley_factor(order: int) -> int:
    return next((m for m in _PALEY_FACTORS if order % m == 0 and _is_power_of_two(order // m)), 1)


@lru_cache(maxsize=4)
def _paley(order: int) -> NDArray[np.int8]:
    """Paley's matrix of order 12, 20 or 28; [[1]] for order 1."""
    if order == 1:
        return np.ones((1, 1), dtype=np.int8)
    symmetric = order == 28
    q = order // 2 - 1 if symmetric else order - 1
    residues = {i * i % q for i in range(1, q)}
    character = np.array([0] + [1 if i in residues else -1 for i in range(1, q)])
    core = np.zeros((q + 1, q + 1), dtype=np.int64)
    core[0, 1:] = 1
    core[1:, 0] = 1 if symmetric else -1
    core[1:, 1:] = character[(np.arange(q)[:, None] - np.arange(q)[None, :]) % q]
    identity = np.eye(q + 1, dtype=np.int64)
    if not symmetric:
        return (identity + core).astype(np.int8)
    # construction II: 0 becomes [[1, -1], [-1, -1]], +1 becomes [[1, 1], [1, -1]], -1 its negative
    return (np.kron(core, [[1, 1], [1, -1]]) + np.kron(identity, [[1, -1], [-1, -1]])).astype(np.int8)


def _sign_arrays(block: int, seed: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if seed is None:
        return np.ones(block, dtype=np.float32), np.ones(block, dtype=np.float32)
    rng = np.random.default_rng(seed)
    first, second = rng.choice([-1, 1], block), rng.choice([-1, 1], block)
    return first.astype(np.float32), second.astype(np.float32)


@lru_cache(maxsize=64)
def _signs(block: int, seed: int | None, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
        first, second = _sign_arrays(block, seed)
        return torch.from_numpy(first).to(device), torch.from_numpy(second).to(device)


@lru_cache(maxsize=16)
def _columns(order: int, back: bool, device: torch.device) -> tuple[Tensor, ...]:
    """Of Paley's matrix or its transpose, float32 [order] each."""
    with torch.inference_mode(False):
        paley = _paley(order).T if back else _paley(order)
        return torch.from_numpy(paley.astype(np.float32)).to(device).unbind(1)


@lru_cache(maxsize=64)
def _matrix(block: int, seed: int | None, device: torch.device) -> Tensor:
    """The whole rotation R, float32 [block, block]: y = R x."""
    with torch.inference_mode(False):
        first, second = _sign_arrays(block, seed)
        matrix = second[:, None] * hadamard(block) * first[None, :] / sqrt(block)
        return torch.from_numpy(matrix.astype(np.float32)).to(device)
