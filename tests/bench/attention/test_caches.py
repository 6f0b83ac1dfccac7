from __future__ import annotations

import torch

from stratakv.bench.attention.caches import Shape, dense_pairs, packed_caches, random_states

SHAPE = Shape(kv_heads=2, head_dim=64)


def test_caches_hold_what_dense_tensors_hold_and_rotate() -> None:
    caches = packed_caches(SHAPE, ("f32", "f32"), 200, 3 * SHAPE.packed_bytes(("f32", "f32"), 200))
    dense = dense_pairs(SHAPE, torch.float32, 200, 1)
    assert len(caches) == 3
    assert len(dense) == 1
    for cache in caches:
        torch.testing.assert_close(cache.handles[0] + 0, dense[0][0], rtol=0, atol=0)
        torch.testing.assert_close(cache.handles[1] + 0, dense[0][1], rtol=0, atol=0)


def test_long_states_repeat_and_stay_within_their_count() -> None:
    states = random_states(Shape(1, 8), 5000)
    assert states.shape == (1, 1, 5000, 8)
    assert torch.equal(states[:, :, 4096:], states[:, :, : 5000 - 4096])
