"""Random vectors, and decoders that go value by value."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from stratakv.kvtypes import KVType


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check_against_a_scalar_decoder(
    type_: KVType, x: torch.Tensor, block_bytes: int, values: Callable[[bytes, int], Sequence[float]]
) -> None:
    """A type's blocks, an f16 norm first, decode to the norm times what `values` reads of a block's bytes, one by one."""
    packed, head_dim = type_.encode(x), x.shape[-1]
    block = head_dim // type_.blocks(head_dim)
    assert packed.shape[-1] * block == block_bytes * head_dim
    for row, decoded in zip(packed.tolist(), type_.decode_stored(packed, head_dim), strict=True):
        expected: list[float] = []
        for at in range(0, len(row), block_bytes):
            data = bytes(row[at : at + block_bytes])
            norm = float(np.frombuffer(data[:2], "<f2")[0])
            expected += [norm * value for value in values(data, block)]
        assert np.allclose(decoded.numpy(), expected, rtol=1e-6)
