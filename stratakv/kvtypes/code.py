"""What packed bytes mean to a kernel: given by the type, so that no kernel knows types by their names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Encoding:
    """How a kernel makes the bytes. form: the rule's name among the kernels': f32, f16, bf16 (rounding), q8, minimum, middle
    (ggml's blocks), turbo (a norm, and the codebook's nearest entry in the rotated basis), trellis (a norm, and the cheapest
    way through 8 states: kvtypes/viterbi.py).

    bits: of a code. thresholds, integers, unit: of a codebook, entry i being integers[i] * unit. Of a trellis: bins, how
    many a coordinate of 1 is from 0; and for each bin and subset, [bins, 4] flat, the number of the level and its cost.
    """

    form: str
    bits: int = 0
    thresholds: tuple[float, ...] = ()
    integers: tuple[int, ...] = ()
    unit: float = 1.0
    bins: float = 0.0
    numbers: tuple[int, ...] = ()
    costs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Code:
    """How a kernel reads the bytes: a value is table[code] * unit * scale + minimum, scale and minimum being the block's fields.

    table: an integer (int8) for each code; empty where codes are signed bytes, or there are none. signed_scale: whether
    scales may be negative. encoding: None where only the type itself encodes.
    """

    table: tuple[int, ...] = ()
    unit: float = 1.0
    signed_scale: bool = False
    encoding: Encoding | None = None
