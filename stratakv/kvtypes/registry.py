"""All types by name."""

from __future__ import annotations

import torch

from stratakv.errors import UserError
from stratakv.kvtypes.blocks import BlockType
from stratakv.kvtypes.floats import FloatType
from stratakv.kvtypes.rotated import RotatedType
from stratakv.kvtypes.trellis import TrellisType
from stratakv.kvtypes.turbo import TurboType
from stratakv.kvtypes.types import KVType

_FLOATS = (
    FloatType(name="f32", dtype=torch.float32),
    FloatType(name="f16", dtype=torch.float16),
    FloatType(name="bf16", dtype=torch.bfloat16),
)
_BLOCKS = (
    BlockType(name="q8_0", bits=8),
    BlockType(name="q5_1", bits=5, minimum=True),
    BlockType(name="q5_0", bits=5),
    BlockType(name="q4_1", bits=4, minimum=True),
    BlockType(name="q4_0", bits=4),
)
_ROTATED = tuple(RotatedType(name=f"{stored.name}_rot", stored=stored) for stored in _BLOCKS)
_TURBO = tuple(TurboType(name=f"turbo{bits}", bits=bits) for bits in (2, 3, 4, 5, 6, 8))
_TRELLIS = tuple(TrellisType(name=f"tcq{bits}", bits=bits) for bits in (2, 3, 4, 5, 6))

_TYPES: dict[str, KVType] = {type_.name: type_ for type_ in (*_FLOATS, *_BLOCKS, *_ROTATED, *_TURBO, *_TRELLIS)}


def kv_type(name: str) -> KVType:
    """The type of that name, always the same value. UserError, listing all names, for an unknown one."""
    if name not in _TYPES:
        raise UserError(f"unknown KV type {name!r}: allowed are {' '.join(_TYPES)}")
    return _TYPES[name]


def type_names() -> tuple[str, ...]:
    """All names: floats, stock types, their rotated forms, the turbo family, the trellis types."""
    return tuple(_TYPES)
