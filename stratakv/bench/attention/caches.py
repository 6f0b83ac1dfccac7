"""What the attention benchmark reads: packed caches and dense tensors of the same shape, enough of them to rotate over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from stratakv.bench.timing import copies
from stratakv.engine.cache.layers import PackedLayer
from stratakv.kernels.kernel import Options
from stratakv.kernels.step import Step
from stratakv.kvtypes import kv_type
from stratakv.profile import LayerGeometry, LayerStorage

Pair = tuple[str, str]

# Random states that repeat: times don't depend on values, and drawing 100,000 tokens would take longer than timing them
_DRAWN_TOKENS = 4096


@dataclass(frozen=True)
class Shape:
    """kv heads and head_dim of the attention that is measured."""

    kv_heads: int = 8
    head_dim: int = 128

    def vector_pairs(self, tokens: int) -> int:
        """K and V vector pairs of that many tokens."""
        return tokens * self.kv_heads

    def packed_bytes(self, pair: Pair, tokens: int) -> int:
        """Bytes of K and V of that many tokens by the types' arithmetic."""
        layer = LayerGeometry(0, 0, "full", (self.head_dim, self.head_dim), self.kv_heads, self.kv_heads)
        return LayerStorage.of(pair).nbytes(layer, tokens)


def pair_name(pair: Pair) -> str:
    """turbo4, or q8_0/turbo4 where K and V differ."""
    return "/".join(dict.fromkeys(pair))


def random_states(shape: Shape, tokens: int, seed: int = 0) -> torch.Tensor:
    """float32 [1, kv_heads, tokens, head_dim], standard normal, contiguous; from 4,096 tokens on they repeat."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(1, shape.kv_heads, min(tokens, _DRAWN_TOKENS), shape.head_dim, generator=generator)
    times = -(-tokens // drawn.shape[2])
    return drawn.repeat(1, 1, times, 1)[:, :, :tokens].contiguous()


def pieces(shape: Shape, tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """K and V states [1, kv_heads, at most 4,096, head_dim] that fill `tokens` tokens."""
    k, v = (random_states(shape, min(tokens, _DRAWN_TOKENS), seed) for seed in (0, 1))
    for start in range(0, tokens, _DRAWN_TOKENS):
        count = min(_DRAWN_TOKENS, tokens - start)
        yield k[:, :, :count], v[:, :, :count]


class PackedCache:
    """A filled cache layer of one sequence."""

    def __init__(self, shape: Shape, pair: Pair, tokens: int) -> None:
        self.layer = PackedLayer("bench", kv_type(pair[0]), kv_type(pair[1]))
        for k, v in pieces(shape, tokens):
            self.handles = self.layer.update(k, v)
        self._tables = self.layer.written.arrays.numbers
        self._steps: dict[int, Step] = {}

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """Causal attention of the last tokens, whose step is made once, as an engine makes it for all layers.

        query: floats [1, q_heads, tokens, head_dim]; returns the same shape and dtype."""
        tokens = query.shape[2]
        if tokens not in self._steps:
            self._steps[tokens] = Step.even(self._tables, self.layer.length, tokens)
        step, options = self._steps[tokens], Options(query.shape[-1] ** -0.5)
        out = self.layer.kernel.attend(query[0].transpose(0, 1), self.layer.pool, step, options).out
        return out.transpose(0, 1)[None]


def packed_caches(shape: Shape, pair: Pair, tokens: int, rotate_bytes: int) -> list[PackedCache]:
    """Caches to rotate over: rotate_bytes or more of them together."""
    count = copies(shape.packed_bytes(pair, tokens), rotate_bytes)
    return [PackedCache(shape, pair, tokens) for _ in range(count)]


def dense_pairs(
    shape: Shape, dtype: torch.dtype, tokens: int, rotate_bytes: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Dense K and V [1, kv_heads, tokens, head_dim], contiguous, to rotate over."""
    count = copies(2 * shape.vector_pairs(tokens) * shape.head_dim * dtype.itemsize, rotate_bytes)
    k, v = (random_states(shape, tokens, seed).to(dtype) for seed in (0, 1))
    return [(k, v), *((k.clone(), v.clone()) for _ in range(count - 1))]
