"""What a launch moves: sectors of memory, and cycles of shared memory with and without conflicts between its banks."""

from __future__ import annotations

import numpy as np

from ptx.arithmetic import Array
from ptx.memory import WARP, Threads
from ptx.program import Instruction

SECTOR, BANKS = 32, 32


class Traffic:
    """An observer (machine.run). wanted: bytes of memory that accesses name, each once for a warp's access. sectors: bytes of the
    32-byte sectors that they touch. cycles: of shared memory; ideal: the same if its banks were never in each other's way."""

    def __init__(self) -> None:
        self.wanted = self.sectors = self.cycles = self.ideal = 0

    def __call__(self, instruction: Instruction, shared: bool, who: Threads, addresses: Array, nbytes: int) -> None:
        """See machine.Observer."""
        warp, at = (who.block << 16) + who.thread // WARP, addresses.astype(np.int64)
        if shared:
            for each in np.unique(warp):
                self._shared(at[warp == each], nbytes)
            return
        named = np.unique(np.stack([warp, at], 1), axis=0)
        self.wanted += len(named) * nbytes
        self.sectors += len(np.unique(np.stack([named[:, 0], named[:, 1] // SECTOR], 1), axis=0)) * max(SECTOR, nbytes)

    def _shared(self, at: Array, nbytes: int) -> None:
        """Accesses of 8 and 16 bytes go by halves and quarters of a warp, so that each moves 128 bytes."""
        together = min(WARP, 128 // nbytes)
        for begin in range(0, len(at), together):
            words = np.unique(at[begin : begin + together, None] // 4 + np.arange(max(nbytes // 4, 1)))
            self.cycles += int(np.bincount(words % BANKS).max())
            self.ideal += -(-len(words) // BANKS)
