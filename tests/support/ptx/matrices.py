"""The matrix units and what feeds them: which thread holds which element. Section 9.7.14 and 9.7.15 of NVIDIA's PTX ISA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ptx.arithmetic import Array
from ptx.memory import WARP, Threads
from ptx.program import Address, Instruction, Operand, unknown

if TYPE_CHECKING:
    from ptx.machine import Machine, Step

_LANE = np.arange(WARP)
_SWIZZLES = {1: 128, 2: 64, 3: 32}  # bytes of a row, by the descriptors' field
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4


def _registers(operand: Operand) -> tuple[Operand, ...]:
    return operand if isinstance(operand, tuple) else (operand,)


def _halves(machine: Machine, operands: Sequence[Operand]) -> Array:
    """Registers of two f16 each, as float32 [warps, 32, registers, 2]."""
    words = np.stack([machine.read(each, 32) for each in operands], 1)
    return words.view(np.float16).astype(np.float32).reshape(-1, WARP, len(operands), 2)


def _truncated(machine: Machine, operands: Sequence[Operand]) -> Array:
    """Registers of one tf32 each, whose low bits count for nothing, [warps, 32, registers]."""
    words = np.stack([machine.read(each, 32) for each in operands], 1) & np.uint32(0xFFFFE000)
    return words.view(np.float32).reshape(-1, WARP, len(operands))


def mma(machine: Machine, instruction: Instruction) -> Step:
    """mma.sync of f16 (m16n8k16) and tf32 (m16n8k8) with sums in float32."""
    shape, types = instruction.parts[3], instruction.parts[6:]
    targets, *sources = map(_registers, instruction.operands)
    if (shape, types) not in (("m16n8k16", ["f32", "f16", "f16", "f32"]), ("m16n8k8", ["f32", "tf32", "tf32", "f32"])):
        raise unknown(instruction)
    halves = shape == "m16n8k16"

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        warps = machine.count // WARP
        a, b = (
            np.zeros((warps, 16, 16 if halves else 8), np.float32),
            np.zeros((warps, 16 if halves else 8, 8), np.float32),
        )
        if halves:
            x, y = _halves(machine, sources[0]), _halves(machine, sources[1])
            for register in range(4):
                for half in range(2):
                    row = _GROUP + 8 * (register % 2)
                    a[:, row, 2 * _IN_GROUP + half + 8 * (register // 2)] = x[:, :, register, half]
            for register in range(2):
                for half in range(2):
                    b[:, 2 * _IN_GROUP + half + 8 * register, _GROUP] = y[:, :, register, half]
        else:
            x, y = _truncated(machine, sources[0]), _truncated(machine, sources[1])
            for register in range(4):
                a[:, _GROUP + 8 * (register % 2), _IN_GROUP + 4 * (register // 2)] = x[:, :, register]
            for register in range(2):
                b[:, _IN_GROUP + 4 * register, _GROUP] = y[:, :, register]
        product = np.matmul(a, b)
        for register, (target, source) in enumerate(zip(targets, sources[2], strict=True)):
            row, column = _GROUP + 8 * (register // 2), 2 * _IN_GROUP + register % 2
            added = machine.read(source, 32).view(np.float32) + product[:, row, column].reshape(-1)
            machine.write(target, added, mask)

    return compute


def _matrix_rows(machine: Machine, address: Operand, count: int, mask: Any) -> tuple[Threads, Array, Array]:
    """Of the lanes whose addresses are rows of matrices: (who they are, their addresses, which warps run)."""
    assert isinstance(address, Address)
    running = np.ones(machine.count // WARP, np.bool_) if mask is None else mask.reshape(-1, WARP).any(1)
    rows = np.repeat(running, WARP) & (machine.who.thread % WARP < 8 * count)
    return machine.who.some(rows), machine.addresses(address, True)[rows], running


def ldmatrix(machine: Machine, instruction: Instruction) -> Step:
    """Matrices of 8 by 8 halves: a lane's address is a row's, a lane gets two neighbours of a row, or of a column."""
    parts, (targets, address) = instruction.parts, instruction.operands
    targets, transposed = _registers(targets), "trans" in parts

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        who, at, running = _matrix_rows(machine, address, len(targets), mask)
        machine.tell(instruction, True, who, at, 16)
        words = machine.shared.load(who, at, 4, 4, instruction.text)
        rows = np.stack(words, 1).astype("<u4").view(np.uint16).reshape(running.sum(), len(targets), 8, 8)
        rows = rows.swapaxes(2, 3) if transposed else rows
        for matrix, target in enumerate(targets):
            pair = np.stack([rows[:, matrix, _GROUP, 2 * _IN_GROUP + half] for half in range(2)], -1)
            found = np.zeros((machine.count // WARP, WARP), np.uint32)
            found[running] = np.ascontiguousarray(pair).view("<u4")[..., 0]
            machine.write(target, found.reshape(-1), mask)

    return compute


def stmatrix(machine: Machine, instruction: Instruction) -> Step:
    """ldmatrix backwards."""
    parts, (address, sources) = instruction.parts, instruction.operands
    sources, transposed = _registers(sources), "trans" in parts

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), WARP, instruction.text)
        who, at, running = _matrix_rows(machine, address, len(sources), mask)
        rows = np.zeros((int(running.sum()), len(sources), 8, 8), np.uint16)
        for matrix, source in enumerate(sources):
            pair = machine.read(source, 32).astype("<u4").view(np.uint16).reshape(-1, WARP, 2)[running]
            for half in range(2):
                rows[:, matrix, _GROUP, 2 * _IN_GROUP + half] = pair[:, :, half]
        rows = rows.swapaxes(2, 3) if transposed else rows
        words = np.ascontiguousarray(rows).reshape(-1, 8).view("<u4")
        machine.tell(instruction, True, who, at, 16)
        machine.shared.store(who, at, list(words.T), 4, instruction.text)

    return compute


def wgmma(machine: Machine, instruction: Instruction) -> Step:
    """Of 9.0: four warps multiply 64 rows of f16, from registers, by 16 rows of shared memory. What it reads there it may read
    until it is waited for."""
    parts = instruction.parts
    if parts[1] in ("fence", "commit_group"):
        return lambda: None
    if parts[1] == "wait_group":
        if instruction.operands != (0,):
            raise unknown(instruction)
        return lambda: machine.finish(instruction.text)
    targets, a, descriptor, kept, *signs = instruction.operands
    columns = int(parts[4].removeprefix("m64n").removesuffix("k16"))
    if parts[-3:] != ["f32", "f16", "f16"] or not isinstance(a, tuple) or tuple(signs[:2]) != (1, 1):
        raise unknown(instruction)
    transposed = bool(signs[2])

    def compute() -> None:
        mask = machine.whole(machine.active(instruction), 4 * WARP, instruction.text)
        groups = machine.count // (4 * WARP)
        x, left = _halves(machine, a).reshape(groups, 4, WARP, 4, 2), np.zeros((groups, 4, 16, 16), np.float32)
        for register in range(4):
            for half in range(2):
                row, column = _GROUP + 8 * (register % 2), 2 * _IN_GROUP + half + 8 * (register // 2)
                left[:, :, row, column] = x[:, :, :, register, half]
        right = np.zeros((groups, 16, columns), np.float32)
        running = np.arange(groups) if mask is None else np.flatnonzero(mask.reshape(groups, -1).any(1))
        first = running * 4 * WARP
        descriptors = machine.read(descriptor, 64)[first]
        (mode,) = set((descriptors >> np.uint64(62)).tolist())
        if mode not in _SWIZZLES:
            raise unknown(instruction)
        addresses = described(descriptors, columns, transposed, _SWIZZLES[mode])
        who = Threads(*(np.repeat(each[first], 16 * columns) for each in (machine.who.block, machine.who.thread)))
        (halves,) = machine.shared.load(who, addresses.reshape(-1), 2, 1, instruction.text)
        machine.unfinished.append((who, addresses.reshape(-1)))
        right[running] = halves.view(np.float16).astype(np.float32).reshape(-1, 16, columns)
        product = np.matmul(left.reshape(groups, 64, 16), right).reshape(groups, 4, 16, columns)
        added = machine.read(kept, 1)
        for register, target in enumerate(_registers(targets)):
            row, column = _GROUP + 8 * (register // 2 % 2), 8 * (register // 4) + 2 * _IN_GROUP + register % 2
            before = np.where(added, machine.read(target, 32).view(np.float32), np.float32(0))
            machine.write(target, before + product[:, :, row, column].reshape(-1), mask)

    return compute


def described(descriptors: Array, columns: int, transposed: bool, width: int) -> Array:
    """Addresses of [16, columns] halves, int64 [descriptors, 16, columns]. A column's values are neighbours; a row's where
    transposed. Rows of 32, 64 or 128 bytes, 8 of them together, whose chunks of 16 bytes are exchanged by the row's number."""
    fields = descriptors.astype(np.uint64)
    start, leading, stride = (
        ((fields >> np.uint64(begin) & np.uint64(0x3FFF)) << np.uint64(4)).astype(np.int64)[:, None, None]
        for begin in (0, 16, 32)
    )
    if (fields >> np.uint64(49) & np.uint64(7)).any():
        raise ValueError("descriptors with a base aren't known here")
    k, n = np.arange(16)[:, None], np.arange(columns)[None, :]
    across, along = (n, k) if transposed else (k, n)
    at = start + (across * 2 // width * leading + across * 2 % width if transposed else across * 2)
    at = at + along // 8 * stride + along % 8 * width
    exchanged: Array = at ^ ((at >> 7 & (width // 16 - 1)) << 4)
    return exchanged


INSTRUCTIONS: dict[str, Callable[[Machine, Instruction], Step]] = {
    "mma": mma,
    "ldmatrix": ldmatrix,
    "stmatrix": stmatrix,
    "wgmma": wgmma,
}
