"""Instructions that load, store, copy and wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ptx.memory import WARP, GpuError
from ptx.program import BITS, Address, Instruction, unknown

if TYPE_CHECKING:
    from ptx.machine import Machine, Step


def ld(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    parts, (targets, address) = instruction.parts, instruction.operands
    targets = targets if isinstance(targets, tuple) else (targets,)
    size = int(parts[-1][1:]) // 8
    if "param" in parts:
        assert isinstance(address, Address)
        value = np.frombuffer(machine.parameters[address.base], BITS[size])
        return lambda: machine.write(targets[0], np.repeat(value, machine.count), machine.active(instruction))
    shared = "shared" in parts

    def compute() -> None:
        mask = machine.active(instruction)
        at = machine.addresses(address, shared)
        at = at if mask is None else at[mask]
        machine.tell(instruction, shared, machine.those(mask), at, size * len(targets))
        if shared:
            found = machine.shared.load(machine.those(mask), at, size, len(targets), instruction.text)
        else:
            found = machine.memory.load(at, size, len(targets), instruction.text)
        machine.scatter(targets, found, mask)

    return compute


def st(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    parts, (address, sources) = instruction.parts, instruction.operands
    sources = sources if isinstance(sources, tuple) else (sources,)
    bits, shared = int(parts[-1][1:]), "shared" in parts

    def compute() -> None:
        mask = machine.active(instruction)
        at = machine.addresses(address, shared)
        values = [machine.read(source, bits).astype(BITS[bits // 8]) for source in sources]
        if mask is not None:
            at, values = at[mask], [value[mask] for value in values]
        machine.tell(instruction, shared, machine.those(mask), at, bits // 8 * len(values))
        if shared:
            machine.shared.store(machine.those(mask), at, values, bits // 8, instruction.text)
        else:
            machine.memory.store(at, values, bits // 8, instruction.text)

    return compute


def atom(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    if instruction.parts[-2:] != ["max", "s32"] or "global" not in instruction.parts:
        raise unknown(instruction)
    _, address, source = instruction.operands

    def compute() -> None:
        mask = machine.active(instruction)
        at, value = machine.addresses(address, False), machine.typed(source, "s32")
        if mask is not None:
            at, value = at[mask], value[mask]
        machine.memory.largest(at, value, instruction.text)

    return compute


def cp(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    parts = instruction.parts
    if parts[:2] != ["cp", "async"]:
        raise unknown(instruction)
    if "commit_group" in parts:
        return lambda: machine.commit(machine.active(instruction))
    if "wait_group" in parts or "wait_all" in parts:
        left = instruction.operands[0] if "wait_group" in parts else -1
        assert isinstance(left, int)
        return lambda: machine.end_copies(left, machine.active(instruction))
    target, source, size, *more = instruction.operands
    assert isinstance(size, int)
    if "cg" in parts and size != 16:
        raise GpuError(f"cp.async.cg copies 16 bytes: {instruction.text}")

    def compute() -> None:
        mask = machine.active(instruction)
        to, of = machine.addresses(target, True), machine.addresses(source, False)
        wanted = machine.read(more[0], 32).astype(np.int64) if more else np.full(machine.count, size)
        threads = np.arange(machine.count)
        if mask is not None:
            to, of, wanted, threads = to[mask], of[mask], wanted[mask], threads[mask]
        if not np.isin(wanted, (0, size)).all():
            raise ValueError(f"parts of a copy aren't known here: {instruction.text}")
        if (of % np.uint64(size)).any():
            raise GpuError(f"misaligned address: {instruction.text}")
        values = np.zeros((len(of), size), dtype=np.uint8)
        there = wanted > 0
        words = machine.memory.load(of[there], 4, size // 4, instruction.text)
        if there.any():
            values[there] = np.stack(words, 1).astype("<u4").view(np.uint8)
        who = machine.those(mask)
        machine.tell(instruction, False, who.some(there), of[there], size)
        machine.tell(instruction, True, who, to, size)
        machine.shared.begin_copy(machine.those(mask), to, size, instruction.text)
        machine.copies.append((threads, machine.groups[threads], to, values))

    return compute


def bar(machine: Machine, instruction: Instruction) -> Callable[[], None]:
    warp = "warp" in instruction.parts
    if not warp and instruction.operands != (0,):
        raise unknown(instruction)

    def compute() -> None:
        size = WARP if warp else machine.program.threads
        mask = machine.whole(machine.active(instruction), size, instruction.text)
        if warp:
            machine.shared.warp_barrier(machine.those(mask))
        else:
            machine.shared.barrier(np.unique(machine.those(mask).block))

    return compute


INSTRUCTIONS: dict[str, Callable[[Machine, Instruction], Step]] = {
    "ld": ld,
    "st": st,
    "atom": atom,
    "cp": cp,
    "bar": bar,
}
