from __future__ import annotations

import pytest
import torch
from scipy.linalg import hadamard

from stratakv.kvtypes import kv_type

STOCK = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize(
    ("head_dim", "block"), [(8, 8), (24, 8), (80, 16), (64, 64), (128, 128), (192, 64), (512, 512)]
)
def test_stores_the_stock_bytes_of_the_rotated_vector(name: str, head_dim: int, block: int):
    stock, rotated = kv_type(name), kv_type(f"{name}_rot")
    matrix = torch.tensor(hadamard(block), dtype=torch.float64) / block**0.5
    x = torch.randn(50, head_dim, generator=torch.Generator().manual_seed(4))
    y = (x.double().reshape(50, -1, block) @ matrix).reshape(50, head_dim)
    assert torch.allclose(rotated.rotate(x), y.float(), atol=1e-5)
    assert torch.allclose(rotated.unrotate(rotated.rotate(x)), x, atol=1e-5)
    assert rotated.fields(head_dim) == stock.fields(head_dim)
    packed = rotated.encode(x)
    assert torch.equal(rotated.decode_stored(packed, head_dim), stock.decode(packed, head_dim))
    # sums of other order move single codes across a tie
    assert (packed != stock.encode(y.float())).float().mean() < 0.01


def test_rotation_spreads_an_outlier_channel():
    """A few large channels ruin a block of 32 for the others; rotated, they don't."""
    x = torch.randn(200, 128, generator=torch.Generator().manual_seed(5))
    x[:, 7] *= 40
    small = torch.arange(128) // 32 == 0
    small[7] = False
    error = {}
    for name in ("q4_0", "q4_0_rot"):
        error[name] = float((kv_type(name).decode(kv_type(name).encode(x), 128) - x)[:, small].square().mean())
    assert error["q4_0_rot"] < error["q4_0"] / 3
