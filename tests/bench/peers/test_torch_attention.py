from __future__ import annotations

import pytest
import torch

from stratakv.bench.attention.caches import Shape, dense_pairs, packed_caches, random_states
from stratakv.bench.peers.torch_attention import DECODE_PEERS, prefill_peers

SHAPE = Shape(kv_heads=2, head_dim=64)


@pytest.mark.parametrize("name", DECODE_PEERS)
def test_every_peer_computes_the_same_attention(name: str) -> None:
    dtype, attention = DECODE_PEERS[name]
    ((k, v),) = dense_pairs(SHAPE, dtype, 256, 1)
    (cache,) = packed_caches(SHAPE, ("f32", "f32"), 256, 1)
    query = torch.randn(1, 8, 1, 64, generator=torch.Generator().manual_seed(3)).to(dtype)
    expected = cache.attend(query.float())
    torch.testing.assert_close(attention(query, k, v).float(), expected, rtol=0.05, atol=0.02)  # bf16 keeps 8 bits


@pytest.mark.parametrize("queries", [256, 32])
def test_prefill_peers_compute_the_same_attention(queries: int) -> None:
    k, v = (random_states(SHAPE, 256, seed) for seed in (0, 1))
    (cache,) = packed_caches(SHAPE, ("f32", "f32"), 256, 1)
    query = torch.randn(1, 8, queries, 64, generator=torch.Generator().manual_seed(3))
    expected = cache.attend(query)
    for attention in prefill_peers(k, v, 4, queries).values():
        torch.testing.assert_close(attention(query), expected, rtol=1e-2, atol=1e-2)
