from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stratakv.kvtypes import kv_type

STOCK = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")


def gguf_bytes(name: str, x: np.ndarray) -> np.ndarray:
    return quants.quantize(x, gguf.GGMLQuantizationType[name.upper()])


def slow_decode(name: str, data: bytes, size: int) -> list[float]:
    """One block, value by value, as ggml describes it."""
    bits, minimum = int(name[1]), name.endswith("_1")
    d = float(np.frombuffer(data[:2], "<f2")[0])
    at = 2
    if minimum:
        m = float(np.frombuffer(data[2:4], "<f2")[0])
        at = 4
    if bits == 8:
        return [d * (byte - 256 if byte > 127 else byte) for byte in data[at:]]
    high = 0
    if bits == 5:
        high = int.from_bytes(data[at : at + size // 8], "little")
        at += size // 8
    assert len(data) == at + size // 2
    out = []
    for i in range(size):
        nibble = data[at + i % (size // 2)] >> 4 if i >= size // 2 else data[at + i] & 15
        code = nibble + 16 * (high >> i & 1)
        out.append(d * code + m if minimum else d * (code - 2 ** (bits - 1)))
    return out


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1000.0])
def test_equal_to_gguf(name: str, scale: float):
    x = (np.random.default_rng(3).standard_normal((200, 128)) * scale).astype(np.float32)
    x[0] = 0
    x[1, :64] = 1.0  # constant blocks
    x[2] = np.abs(x[2])
    packed = kv_type(name).encode(torch.from_numpy(x))
    assert np.array_equal(packed.numpy(), gguf_bytes(name, x))
    decoded = quants.dequantize(packed.numpy(), gguf.GGMLQuantizationType[name.upper()])
    assert np.array_equal(kv_type(name).decode(packed, 128).numpy(), decoded)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(STOCK),
    hnp.arrays(
        np.float32, (2, 64), elements=st.floats(-(2**15), 2**15, width=32).filter(lambda v: v == 0 or abs(v) > 1e-30)
    ),
)
def test_equal_to_gguf_on_any_data(name: str, x: np.ndarray):
    x = x + np.float32(0)  # which of 0 and -0 is a block's minimum depends on numpy's vector width
    assert np.array_equal(kv_type(name).encode(torch.from_numpy(x)).numpy(), gguf_bytes(name, x))


@pytest.mark.parametrize("name", STOCK)
def test_ties_of_magnitude_take_the_first(name: str):
    x = np.zeros((4, 32), dtype=np.float32)
    x[0, [3, 9]] = [-5, 5]
    x[1, [3, 9]] = [5, -5]
    x[2, ::2] = 1.5
    x[2, 1::2] = -1.5
    x[3] = np.arange(32) % 2 * 3 - 1.5
    assert np.array_equal(kv_type(name).encode(torch.from_numpy(x)).numpy(), gguf_bytes(name, x))


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize(
    ("head_dim", "size"), [(8, 8), (24, 8), (40, 8), (16, 16), (80, 16), (112, 16), (32, 32), (96, 32)]
)
def test_block_size_and_layout(name: str, head_dim: int, size: int):
    type_ = kv_type(name)
    assert type_.blocks(head_dim) == head_dim // size
    x = torch.randn(3, head_dim, generator=torch.Generator().manual_seed(2))
    packed = type_.encode(x)
    block_bytes = packed.shape[-1] // type_.blocks(head_dim)
    expected = [
        [v for i in range(0, len(row), block_bytes) for v in slow_decode(name, bytes(row[i : i + block_bytes]), size)]
        for row in packed.tolist()
    ]
    assert torch.allclose(type_.decode(packed, head_dim), torch.tensor(expected), rtol=1e-6, atol=1e-7)
    step = x.abs().amax() / (100 if name == "q8_0" else 7)
    assert (type_.decode(packed, head_dim) - x).abs().max() < step


@pytest.mark.parametrize("name", STOCK)
def test_small_blocks_hold_the_codes_of_large_ones(name: str):
    """A vector of 16 or 8 values has the scale and the codes that it has as part of 32, where it is repeated."""
    type_ = kv_type(name)
    for size in (16, 8):
        x = torch.randn(20, size, generator=torch.Generator().manual_seed(size))
        repeated = type_.decode(type_.encode(x.repeat(1, 32 // size)), 32)
        assert torch.equal(type_.decode(type_.encode(x), size), repeated[:, :size])


def test_refuses_a_minimum_beyond_f16():
    x = torch.full((1, 32), 70000.0)
    with pytest.raises(ValueError, match="too large for q4_1, whose f16 scales go up to 65504"):
        kv_type("q4_1").encode(x)
    assert torch.allclose(kv_type("q4_0").decode(kv_type("q4_0").encode(x), 32), x, rtol=1e-3)
