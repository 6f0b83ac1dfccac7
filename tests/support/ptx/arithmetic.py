"""What instructions compute of registers alone. Section 9.7 of NVIDIA's PTX ISA; names without a type."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_DTYPES = {
    **{f"{kind}{bits}": f"{'i' if kind == 's' else 'u'}{bits // 8}" for kind in "sub" for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("f16", "f16x2"), "f2"),
    **dict.fromkeys(("f32", "f32x2"), "f4"),
    "f64": "f8",
    "u16x2": "u2",
    "s16x2": "i2",
    "pred": "?",
}


def dtype_of(name: str) -> np.dtype[Any]:
    """Of a PTX type; elements of a register that holds two."""
    return np.dtype(_DTYPES[name])


def _shift(shifted: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    """By 32-bit counts; all bits are gone beyond a value's width."""

    def shift(a: Array, by: Array) -> Array:
        width = a.dtype.itemsize * 8
        by = by.astype(np.int64)
        most = width - 1
        found = shifted(a, np.minimum(by, most).astype(a.dtype))
        gone = a >> np.array(most, a.dtype) if a.dtype.kind == "i" else np.zeros_like(a)
        return np.where(by > most, gone, found)

    return shift


def _high(a: Array, b: Array) -> Array:
    bits = a.dtype.itemsize * 8
    return np.array([int(x) * int(y) >> bits for x, y in zip(a, b, strict=True)], dtype=a.dtype)


def _fused(a: Array, b: Array, c: Array) -> Array:
    """Products are exact in float64, whose own rounding of the sum is next to never seen."""
    if a.dtype.kind != "f":
        return a * b + c
    return (a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)).astype(a.dtype)


def _divided(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    if (b == 0).any():
        raise ValueError("an integer is divided by 0, of which nothing is known")
    found: Array = np.fix(a.astype(np.float64) / b).astype(a.dtype)  # 32 bits at most
    return found


def _field(a: Array, begin: Array, length: Array) -> Array:
    """bfe of 32 bits."""
    begin, length = begin.astype(np.int64) & 255, length.astype(np.int64) & 255
    found = (a.astype(np.int64) >> np.minimum(begin, 32)) & ((1 << np.minimum(length, 32)) - 1)
    if a.dtype.kind == "i":
        sign = (length > 0) & ((a.astype(np.int64) >> np.minimum(begin + length - 1, 31)) & 1 != 0)
        found = np.where(sign, found - (1 << length), found)
    field: Array = found.astype(a.dtype)
    return field


def _permuted(a: Array, b: Array, selector: Array) -> Array:
    """prmt in its default mode: each nibble of the selector names one of 8 bytes, or, with its bit 3, that byte's sign."""
    words = (a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)).astype("<u8").view(np.uint8).reshape(-1, 8)
    chosen = np.zeros((len(a), 4), dtype=np.uint8)
    for place in range(4):
        nibble = selector >> np.uint32(4 * place) & np.uint32(15)
        byte = words[np.arange(len(a)), nibble & np.uint32(7)]
        chosen[:, place] = np.where(nibble > 7, np.where(byte > 127, 255, 0), byte)
    found: Array = chosen.view("<u4")[:, 0]
    return found


def _funnel(a: Array, b: Array, by: Array) -> Array:
    """shf.l.wrap: b above a, to the left; the upper word."""
    both = b.astype(np.uint64) << np.uint64(32) | a
    return (both << (by & np.uint32(31)).astype(np.uint64) >> np.uint64(32)).astype(np.uint32)


def _extreme(of_two: Callable[..., Array], of_zeros: Callable[..., Array]) -> Callable[[Array, Array], Array]:
    """max or min: -0 is less than 0."""

    def extreme(a: Array, b: Array) -> Array:
        found = of_two(a, b)
        if found.dtype.kind != "f":
            return found
        kind = f"u{found.dtype.itemsize}"
        return np.where((a == 0) & (b == 0), of_zeros(a.view(kind), b.view(kind)).view(found.dtype), found)

    return extreme


def _selected(a: Array, b: Array, which: Array) -> Array:
    return np.where(which, a, b)


def _base_2_exponential(a: Array) -> Array:
    return np.exp2(a.astype(np.float64)).astype(a.dtype)


ONE_TYPE: dict[str, Callable[..., Array]] = {
    "abs": np.abs,
    "add": np.add,
    "and": np.bitwise_and,
    "bfe": _field,
    "div": _divided,
    "ex2": _base_2_exponential,
    "fma": _fused,
    "lg2": np.log2,
    "mad": _fused,
    "max": lambda *values: reduce(_extreme(np.fmax, np.bitwise_and), values),  # of 10.0 on three at once
    "min": lambda *values: reduce(_extreme(np.fmin, np.bitwise_or), values),
    "mul": np.multiply,
    "neg": np.negative,
    "not": np.invert,
    "or": np.bitwise_or,
    "prmt": _permuted,
    "rcp": np.reciprocal,
    "rem": np.fmod,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "selp": _selected,
    "shf": _funnel,
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "sqrt": np.sqrt,
    "sub": np.subtract,
    "xor": np.bitwise_xor,
}
# which operands have another type than the instruction: their place -> the type
OTHER_TYPES = {"selp": {2: "pred"}, "shl": {1: "u32"}, "shr": {1: "u32"}, "bfe": {1: "u32", 2: "u32"}}
# max.NaN and min.NaN: a number that is none wins
NAN_WINS: dict[str, Callable[..., Array]] = {
    "max": lambda *values: reduce(_extreme(np.maximum, np.bitwise_and), values),
    "min": lambda *values: reduce(_extreme(np.minimum, np.bitwise_or), values),
}
HIGH = _high

COMPARED: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


def compared(how: str, a: Array, b: Array) -> Array:
    """setp. Of floats, those comparisons that end in u are true, and all others false, where one is no number."""
    if a.dtype.kind != "f":
        return COMPARED[how](a, b)
    none = np.isnan(a) | np.isnan(b)
    if how in ("nan", "num"):
        return none if how == "nan" else ~none
    if how.endswith("u") and len(how) == 3:
        return COMPARED[how[:2]](a, b) | none
    return COMPARED[how](a, b) & ~none


def flushed(a: Array) -> Array:
    """.ftz: a float32 below the normal ones is a zero of its sign."""
    if a.dtype != np.float32:
        return a
    return np.where(np.abs(a) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), a), a)


def bf16(bits: Array) -> Array:
    """uint16 -> float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def converted(a: Array, to: str, rounding: str) -> Array:
    """cvt of one value, as to's bits. rounding: rn, rz, rni, rzi, rmi, rpi, rna or none."""
    if to == "tf32":
        assert rounding == "rna"
        return (a.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    if to == "bf16":
        assert rounding == "rn"
        bits = a.view(np.uint32).astype(np.uint64)
        found = ((bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)
        return np.where(np.isnan(a), np.uint16(0x7FFF), found)
    dtype = dtype_of(to)
    if a.dtype.kind == "f":
        whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.get(rounding)
        a = a if whole is None else whole(a)
        if dtype.kind != "f":
            limits = np.iinfo(dtype)
            a = np.clip(
                np.nan_to_num(a.astype(np.float64), nan=0.0, posinf=limits.max, neginf=limits.min),
                limits.min,
                limits.max,
            )
        elif rounding == "rz" and dtype.itemsize < a.dtype.itemsize:
            raise ValueError("cvt.rz of floats isn't known here")
    return a.astype(dtype)
