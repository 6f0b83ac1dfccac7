from __future__ import annotations

import pytest
import torch

from stratakv.kvtypes.packing import pack_f16, pack_plane, unpack_f16, unpack_plane


@pytest.mark.parametrize(("width", "shift"), [(1, 0), (1, 2), (1, 4), (2, 0), (2, 4), (4, 0), (4, 4), (8, 0)])
def test_plane_is_little_endian_within_the_byte(width: int, shift: int):
    indices = torch.randint(0, 256, (3, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    packed = pack_plane(indices, shift, width)
    for row, out in zip(indices.tolist(), packed.tolist(), strict=True):
        number = sum(((value >> shift) % 2**width) << (width * i) for i, value in enumerate(row))
        assert bytes(out) == number.to_bytes(4 * width, "little")
    assert torch.equal(unpack_plane(packed, width), (indices >> shift) & (2**width - 1))


def test_f16():
    values = torch.tensor([[1.0, -2.5], [2.0**-24, 65504.0]])
    packed = pack_f16(values)
    assert packed.tolist() == [[[0, 0x3C], [0, 0xC1]], [[1, 0], [0xFF, 0x7B]]]
    assert torch.equal(unpack_f16(packed)[..., 0], values)
    assert pack_f16(torch.tensor([65520.0])).tolist() == [[0, 0x7C]]
