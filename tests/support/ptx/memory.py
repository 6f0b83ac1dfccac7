"""Memory as a GPU has it: an access that is not aligned to its size, or not within something allocated, is an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WARP = 32


class GpuError(Exception):
    """What a card would answer with an error, or with numbers that hang on its timing."""


@dataclass(frozen=True)
class Threads:
    """Some of a launch's threads. block, thread: int64, a thread's number within its block."""

    block: NDArray[np.int64]
    thread: NDArray[np.int64]

    def some(self, which: NDArray[np.bool_]) -> Threads:
        return Threads(self.block[which], self.thread[which])


class Global:
    """The tensors of a launch, at their own addresses."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors if tensor.numel()}
        self._begins = np.array(sorted(storages), dtype=np.uint64)
        self._bytes = [_storage(storages[address]) for address in sorted(storages)]
        if (self._begins % np.uint64(16)).any():
            raise ValueError("a tensor's storage isn't where a GPU would have it: at a multiple of 16 bytes")

    def _at(self, addresses: NDArray[np.uint64], nbytes: int, what: str) -> Iterator[tuple[Any, NDArray[Any], Any]]:
        """(which of the addresses, the bytes they are in, where in these)."""
        if (addresses % np.uint64(nbytes)).any():
            raise GpuError(f"misaligned address: {what}")
        which = np.searchsorted(self._begins, addresses, side="right") - 1
        for each in np.unique(which):
            here = which == each
            at = (addresses[here] - self._begins[each]).astype(np.int64) if each >= 0 else np.zeros(1, dtype=np.int64)
            if each < 0 or (at + nbytes > len(self._bytes[each])).any():
                raise GpuError(f"address outside of all arrays: {what}")
            yield here, self._bytes[each], at

    def load(self, addresses: NDArray[np.uint64], size: int, count: int, what: str) -> list[NDArray[Any]]:
        """count words of size bytes each at every address."""
        found = [np.zeros(len(addresses), f"u{size}") for _ in range(count)]
        for here, array, at in self._at(addresses, size * count, what):
            for each in range(count):
                found[each][here] = _words(array, size)[at // size + each]
        return found

    def store(self, addresses: NDArray[np.uint64], values: Sequence[NDArray[Any]], size: int, what: str) -> None:
        """The same words there; of threads that write to one place any may win, as the last one does here."""
        for here, array, at in self._at(addresses, size * len(values), what):
            for each, value in enumerate(values):
                _words(array, size)[at // size + each] = value[here]

    def largest(self, addresses: NDArray[np.uint64], values: NDArray[np.int32], what: str) -> None:
        """atom.max.s32; what was there isn't told."""
        for here, array, at in self._at(addresses, 4, what):
            np.maximum.at(_words(array, 4).view(np.int32), at // 4, values[here])


def _words(array: NDArray[np.uint8], size: int) -> NDArray[Any]:
    return array[: len(array) // size * size].view(f"u{size}")


def _storage(tensor: torch.Tensor) -> NDArray[np.uint8]:
    flat = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    found: NDArray[np.uint8] = flat.numpy()
    return found


class Shared:
    """Each block's shared memory, and for some blocks who wrote and read each byte since the last barrier.

    A thread that reads what another one wrote, or writes over it, needs a barrier between: bar.sync, or within a warp
    bar.warp.sync. A warp that writes over what another one reads needs a bar.sync. What cp.async copies may not be touched
    before its thread has waited for it.
    """

    BASE = 1024  # a block's first kilobyte is the system's

    def __init__(self, blocks: int, nbytes: int, threads: int, watched: Sequence[int]) -> None:
        self._bytes = np.full((blocks, -(-max(nbytes, 16) // 16) * 16), 0xA5, dtype=np.uint8)
        self._size = nbytes
        self._row = np.full(blocks, -1)
        self._row[list(watched)] = np.arange(len(watched))
        size = len(watched), self._bytes.shape[1]
        self._barriers = np.zeros(blocks, dtype=np.int64)
        self._warp_barriers = np.zeros((blocks, threads // WARP), dtype=np.int64)
        # of a byte: the last thread that wrote it, and how many barriers its block and its warp had then
        self._writer, self._written, self._warp_written = (np.full(size, -1, dtype=np.int64) for _ in range(3))
        # the warps that read it, a bit each, since as many barriers
        self._readers, self._read = np.zeros(size, dtype=np.int64), np.full(size, -1, dtype=np.int64)
        self._copied = np.zeros(size, dtype=np.bool_)

    def _at(self, addresses: NDArray[Any], nbytes: int, what: str) -> NDArray[np.int64]:
        at = addresses.astype(np.int64) - self.BASE
        if (at % nbytes).any():
            raise GpuError(f"misaligned address in shared memory: {what}")
        if ((at < 0) | (at + nbytes > self._size)).any():
            raise GpuError(f"outside of {self._size} bytes of shared memory: {what}")
        return at

    def load(self, who: Threads, addresses: NDArray[Any], size: int, count: int, what: str) -> list[NDArray[Any]]:
        """count words of size bytes each for every thread."""
        at = self._at(addresses, size * count, what)
        rows, places, block, thread = self._watched(who, at, size * count)
        if len(rows):
            self._check_written(rows, places, block, thread, what)
            if (self._writer[rows, places] < 0).any():
                raise GpuError(f"shared memory is read that nobody wrote: {what}")
            stale = self._read[rows, places] < self._barriers[block]
            self._readers[rows, places] = np.where(stale, 0, self._readers[rows, places])
            self._read[rows, places] = self._barriers[block]
            np.bitwise_or.at(self._readers, np.broadcast_arrays(rows, places), 1 << thread // WARP)
        words = self._bytes.view(f"u{size}")
        return [words[who.block, at // size + each] for each in range(count)]

    def store(
        self, who: Threads, addresses: NDArray[Any], values: Sequence[NDArray[Any]], size: int, what: str
    ) -> None:
        """The same words there."""
        at = self._at(addresses, size * len(values), what)
        self._write(who, at, size * len(values), what)
        words = self._bytes.view(f"u{size}")
        for each, value in enumerate(values):
            words[who.block, at // size + each] = value
        if any((words[who.block, at // size + each] != value).any() for each, value in enumerate(values)):
            raise GpuError(f"threads write different values to one place at once: {what}")

    def begin_copy(self, who: Threads, addresses: NDArray[Any], nbytes: int, what: str) -> None:
        """cp.async: what lies there is the copy's until `end_copy`."""
        at = self._at(addresses, nbytes, what)
        self._write(who, at, nbytes, what)
        rows, places, _, _ = self._watched(who, at, nbytes)
        self._copied[rows, places] = True

    def end_copy(self, who: Threads, addresses: NDArray[Any], values: NDArray[np.uint8]) -> None:
        """Its thread has waited for it. values: uint8 [threads, bytes]."""
        nbytes = values.shape[1]
        at = addresses.astype(np.int64) - self.BASE
        rows, places, _, _ = self._watched(who, at, nbytes)
        self._copied[rows, places] = False
        self._write(who, at, nbytes, "cp.async")
        self._bytes[who.block[:, None], at[:, None] + np.arange(nbytes)] = values

    def barrier(self, blocks: NDArray[np.int64]) -> None:
        """bar.sync of whole blocks."""
        self._barriers[blocks] += 1

    def warp_barrier(self, who: Threads) -> None:
        """bar.warp.sync of whole warps."""
        first = who.thread % WARP == 0
        self._warp_barriers[who.block[first], who.thread[first] // WARP] += 1

    def _watched(self, who: Threads, at: NDArray[np.int64], nbytes: int) -> tuple[NDArray[np.int64], ...]:
        """Of the accesses in watched blocks: (rows [n, 1], bytes [n, nbytes], blocks [n, 1], threads [n, 1])."""
        here = self._row[who.block] >= 0
        block = who.block[here][:, None]
        return self._row[block], at[here][:, None] + np.arange(nbytes), block, who.thread[here][:, None]

    def _write(self, who: Threads, at: NDArray[np.int64], nbytes: int, what: str) -> None:
        rows, places, block, thread = self._watched(who, at, nbytes)
        if not len(rows):
            return
        self._check_written(rows, places, block, thread, what)
        others = self._readers[rows, places] & ~(1 << thread // WARP)
        if ((others != 0) & (self._read[rows, places] == self._barriers[block])).any():
            raise GpuError(f"a place is written that another warp may yet read: {what}")
        self._writer[rows, places], self._written[rows, places] = thread, self._barriers[block]
        self._warp_written[rows, places] = self._warp_barriers[block, thread // WARP]

    def _check_written(
        self,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        block: NDArray[np.int64],
        thread: NDArray[np.int64],
        what: str,
    ) -> None:
        """That what was written there is known to be."""
        if self._copied[rows, places].any():
            raise GpuError(f"a copy into shared memory wasn't waited for: {what}")
        writer, warp = self._writer[rows, places], thread // WARP
        over = self._written[rows, places] < self._barriers[block]
        over |= (writer // WARP == warp) & (self._warp_written[rows, places] < self._warp_barriers[block, warp])
        if not (over | (writer == thread) | (writer < 0)).all():
            raise GpuError(f"another thread may not yet have written there: {what}")
