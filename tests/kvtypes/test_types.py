"""What every type promises, crossed with every type."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from documented_types import documented
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors import randn

from stratakv.errors import UserError
from stratakv.kvtypes import KVType, kv_type, type_names

STOCK = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
TURBO = ("turbo2", "turbo3", "turbo4", "turbo5", "turbo6", "turbo8")
TRELLIS = ("tcq2", "tcq3", "tcq4", "tcq5", "tcq6")
ALL = type_names()
HEAD_DIMS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640)


@pytest.fixture(params=ALL)
def type_(request: pytest.FixtureRequest) -> KVType:
    return kv_type(request.param)


def test_names_are_the_types_own():
    assert [kv_type(name).name for name in ALL] == list(ALL)
    assert {"f32", "f16", "bf16", *STOCK, *(f"{name}_rot" for name in STOCK), *TURBO, *TRELLIS} <= set(ALL)


def test_unknown_name_lists_all():
    with pytest.raises(UserError, match="unknown KV type 'turbo7'") as error:
        kv_type("turbo7")
    assert all(name in str(error.value) for name in ALL)


def test_frozen_hashable_value(type_: KVType):
    with pytest.raises(dataclasses.FrozenInstanceError):
        type_.name = "other"  # type: ignore[misc]
    assert kv_type(type_.name) is type_
    assert dataclasses.replace(type_) == type_
    assert len({type_, dataclasses.replace(type_), kv_type("f32"), kv_type("turbo4")}) in (2, 3)
    assert type_ != dataclasses.replace(type_, version=type_.version + 1)


def test_turbo_flag_and_seed():
    assert all(kv_type(name).turbo and kv_type(name).rotation_seed == 42 for name in TURBO + TRELLIS)
    assert not any(kv_type(name).turbo or kv_type(name).rotation_seed for name in ("f32", *STOCK, "q8_0_rot"))


def test_turbo4_at_64_has_one_norm():
    assert kv_type("turbo4").nbytes(64) == 34
    assert kv_type("turbo4").bits_per_value(64) == 4.25


def test_bytes_and_fields_agree(type_: KVType):
    for head_dim in HEAD_DIMS:
        fields, nbytes = type_.fields(head_dim), type_.nbytes(head_dim)
        assert type_.blocks(head_dim) * sum(field.nbytes for field in fields) == nbytes
        assert all(field.nbytes == 2 for field in fields if field.kind == "scale")
        assert ("float" in {field.kind for field in fields}) == (len(fields) == 1)
        assert type_.bits_per_value(head_dim) == 8 * nbytes / head_dim
        packed = type_.encode(randn(3, head_dim))
        assert packed.shape == (3, nbytes)
        assert packed.dtype == torch.uint8


def test_round_trip_error_and_stored_basis(type_: KVType):
    for head_dim in HEAD_DIMS:
        x = randn(64, head_dim)
        packed = type_.encode(x)
        decoded = type_.decode(packed, head_dim)
        assert decoded.dtype == torch.float32
        # of the documented error at 128: a trellis's is a fifth larger at head_dims below 16
        assert (decoded - x).square().sum() / x.square().sum() <= 1.25 * documented()[type_.name].errors[0]
        stored = type_.decode_stored(packed, head_dim)
        assert torch.equal(type_.unrotate(stored), decoded)
        assert torch.allclose(type_.rotate(decoded), stored, atol=1e-5)


def test_rotation_is_orthogonal(type_: KVType):
    for head_dim in HEAD_DIMS:
        matrix = type_.rotate(torch.eye(head_dim))
        assert torch.allclose(matrix @ matrix.T, torch.eye(head_dim), atol=1e-6)
        assert torch.allclose(type_.unrotate(matrix), torch.eye(head_dim), atol=1e-6)
        assert torch.equal(matrix, torch.eye(head_dim)) == (type_.rotation(head_dim) is None)


@pytest.mark.parametrize("head_dim", [0, -8, 4, 20, 36, 100])
def test_refused_head_dims(type_: KVType, head_dim: int):
    if type_.name in ("f32", "f16", "bf16") and head_dim > 0:
        type_.check(head_dim)
        return
    for ask in (type_.check, type_.nbytes, type_.bits_per_value):
        with pytest.raises(UserError, match=rf"{type_.name} can't store head_dim {head_dim}: allowed"):
            ask(head_dim)


@pytest.mark.parametrize("head_dim", [72, 88, 104, 120, 136, 576])
def test_turbo_refuses_what_no_matrix_covers(head_dim: int):
    for name in TURBO + TRELLIS:
        with pytest.raises(UserError, match="multiples of 128"):
            kv_type(name).check(head_dim)
    for name in STOCK:
        kv_type(f"{name}_rot").check(head_dim)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (2, 3, 5)])
def test_leading_shapes(type_: KVType, shape: tuple[int, ...]):
    x = randn(*shape, 64)
    packed = type_.encode(x)
    assert packed.shape == (*shape, type_.nbytes(64))
    assert type_.decode(packed, 64).shape == x.shape
    flat = type_.encode(x.reshape(x.numel() // 64, 64))
    assert torch.equal(packed.reshape(flat.shape), flat)


def test_views_of_inputs_and_of_packed_bytes(type_: KVType):
    x = randn(3, 96, 5).transpose(1, 2)
    packed = type_.encode(x)
    assert torch.equal(packed, type_.encode(x.contiguous()))
    wide = torch.zeros(3, 5, packed.shape[-1] + 1, dtype=torch.uint8)
    wide[..., 1:] = packed  # odd addresses
    assert torch.equal(type_.decode(wide[..., 1:], 96), type_.decode(packed, 96))
    assert torch.equal(type_.decode(wide[1, 2, 1:], 96), type_.decode(packed[1, 2], 96))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_inputs(type_: KVType, dtype: torch.dtype):
    x = randn(4, 128).to(dtype)
    assert torch.equal(type_.encode(x), type_.encode(x.float()))


def test_keeps_no_reference(type_: KVType):
    x = randn(2, 64)
    before = x.clone()
    packed = type_.encode(x)
    assert torch.equal(x, before)
    kept = packed.clone()
    x.fill_(float("nan"))
    assert torch.equal(packed, kept)
    decoded = type_.decode(packed, 64)
    values = decoded.clone()
    packed.fill_(255)
    assert torch.equal(decoded, values)


def test_gradients_reach_the_rotation_only(type_: KVType):
    x = randn(2, 64).requires_grad_()
    assert not type_.encode(x).requires_grad
    with torch.inference_mode():
        type_.decode(type_.encode(randn(1, 48)), 48)  # fills caches for a head_dim of its own
    y = randn(2, 48).requires_grad_()
    type_.unrotate(type_.rotate(y)).sum().backward()
    assert y.grad is not None
    assert torch.allclose(y.grad, torch.ones_like(y), atol=1e-5)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_non_finite_is_refused(type_: KVType, value: float, dtype: torch.dtype):
    x = randn(2, 3, 64).to(dtype)
    x[1, 2, 37] = value
    with pytest.raises(ValueError, match="non-finite"):
        type_.encode(x)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("f32", "bf16")])
@pytest.mark.parametrize("value", [1e9, 1e30, 3.4e38])
def test_what_overflows_is_refused(name: str, value: float):
    for x in (torch.full((2, 64), value), torch.where(torch.arange(64) == 5, -value, 1.0)):
        with pytest.raises(ValueError, match="too large for"):
            kv_type(name).encode(x)


def test_large_values_that_fit(type_: KVType):
    x = randn(4, 128).clamp(-3, 3) * 3000
    error = (type_.decode(type_.encode(x), 128) - x).square().sum() / x.square().sum()
    assert error < 0.13


def test_zeros(type_: KVType):
    for zero in (0.0, -0.0):
        packed = type_.encode(torch.full((2, 64), zero))
        assert torch.equal(packed[0], packed[1])
        assert torch.equal(type_.decode(packed, 64).abs(), torch.zeros(2, 64))


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-30, 1e-20, 1e-12])
def test_denormal_and_tiny_values_stay_tiny(type_: KVType, scale: float):
    x = randn(8, 64) * scale
    packed = type_.encode(x)
    decoded = type_.decode(packed, 64)
    assert torch.equal(packed, type_.encode(x))
    assert torch.isfinite(decoded).all()
    assert decoded.abs().max() <= 1.02 * x.abs().max()


def test_wrong_inputs(type_: KVType):
    with pytest.raises(ValueError, match="stores float vectors"):
        type_.encode(torch.zeros(2, 64, dtype=torch.int32))
    with pytest.raises(ValueError, match="stores float vectors"):
        type_.encode(torch.tensor(1.0))
    packed = type_.encode(randn(2, 64))
    with pytest.raises(ValueError, match=r"is uint8 \[\.\.\., "):
        type_.decode(packed[:, :-1], 64)
    with pytest.raises(ValueError, match="is uint8"):
        type_.decode(packed.to(torch.int8), 64)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ALL),
    st.sampled_from((8, 24, 64, 80, 128, 256)),
    st.integers(0, 2**31),
    st.integers(1, 70),
    st.data(),
)
def test_bytes_do_not_depend_on_the_batch(name: str, head_dim: int, seed: int, rows: int, data: st.DataObject):
    type_ = kv_type(name)
    x = randn(rows, head_dim, seed=seed) * data.draw(st.sampled_from((1e-3, 1.0, 30.0)))
    packed = type_.encode(x)
    assert torch.equal(packed, type_.encode(x))
    row = data.draw(st.integers(0, rows - 1))
    assert torch.equal(packed[row], type_.encode(x[row]))
    cut = data.draw(st.integers(0, rows))
    assert torch.equal(packed, torch.cat([type_.encode(x[:cut]), type_.encode(x[cut:])]))
