from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from stratakv.kvtypes.hadamard import Rotation, hadamard, has_hadamard

ORDERS = (1, 2, 8, 12, 16, 20, 24, 28, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 320, 448, 512)


@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_orthogonal_signs(order: int):
    matrix = hadamard(order).astype(np.int64)
    assert set(np.unique(matrix)) <= {-1, 1}
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order, dtype=np.int64))
    assert not hadamard(order).flags.writeable


@pytest.mark.parametrize("order", [1, 2, 8, 64, 128, 512])
def test_powers_of_two_are_in_natural_order(order: int):
    assert np.array_equal(hadamard(order), scipy.linalg.hadamard(order))


@pytest.mark.parametrize("order", [0, 3, 6, 36, 44, 52, 60, 72, 88, 100, 104, 120, 576])
def test_other_orders_are_refused(order: int):
    assert not has_hadamard(order)
    with pytest.raises(ValueError, match=f"order {order}"):
        hadamard(order)


@pytest.mark.parametrize("block", [8, 24, 40, 56, 64, 80, 112, 128, 192])
@pytest.mark.parametrize("seed", [42, None])
def test_rotation_is_the_documented_matrix(block: int, seed: int | None):
    first = second = np.ones(block)
    if seed is not None:
        rng = np.random.default_rng(seed)
        first, second = rng.choice([-1, 1], block), rng.choice([-1, 1], block)
    matrix = torch.from_numpy(second[:, None] * hadamard(block) * first[None, :] / np.sqrt(block))
    x = torch.randn(33, block, generator=torch.Generator().manual_seed(6))
    y = x.double() @ matrix.T
    rotation = Rotation(block, seed)
    assert torch.allclose(rotation.exact(x).double(), y, atol=2e-6)
    assert torch.allclose(rotation.rotate(x).double(), y, atol=2e-6)
    assert torch.allclose(rotation.unrotate(rotation.rotate(x)), x, atol=2e-6)
    assert torch.allclose(rotation.exact(rotation.exact(x), back=True), x, atol=2e-6)
    two = torch.cat([x, x.flip(0)], dim=-1)
    assert torch.allclose(rotation.rotate(two), torch.cat([rotation.rotate(x), rotation.rotate(x.flip(0))], dim=-1))


def test_exact_is_the_same_alone_and_in_a_batch():
    x = torch.randn(257, 112, generator=torch.Generator().manual_seed(7))
    rotation = Rotation(112, 42)
    for back in (False, True):
        together = rotation.exact(x, back=back)
        assert all(torch.equal(rotation.exact(x[i : i + 1], back=back)[0], together[i]) for i in range(0, 257, 16))
