"""The matrix units of 10.0, which keep sums in a memory of their own: 128 lanes of 512 words a block. Section 9.7.16 of NVIDIA's
PTX ISA. A product is there as soon as it is asked for; what waits for one that nobody asked for would wait for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ptx.arithmetic import Array
from ptx.matrices import described
from ptx.memory import WARP, GpuError, Threads
from ptx.program import Address, Instruction, Operand, unknown

if TYPE_CHECKING:
    from ptx.machine import Machine, Step

LANES, COLUMNS = 128, 512
_FIRST = 32  # the column that an allocation begins at
_SWIZZLES = {2: 128, 4: 64, 6: 32}


def tcgen05(machine: Machine, instruction: Instruction) -> Step:
    """All of them, by their second name."""
    second = instruction.parts[1]
    if second in ("wait::ld", "wait::st", "relinquish_alloc_permit", "dealloc"):
        return lambda: None
    if second in _OPERATIONS:
        return _OPERATIONS[second](machine, instruction)
    raise unknown(instruction)


def _alloc(machine: Machine, instruction: Instruction) -> Step:
    address, columns = instruction.operands
    assert isinstance(columns, int) and columns <= COLUMNS - _FIRST

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        first = machine.who.thread % WARP == 0
        first = first if mask is None else first & mask
        who = machine.who.some(first)
        at = machine.addresses(address, True)[first]
        machine.shared.store(who, at, [np.full(len(at), _FIRST, np.uint32)], 4, instruction.text)

    return compute


def _places(
    machine: Machine, instruction: Instruction, address: Address, halves: Sequence[Operand]
) -> tuple[Array, Array]:
    """(lanes, columns of the first word) of all threads. Of 32x32b each thread has a lane; of 16x32bx2 a warp's first and last 16
    threads have the same ones, the last ones so many columns further."""
    if ("16x32bx2" in instruction.parts) != bool(halves) or not {"16x32bx2", "32x32b"} & set(instruction.parts):
        raise unknown(instruction)
    at = machine.addresses(address, True).astype(np.int64)
    running = machine.active(instruction)
    foreign = (at >> 16) // WARP != machine.who.thread // WARP % 4
    if (foreign if running is None else foreign & running).any():
        raise GpuError(f"a warp may only have its own quarter of tensor memory: {instruction.text}")
    thread = machine.who.thread % WARP
    if not halves:
        return (at >> 16) + thread, at & 0xFFFF
    (further,) = halves
    assert isinstance(further, int)
    return (at >> 16) + thread % 16, (at & 0xFFFF) + np.where(thread >= 16, further, 0)


def _load(machine: Machine, instruction: Instruction) -> Step:
    targets, address, *halves = instruction.operands
    assert isinstance(address, Address) and isinstance(targets, tuple)

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        lane, column = _places(machine, instruction, address, halves)
        for each, target in enumerate(targets):
            machine.write(target, machine.tensor_memory[machine.who.block, lane, column + each], mask)

    return compute


def _store(machine: Machine, instruction: Instruction) -> Step:
    address, *halves, sources = instruction.operands
    assert isinstance(address, Address) and isinstance(sources, tuple)

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        lane, column = _places(machine, instruction, address, halves)
        here = np.ones(machine.count, np.bool_) if mask is None else mask
        for each, source in enumerate(sources):
            value = machine.read(source, 32)[here]
            machine.tensor_memory[machine.who.block[here], lane[here], column[here] + each] = value

    return compute


def _multiply(machine: Machine, instruction: Instruction) -> Step:
    """A thread of a block asks for 64 or 128 rows of f16 (of shared or tensor memory) times a matrix of shared memory."""
    target, a, b, described_as, kept = instruction.operands
    if "kind::f16" not in instruction.parts or "cta_group::1" not in instruction.parts:
        raise unknown(instruction)

    def compute() -> None:
        mask = machine.active(instruction)
        who = machine.those(mask)
        if len(np.unique(who.block)) != len(who.block):
            raise GpuError(f"more than one thread of a block asks for a product: {instruction.text}")

        def mine(values: Array) -> Array:
            return values if mask is None else values[mask]

        (kind,) = set(mine(machine.read(described_as, 32)).tolist())
        rows, columns = (kind >> 24 & 31) << 4, (kind >> 17 & 63) << 3
        if kind & 0x7FFF != 0x10 or rows not in (64, 128) or kind >> 15 & 1:
            raise unknown(instruction)
        row = np.arange(rows)
        lanes = row if rows == LANES else row // 16 * WARP + row % 16
        if isinstance(a, Address):
            at = mine(machine.addresses(a, True)).astype(np.int64)
            words = machine.tensor_memory[
                who.block[:, None, None],
                ((at >> 16)[:, None] + lanes)[:, :, None],
                ((at & 0xFFFF)[:, None] + np.arange(8))[:, None, :],
            ]
            left = np.ascontiguousarray(words).view(np.float16).astype(np.float32)
        else:
            left = _halves(machine, who, mine(machine.read(a, 64)), rows, False, instruction).swapaxes(1, 2)
        right = _halves(machine, who, mine(machine.read(b, 64)), columns, bool(kind >> 16 & 1), instruction)
        at = mine(machine.addresses(target, True)).astype(np.int64)
        place = (
            who.block[:, None, None],
            ((at >> 16)[:, None] + lanes)[:, :, None],
            ((at & 0xFFFF)[:, None] + np.arange(columns))[:, None, :],
        )
        added = mine(machine.read(kept, 1))[:, None, None]
        before = np.where(added, machine.tensor_memory[place].view(np.float32), np.float32(0))
        machine.tensor_memory[place] = (before + np.matmul(left, right)).view(np.uint32)

    return compute


def _halves(
    machine: Machine, who: Threads, descriptors: Array, columns: int, transposed: bool, instruction: Instruction
) -> Array:
    """[blocks, 16, columns] of shared memory, which may yet be read until the product is waited for."""
    (mode,) = set((descriptors >> np.uint64(61)).tolist())
    if mode not in _SWIZZLES:
        raise unknown(instruction)
    addresses = described(descriptors, columns, transposed, _SWIZZLES[mode])
    readers = Threads(*(np.repeat(each, 16 * columns) for each in (who.block, who.thread)))
    (halves,) = machine.shared.load(readers, addresses.reshape(-1), 2, 1, instruction.text)
    machine.unfinished.append((readers, addresses.reshape(-1)))
    return halves.view(np.float16).astype(np.float32).reshape(-1, 16, columns)


def _commit(machine: Machine, instruction: Instruction) -> Step:
    (address,) = instruction.operands

    def compute() -> None:
        mask = machine.active(instruction)
        who, at = machine.those(mask), machine.addresses(address, True)
        for block, place in zip(who.block.tolist(), (at if mask is None else at[mask]).tolist(), strict=True):
            if (block, place) not in machine.phases:
                raise GpuError(f"a barrier in memory that nobody set up: {instruction.text}")
            machine.phases[block, place] += 1

    return compute


_OPERATIONS: dict[str, Callable[[Machine, Instruction], Step]] = {
    "alloc": _alloc,
    "ld": _load,
    "st": _store,
    "mma": _multiply,
    "commit": _commit,
}


def mbarrier(machine: Machine, instruction: Instruction) -> Step:
    """Barriers in shared memory, that one arrival opens."""
    second = instruction.parts[1]
    if second not in ("init", "inval", "try_wait"):
        raise unknown(instruction)
    target = instruction.operands[0]
    address = instruction.operands[1 if second == "try_wait" else 0]

    def compute() -> None:
        mask = machine.active(instruction)
        who, at = machine.those(mask), machine.addresses(address, True)
        places = list(zip(who.block.tolist(), (at if mask is None else at[mask]).tolist(), strict=True))
        if second == "init":
            machine.phases |= dict.fromkeys(places, 0)
        elif second == "inval":
            for each in set(places):
                del machine.phases[each]
        else:
            parities = machine.read(instruction.operands[2], 32)
            parities = parities if mask is None else parities[mask]
            if any(
                machine.phases[each] % 2 == parity for each, parity in set(zip(places, parities.tolist(), strict=True))
            ):
                raise GpuError(f"waited for what never comes: {instruction.text}")
            machine.finish("tcgen05.mma")
            machine.write(target, np.ones(machine.count, np.bool_), mask)

    return compute


def elect(machine: Machine, instruction: Instruction) -> Step:
    """One thread of a warp."""
    target = instruction.operands[0]
    assert isinstance(target, str)

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        machine.write(target.split("|")[1], machine.who.thread % WARP == 0, mask)

    return compute


INSTRUCTIONS: dict[str, Callable[[Machine, Instruction], Step]] = {
    "tcgen05": tcgen05,
    "mbarrier": mbarrier,
    "elect": elect,
}
