"""Cache layers that a compiled step may write to and read from without `update`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch

from stratakv.kernels.kernel import Kernel
from stratakv.kernels.step import Step
from stratakv.pages.pool import Pool


class Placed(NamedTuple):
    """One layer's part of a step: where its tokens go, what its queries see, what reads and writes the pages, and where
    it says what it couldn't store."""

    pool: Pool
    step: Step
    kernel: Kernel
    status: torch.Tensor


class PlacingLayer(ABC):
    """ragged: a step's tokens may belong to many sequences, in one row of a batch, whatever the mask says."""

    ragged = False

    @abstractmethod
    def place(self, batch: int, tokens: int) -> Placed | None:
        """Make room for `tokens` more of each of `batch` sequences; None where only `update` will do."""

    @abstractmethod
    def stored(self, tokens: int) -> None:
        """They are there, or the status says why not."""
