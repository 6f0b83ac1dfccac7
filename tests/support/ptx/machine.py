"""Runs a program over all blocks of a launch side by side: a register is an array with an element a thread.

Where threads part, those that are furthest behind go on alone, until they meet the others or come to what only whole warps or
blocks may pass: there they wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from ptx import computing, matrices, moving, tensor_memory
from ptx.arithmetic import Array, bf16, dtype_of
from ptx.memory import WARP, Global, GpuError, Shared, Threads
from ptx.program import BITS, Address, Instruction, Operand, Program, unknown, unsigned

# What an instruction does; gives the place where its threads go on, None for the next one, -1 for nowhere
Step = Callable[[], int | None]
# (the instruction, whether in shared memory, whose access, the addresses, bytes of each)
Observer = Callable[[Instruction, bool, Threads, Array, int], None]
_POISON = 0xFFF7DEADFFF7DEAD  # what registers hold that nothing was written to: no number in any type
_NOTHING = frozenset(["fence", "membar", "griddepcontrol", "prefetch"])


def run(
    program: Program,
    grid: tuple[int, int, int],
    arguments: Sequence[torch.Tensor | int | float],
    shared_bytes: int,
    watched: Sequence[int] = (0,),
    observer: Observer | None = None,
) -> int:
    """Run a launch, and write what it stores into the tensors among its arguments. watched: blocks whose shared memory is
    watched. observer: is told of every access. Returns how many instructions were run, each for all blocks. Raises GpuError
    for what a card would not do."""
    machine = Machine(program, grid, arguments, shared_bytes, watched)
    machine.observer = observer
    return machine.run()


class _SomeOnlyError(GpuError):
    """Others have yet to come."""


class Machine:
    """The state of a launch."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        arguments: Sequence[torch.Tensor | int | float],
        shared_bytes: int,
        watched: Sequence[int],
    ) -> None:
        blocks = grid[0] * grid[1] * grid[2]
        self.program, self.count = program, blocks * program.threads
        self.who = Threads(
            np.repeat(np.arange(blocks), program.threads), np.tile(np.arange(program.threads), blocks).astype(np.int64)
        )
        self.memory = Global([each for each in arguments if isinstance(each, torch.Tensor)])
        self.shared = Shared(blocks, shared_bytes, program.threads, watched)
        self.registers: dict[str, Array] = {}
        self._constants: dict[tuple[int | str, int], Array] = {}
        self.parameters = self._given(arguments)
        block = self.who.block
        special = {
            "%tid.x": self.who.thread,
            "%ctaid.x": block % grid[0],
            "%ctaid.y": block // grid[0] % grid[1],
            "%ctaid.z": block // (grid[0] * grid[1]),
            "%laneid": self.who.thread % WARP,
        }
        special |= {f"%nctaid.{axis}": np.full(self.count, size) for axis, size in zip("xyz", grid, strict=True)}
        self.special = {name: values.astype(np.uint32) for name, values in special.items()}
        self.alive = np.ones(self.count, dtype=np.bool_)
        # threads that run now; None: all that are alive; and those that wait, by the instruction they wait at
        self.now: NDArray[np.bool_] | None = None
        self._waiting: dict[int, NDArray[np.bool_]] = {}
        self._stopped: set[int] = set()  # those of these places that only all of a warp or block may pass
        # copies that nobody waited for: (thread of the launch, its groups before, address, bytes) of many threads
        self.copies: list[tuple[NDArray[np.int64], NDArray[np.int64], Array, NDArray[np.uint8]]] = []
        self.unfinished: list[tuple[Threads, Array]] = []  # halves in shared memory that products may yet read
        # by block and address: how often a barrier in memory was opened
        self.phases: dict[tuple[int, int], int] = {}
        self.groups = np.zeros(self.count, dtype=np.int64)
        self.observer: Observer | None = None
        self._steps = [self._step(each) for each in program.instructions]

    def _given(self, arguments: Sequence[torch.Tensor | int | float]) -> dict[str, bytes]:
        """Parameters' bytes; those that the launcher adds, pointers to scratch memory, are 0."""
        found = {}
        values = [*arguments, *[0] * (len(self.program.parameters) - len(arguments))]
        for (name, type_), value in zip(self.program.parameters, values, strict=True):
            if isinstance(value, torch.Tensor):
                value = value.data_ptr()
            kind = np.dtype(dtype_of(type_.replace("b", "u")))
            found[name] = np.array(value).astype(kind).tobytes()
        return found

    def run(self) -> int:
        """See `run`."""
        place, count, end = 0, 0, len(self._steps)
        with np.errstate(all="ignore"):
            while True:
                if self._waiting:
                    place = self._meet(place)
                if place >= end:
                    raise GpuError("the program ends without ret")
                try:
                    following = self._steps[place]()
                except _SomeOnlyError as error:
                    if self.now is None or not self._waiting.keys() - self._stopped:
                        raise GpuError(str(error)) from None
                    self._wait(place, self.now)
                    self._stopped.add(place)
                    place, self.now = end, None
                    continue
                count += 1
                place = place + 1 if following is None else following
                if place < 0:
                    if not self._waiting:
                        return count
                    place, self.now = end, None

    def _meet(self, place: int) -> int:
        """The place where to go on: the least where threads wait for nothing, with all that are there."""
        free = self._waiting.keys() - self._stopped
        if self.now is None and not free:
            raise GpuError(f"not all threads come to {self.program.instructions[min(self._stopped)].text}")
        if self.now is None or (free and min(free) < place):
            if self.now is not None:
                self._wait(place, self.now)
            place = min(free)
            self.now = self._waiting.pop(place)
        elif place in self._waiting:
            self.now = self.now | self._waiting.pop(place)
            self._stopped.discard(place)
        if not self._waiting and (self.now | ~self.alive).all():
            self.now = None
        return place

    def _wait(self, place: int, which: NDArray[np.bool_]) -> None:
        self._waiting[place] = which | self._waiting.get(place, np.zeros_like(which))

    # --- operands

    def read(self, operand: Operand, bits: int) -> Array:
        """A register's, name's or number's bits, uint [threads]; a predicate as bool."""
        if isinstance(operand, str):
            if operand in self.special:
                return self.special[operand]
            if operand == "global_smem":
                return self._constant(Shared.BASE, bits)
            found = self.registers.get(operand)
            if found is None:
                kept = unsigned(operand)
                found = np.full(self.count, _POISON & (2 ** (np.dtype(kept).itemsize * 8) - 1), np.uint64).astype(kept)
                self.registers[operand] = found
            return found
        assert isinstance(operand, int)
        return self._constant(operand, bits)

    def _constant(self, value: int, bits: int) -> Array:
        found = self._constants.get((value, bits))
        if found is None:
            kept = np.dtype(np.bool_) if bits == 1 else np.dtype(BITS[bits // 8])
            found = np.full(self.count, value != 0 if bits == 1 else value % 2**bits, kept)
            self._constants[value, bits] = found
        return found

    def typed(self, operand: Operand, type_: str) -> Array:
        """An operand as values of a PTX type."""
        if type_ == "pred":
            return self.read(operand, 1)
        if type_ in ("bf16", "tf32"):
            return bf16(self.read(operand, 16)) if type_ == "bf16" else self.read(operand, 32).view(np.float32)
        dtype = dtype_of(type_)
        bits = dtype.itemsize * 8 * (2 if type_.endswith("x2") else 1)
        found = self.read(operand, bits)
        if found.dtype.itemsize * 8 != bits:
            raise ValueError(f"{operand} doesn't hold {type_}")
        return found.view(dtype)

    def write(self, target: Operand, value: Array, mask: NDArray[np.bool_] | None) -> None:
        """value: any dtype of the register's width, or narrower integers, which are extended."""
        assert isinstance(target, str)
        if target == "_":
            return
        kept = unsigned(target)
        if value.dtype != kept:
            value = value.view(kept) if value.nbytes == self.count * np.dtype(kept).itemsize else value.astype(kept)
        self.registers[target] = value if mask is None else np.where(mask, value, self.read(target, 0))

    def addresses(self, operand: Operand, shared: bool) -> Array:
        assert isinstance(operand, Address)
        base = self.read(operand.base, 32 if shared else 64)
        return base + base.dtype.type(operand.offset % 2 ** (base.dtype.itemsize * 8)) if operand.offset else base

    def tell(self, instruction: Instruction, shared: bool, who: Threads, addresses: Array, nbytes: int) -> None:
        """The observer, where there is one."""
        if self.observer is not None:
            self.observer(instruction, shared, who, addresses, nbytes)

    # --- threads

    def active(self, instruction: Instruction) -> NDArray[np.bool_] | None:
        """Which threads an instruction is for; None: all that run."""
        mask = self.now if self.now is not None else None if self.alive.all() else self.alive
        if instruction.predicate is not None:
            found = self.read(instruction.predicate, 1)
            found = ~found if instruction.unless else found
            mask = found if mask is None else mask & found
        return mask

    def whole(self, mask: NDArray[np.bool_] | None, size: int, text: str) -> NDArray[np.bool_] | None:
        """Checks that warps (size 32) or blocks run whole or not at all; threads that have ended count as running."""
        if mask is not None:
            running = (mask | ~self.alive).reshape(-1, size)
            some = mask.reshape(-1, size).any(1)
            if not (running.all(1) | ~some).all():
                raise _SomeOnlyError(f"not all threads come to {text}")
        return mask

    def those(self, mask: NDArray[np.bool_] | None) -> Threads:
        return self.who if mask is None else self.who.some(mask)

    # --- instructions

    def _step(self, instruction: Instruction) -> Step:
        first = instruction.parts[0]
        if first in _NOTHING:
            return lambda: None
        if first in ("bra", "ret"):
            return self._bra(instruction) if first == "bra" else self._ret(instruction)
        for family in (computing, moving, matrices, tensor_memory):
            if first in family.INSTRUCTIONS:
                made: Step = family.INSTRUCTIONS[first](self, instruction)
                return made
        raise unknown(instruction)

    def scatter(self, targets: Sequence[Operand], found: Sequence[Array], mask: NDArray[np.bool_] | None) -> None:
        """Values of the threads of a mask alone, into registers."""
        for target, value in zip(targets, found, strict=True):
            if mask is not None:
                whole = np.zeros(self.count, value.dtype)
                whole[mask] = value
                value = whole
            self.write(target, value, mask)

    def finish(self, text: str) -> None:
        """Products were waited for: until now they read shared memory."""
        for who, addresses in self.unfinished:
            self.shared.load(who, addresses, 2, 1, text)
        self.unfinished.clear()

    @cached_property
    def tensor_memory(self) -> Array:
        """uint32 [blocks, lanes, columns], of 10.0."""
        return np.full(
            (self.count // self.program.threads, tensor_memory.LANES, tensor_memory.COLUMNS),
            _POISON & 0xFFFFFFFF,
            np.uint32,
        )

    def commit(self, mask: NDArray[np.bool_] | None) -> None:
        self.groups += 1 if mask is None else mask

    def end_copies(self, left: int, mask: NDArray[np.bool_] | None) -> None:
        """cp.async.wait_group: all but the last `left` groups of a thread are there; -1: also what is in no group yet."""
        remaining = []
        for threads, groups, to, values in self.copies:
            over = groups < self.groups[threads] - left
            over &= True if mask is None else mask[threads]
            if over.any():
                whose = threads[over]
                self.shared.end_copy(Threads(self.who.block[whose], self.who.thread[whose]), to[over], values[over])
            if not over.all():
                remaining.append((threads[~over], groups[~over], to[~over], values[~over]))
        self.copies = remaining

    def _bra(self, instruction: Instruction) -> Step:
        (label,) = instruction.operands
        assert isinstance(label, str)
        place = self.program.labels[label]

        def go() -> int | None:
            running = self.now if self.now is not None else self.alive
            taken = self.active(instruction)
            if taken is None or bool(taken[running].all()):
                return place
            taken = taken & running
            if not taken.any():
                return None
            self.now = running & ~taken
            self._wait(place, taken)
            return None

        return go

    def _ret(self, instruction: Instruction) -> Step:
        def end() -> int | None:
            mask = self.active(instruction)
            running = self.now if self.now is not None else self.alive
            ended = running if mask is None else mask & running
            self.alive = self.alive & ~ended
            left = running & ~ended
            if left.any():
                self.now = left
                return None
            return -1

        return end
