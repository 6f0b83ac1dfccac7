from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from vectors import check_against_a_scalar_decoder, randn

from stratakv.kvtypes import kv_type
from stratakv.kvtypes.codebook import codebook
from stratakv.kvtypes.hadamard import Rotation, hadamard
from stratakv.kvtypes.packing import pack_plane

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "fork.json"
BITS = (2, 3, 4, 5, 6, 8)


@pytest.fixture
def golden() -> tuple[torch.Tensor, dict[str, bytes]]:
    if not GOLDEN.is_file():
        pytest.skip("the golden bytes lie beside the repository, in shared/golden")
    data = json.loads(GOLDEN.read_text())
    i = np.arange(256)
    x = np.float32(np.sin(0.1 * i) + 0.5 * np.cos(0.37 * i) + 6.0 * (i == 7) - 9.0 * (i == 200))
    return torch.from_numpy(x), {
        name: bytes.fromhex(data[name]) for name in ("q8_0", "turbo2", "turbo3_older_codebook")
    }


def slow_indices(bits: int, data: bytes, block: int) -> list[int]:
    """The indices after the norm, value by value, as formats.md draws them."""

    def two_bits(at: int, i: int) -> int:
        return data[at + i // 4] >> (2 * (i % 4)) & 3

    def nibble(at: int, i: int) -> int:
        return data[at + i // 2] >> (4 * (i % 2)) & 15

    def one_bit(at: int, i: int) -> int:
        return data[at + i // 8] >> (i % 8) & 1

    rules = {
        2: lambda i: two_bits(2, i),
        3: lambda i: two_bits(2, i) + 4 * one_bit(2 + block // 4, i),
        4: lambda i: nibble(2, i),
        5: lambda i: nibble(2, i) + 16 * one_bit(2 + block // 2, i),
        6: lambda i: nibble(2, i) + 16 * two_bits(2 + block // 2, i),
        8: lambda i: data[2 + i],
    }
    return [rules[bits](i) for i in range(block)]


def test_golden_q8_0(golden: tuple[torch.Tensor, dict[str, bytes]]):
    x, expected = golden
    assert bytes(kv_type("q8_0").encode(x).tolist()) == expected["q8_0"]


def test_golden_turbo2(golden: tuple[torch.Tensor, dict[str, bytes]]):
    x, expected = golden
    ours = kv_type("turbo2").encode(x).reshape(2, 34)
    theirs = torch.frombuffer(bytearray(expected["turbo2"]), dtype=torch.uint8).reshape(2, 34)
    assert torch.equal(ours[:, 2:], theirs[:, 2:])
    norms = [rows[:, :2].clone().view(torch.float16).float() for rows in (ours, theirs)]
    assert torch.allclose(*norms, rtol=5e-3)


def test_golden_turbo3_under_the_forks_codebook(golden: tuple[torch.Tensor, dict[str, bytes]]):
    """Our rotation and packing with the fork's older entries give the fork's bytes, the norm included."""
    x, expected = golden
    half = np.array([0.021460, 0.065717, 0.117832, 0.190685])
    entries = torch.tensor(np.concatenate([-half[::-1], half]), dtype=torch.float32)
    blocks = x.reshape(2, 128)
    norm = blocks.norm(dim=-1, keepdim=True)
    y = Rotation(128, 42).exact(blocks / norm)
    indices = torch.bucketize(y, (entries[1:] + entries[:-1]) / 2, right=True)
    scale = (norm / entries[indices].norm(dim=-1, keepdim=True)).to(torch.float16).view(torch.uint8)
    planes = [pack_plane(indices.to(torch.uint8), 0, 2), pack_plane(indices.to(torch.uint8), 2, 1)]
    assert bytes(torch.cat([scale, *planes], dim=-1).flatten().tolist()) == expected["turbo3_older_codebook"]


@pytest.mark.parametrize("head_dim", [8, 24, 64, 80, 112, 128, 256])
@pytest.mark.parametrize("bits", BITS)
def test_bytes_against_a_scalar_decoder(head_dim: int, bits: int):
    block = 128 if head_dim % 128 == 0 else head_dim
    check_against_a_scalar_decoder(
        kv_type(f"turbo{bits}"),
        randn(5, head_dim, seed=bits),
        2 + block * bits // 8,
        lambda data, block: codebook(block, bits).entries[slow_indices(bits, data, block)],
    )


@pytest.mark.parametrize("head_dim", [16, 64, 96, 112, 128, 512])
@pytest.mark.parametrize("bits", BITS)
def test_indices_are_the_nearest_entries(head_dim: int, bits: int):
    block = 128 if head_dim % 128 == 0 else head_dim
    book = codebook(block, bits)
    rng = np.random.default_rng(42)
    first, second = rng.choice([-1, 1], block), rng.choice([-1, 1], block)
    x = randn(20, head_dim, seed=3)
    blocks = x.double().numpy().reshape(-1, block)
    norms = np.linalg.norm(blocks, axis=-1, keepdims=True)
    y = second * ((first * blocks / norms) @ hadamard(block).T.astype(float)) / np.sqrt(block)
    packed = kv_type(f"turbo{bits}").encode(x).numpy().reshape(len(blocks), -1)
    for row, values, norm in zip(packed, y, norms[:, 0], strict=True):
        chosen = book.entries[slow_indices(bits, row.tobytes(), block)]
        nearest = np.abs(values[:, None] - book.entries).min(-1)
        assert np.allclose(np.abs(values - chosen), nearest, atol=1e-6)
        stored = float(row[:2].copy().view("<f2")[0])
        assert stored == pytest.approx(norm / np.linalg.norm(chosen), rel=2**-10)


def test_ties_go_up():
    """The zero vector's coordinates are midway between the two middle entries (8 bits: on entry 128)."""
    for bits in BITS:
        packed = bytes(kv_type(f"turbo{bits}").encode(torch.zeros(64)).tolist())
        assert packed[:2] == b"\0\0"
        assert set(slow_indices(bits, packed, 64)) == {2 ** (bits - 1)}


def test_refuses_a_norm_beyond_f16():
    x = torch.zeros(2, 128)
    x[1, 3] = 70000.0
    with pytest.raises(ValueError, match="too large for turbo4, whose f16 scales go up to 65504"):
        kv_type("turbo4").encode(x)
