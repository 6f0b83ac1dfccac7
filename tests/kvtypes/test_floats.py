from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.kvtypes import kv_type

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=1, max_size=9))
def test_f32_is_lossless(values: list[float]):
    packed = kv_type("f32").encode(torch.tensor(values))
    assert bytes(packed.tolist()) == struct.pack(f"<{len(values)}f", *values)
    assert torch.equal(kv_type("f32").decode(packed, len(values)), torch.tensor(values))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-65519, 65519, width=32), min_size=1, max_size=9))
def test_f16_bytes_are_ieee_half(values: list[float]):
    packed = kv_type("f16").encode(torch.tensor(values))
    assert bytes(packed.tolist()) == np.array(values, dtype=np.float32).astype("<f2").tobytes()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=9))
def test_bf16_rounds_to_nearest_even(values: list[float]):
    packed = bytes(kv_type("bf16").encode(torch.tensor(values)).tolist())
    for i, value in enumerate(values):
        bits = struct.unpack("<I", struct.pack("<f", value))[0]
        low, high = bits & 0xFFFF, bits >> 16
        high += low > 0x8000 or (low == 0x8000 and high & 1)
        assert packed[2 * i : 2 * i + 2] == struct.pack("<H", high)


def test_limits():
    assert kv_type("f16").decode(kv_type("f16").encode(torch.tensor([65519.0, -65504.0])), 2).tolist() == [
        65504,
        -65504,
    ]
    with pytest.raises(ValueError, match=r"too large for f16, which goes up to 65504"):
        kv_type("f16").encode(torch.tensor([1.0, 65520.0]))
    with pytest.raises(ValueError, match="too large for bf16"):
        kv_type("bf16").encode(torch.tensor([3.4e38]))
    with pytest.raises(ValueError, match="too large for f32"):
        kv_type("f32").encode(torch.tensor([1e39], dtype=torch.float64))


def test_f16_denormals_survive():
    x = torch.tensor([2.0**-24, -3 * 2.0**-24])
    assert torch.equal(kv_type("f16").decode(kv_type("f16").encode(x), 2), x)
