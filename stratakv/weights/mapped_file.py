"""A model file mapped into memory: pages come from the disk when they are touched and go again when memory is short."""

from __future__ import annotations

import mmap
import os
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from stratakv.errors import UserError
from stratakv.kernels.native import native


class MappedFile:
    """A file that stays mapped, unchanged, as long as this object lives.

    address: of its first byte. A file that was removed stays readable; one that was written to or cut is found out by
    `check`, and a read past a cut file's end gives zeros instead of ending the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file = path.open("rb")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} can't be mapped into memory: {error}") from error
        self._file = file
        self._stat = os.fstat(file.fileno())
        self.size = self._stat.st_size
        # the view keeps the mapping alive as long as anything points into it
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self.address = int(self._bytes.ctypes.data)
        self._said_removed = False
        self._module: Any = native()
        if self._module is not None:
            self._module.guard_mapping(self.address, self.size)
            weakref.finalize(self, self._module.forget_mapping, self.address)

    def read(self, offset: int, count: int) -> bytes:
        """Some of its bytes."""
        return self._bytes[offset : offset + count].tobytes()

    def check(self) -> None:
        """UserError when the file is no longer what was mapped: call it before and after each use."""
        try:
            now = os.fstat(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"{self.path} can't be read any more ({error.strerror or error}): load the model again"
            ) from error
        if now.st_size != self.size:
            raise UserError(
                f"{self.path} was cut or rewritten while it was in use: it had {self.size:,} bytes, now {now.st_size:,}; "
                "restore the file and load the model again"
            )
        if now.st_mtime_ns != self._stat.st_mtime_ns:
            raise UserError(
                f"{self.path} was written to while it was in use: its weights can't be trusted; load the model again"
            )
        if self._module is not None and self._module.mapping_failed(self.address):
            raise UserError(f"{self.path} could not be read while it was in use: load the model again")
        if now.st_nlink == 0 and not self._said_removed:
            self._said_removed = True
            warnings.warn(
                f"{self.path} was removed; this process goes on with its weights, the next one won't find them",
                RuntimeWarning,
                stacklevel=3,
            )
