"""What all types with a norm promise, turbo and trellis alike."""

from __future__ import annotations

import pytest
import torch
from documented_types import documented
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import randn

from stratakv.kvtypes import kv_type, type_names
from stratakv.kvtypes.normed import NormedType

NAMES = [name for name in type_names() if isinstance(kv_type(name), NormedType)]


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_those_documented(name: str) -> None:
    """On random directions; the table's come of more of them, and have two or three digits."""
    type_ = kv_type(name)
    for head_dim, expected in zip((128, 64), documented()[name].errors, strict=True):
        x = randn(4000, head_dim, seed=11)
        error = (type_.decode(type_.encode(x), head_dim) - x).square().sum(-1) / x.square().sum(-1)
        assert float(error.mean()) == pytest.approx(expected, rel=0.05)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.sampled_from((8, 64, 80, 128, 256)),
    st.integers(0, 2**31),
    st.floats(1e-2, 500),
    st.integers(0, 7),
)
def test_norm_is_kept(name: str, head_dim: int, seed: int, scale: float, spike: int) -> None:
    x = randn(4, head_dim, seed=seed)
    x[1] = 0
    x[1, spike] = 1  # one coordinate alone
    x[2, spike] = 100
    x = x * scale
    block = 128 if head_dim % 128 == 0 else head_dim
    decoded = kv_type(name).decode(kv_type(name).encode(x), head_dim)
    before, after = (t.reshape(-1, block).norm(dim=-1) for t in (x, decoded))
    assert torch.allclose(before, after, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_each_block_of_128_is_by_itself(name: str) -> None:
    type_ = kv_type(name)
    x = randn(3, 384)
    parts = [type_.encode(x[:, i : i + 128]) for i in (0, 128, 256)]
    assert torch.equal(type_.encode(x), torch.cat(parts, dim=-1))
    assert torch.allclose(type_.rotate(x)[:, 128:256], type_.rotate(x[:, 128:256]), atol=1e-5)
