"""Instructions of registers: arithmetic, comparisons, conversions, moves, and exchanges within a warp."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ptx.arithmetic import HIGH, NAN_WINS, ONE_TYPE, OTHER_TYPES, compared, converted, dtype_of, flushed
from ptx.memory import WARP
from ptx.program import BITS, Instruction, unknown

if TYPE_CHECKING:
    from ptx.machine import Machine, Step


def computed(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    first, *more, last = instruction.parts
    target, *sources = instruction.operands
    function = NAN_WINS[first] if "NaN" in more else HIGH if "hi" in more else ONE_TYPE[first]
    wide, flush = "wide" in more, "ftz" in more
    types = [OTHER_TYPES.get(first, {}).get(place, last) for place in range(len(sources))]
    if wide:
        double = f"{last[0]}{2 * int(last[1:])}"
        types = [last, last, double][: len(sources)]

    def compute() -> None:
        values = [machine.typed(source, type_) for source, type_ in zip(sources, types, strict=True)]
        if wide:
            values = [value.astype(dtype_of(double)) for value in values]
        if flush:
            values = [flushed(value) for value in values]
        found = function(*values)
        machine.write(target, flushed(found) if flush else found, machine.active(instruction))

    return compute


def setp(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    _, how, *more, type_ = instruction.parts
    if set(more) - {"ftz"}:
        raise unknown(instruction)
    target, a, b = instruction.operands

    def compute() -> None:
        machine.write(
            target, compared(how, machine.typed(a, type_), machine.typed(b, type_)), machine.active(instruction)
        )

    return compute


def cvt(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    _, *how, to, of = instruction.parts
    target, *sources = instruction.operands
    rounding = next((each for each in how if each[0] == "r"), "")
    if set(how) - {rounding, "ftz"}:
        raise unknown(instruction)

    def compute() -> None:
        values = [machine.typed(source, of) for source in sources]
        if "ftz" in how:
            values = [flushed(value) for value in values]
        if len(values) == 2:  # the first one becomes the upper half
            upper, lower = (converted(value, to.removesuffix("x2"), rounding).view(np.uint16) for value in values)
            found = upper.astype(np.uint32) << np.uint32(16) | lower
        else:
            found = converted(values[0], to, rounding)
        machine.write(target, found, machine.active(instruction))

    return compute


def mov(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    target, source = instruction.operands
    type_ = instruction.parts[-1]
    bits = 1 if type_ == "pred" else int(type_[1:])

    def compute() -> None:
        mask = machine.active(instruction)
        if isinstance(target, tuple):
            found = machine.read(source, bits).view(BITS[bits // 8 // len(target)]).reshape(-1, len(target))
            for place, each in enumerate(target):
                machine.write(each, np.ascontiguousarray(found[:, place]), mask)
        elif isinstance(source, tuple):
            halves = [machine.read(each, bits // len(source)) for each in source]
            machine.write(target, np.stack(halves, 1).view(BITS[bits // 8])[:, 0], mask)
        else:
            machine.write(target, machine.read(source, bits), mask)

    return compute


def shfl(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    how = instruction.parts[2]
    target, source, by, clamp, _ = instruction.operands
    if how not in ("bfly", "idx") or clamp != 31:
        raise unknown(instruction)

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        lane, other = machine.special["%laneid"], machine.read(by, 32) & np.uint32(31)
        of = lane ^ other if how == "bfly" else other
        found = machine.read(source, 32)[np.arange(machine.count) // WARP * WARP + of]
        machine.write(target, found, mask)

    return compute


def redux(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    *_, how, type_ = instruction.parts
    target, source, _ = instruction.operands
    reduced = {"add": np.add, "min": np.fmin, "max": np.fmax, "or": np.bitwise_or, "and": np.bitwise_and}[how]

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        values = machine.typed(source, type_)
        found = reduced.reduce(values.reshape(-1, WARP), axis=1, dtype=values.dtype)
        machine.write(target, np.repeat(found, WARP), mask)

    return compute


INSTRUCTIONS: dict[str, Callable[[Machine, Instruction], Step]] = {
    **dict.fromkeys(ONE_TYPE, computed),
    "setp": setp,
    "cvt": cvt,
    "mov": mov,
    "shfl": shfl,
    "redux": redux,
}
