"""Cache layers that a compiled step may write to and read from without `update`; and attention over what they placed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch

from stratakv.kernels.kernel import Kernel, Options, Part, attend_apart
from stratakv.kernels.spans import Mixture, Seen
from stratakv.kernels.step import Step
from stratakv.pages.pool import Pool


class Sealed(NamedTuple):
    """What queries see of a layer's sealed pages, what reads and writes these, and where it says what it couldn't seal.

    filled: what has to be sealed once the step's tokens are stored, before its queries attend: numbers of written pages and
    of the sealed ones that they become.
    """

    pool: Pool
    step: Step
    kernel: Kernel
    status: torch.Tensor
    filled: Sequence[tuple[int, int]] = ()


class Placed(NamedTuple):
    """One layer's part of a step: where its tokens go, what its queries see, what reads and writes the pages, and where
    it says what it couldn't store.

    sealed: with spans, what queries see beside the fine pages, if anything. mixture: with spans, where all sequences are equally
    long.
    """

    pool: Pool
    step: Step
    kernel: Kernel
    status: torch.Tensor
    sealed: Sealed | None = None
    mixture: Mixture | None = None

    @property
    def shape(self) -> tuple[int, int] | None:
        """Sequences, and tokens of each that there are to be seen; None where sequences are of lengths of their own."""
        if self.mixture is not None:
            return len(self.mixture), self.mixture.length - self.mixture.start
        return None if self.step.rectangle is None else (len(self.step), self.step.rectangle.tokens)

    def causal(self) -> tuple[Seen, ...]:
        """Each query sees the tokens up to its own."""
        return (Seen(None, self.step, None if self.sealed is None else self.sealed.step),)

    def under(self, mask: torch.Tensor) -> tuple[Seen, ...]:
        """Queries of equally long sequences see what a mask says."""
        return (Seen(None, self.step.under(mask), None),) if self.mixture is None else self.mixture.under(mask)

    def seeing_all(self) -> tuple[Seen, ...]:
        """Queries of equally long sequences see all tokens, later ones too."""
        return (Seen(None, self.step.seeing_all(), None),) if self.mixture is None else self.mixture.seeing_all()

    def attend(
        self, query: torch.Tensor, seen: tuple[Seen, ...], options: Options, kernel: Kernel | None = None
    ) -> torch.Tensor:
        """The output of attention, as Kernel.attend gives it. kernel: instead of the layer's own."""
        if seen[0].rows is None:
            return self._attend(query, seen[0], options, kernel)
        parts = []
        for part in seen:
            rows = torch.from_numpy(part.rows).to(query.device)
            parts.append((rows, self._attend(query[rows], part, options, kernel)))
        out = torch.empty(*query.shape[:2], self.pool.layout.v_dim, dtype=query.dtype, device=query.device)
        return out.index_copy(0, torch.cat([rows for rows, _ in parts]), torch.cat([found for _, found in parts]))

    def _attend(self, query: torch.Tensor, seen: Seen, options: Options, kernel: Kernel | None) -> torch.Tensor:
        mine = kernel or self.kernel
        if seen.sealed is None:
            return mine.attend(query, self.pool, seen.fine, options).out
        assert self.sealed is not None
        other = kernel or self.sealed.kernel
        written, sealed = Part(self.pool, seen.fine), Part(self.sealed.pool, seen.sealed)
        if other == mine:
            return mine.attend_both(query, written, sealed, options)
        return attend_apart(query, ((mine, written), (other, sealed)), options).out


class PlacingLayer(ABC):
    """ragged: a step's tokens may belong to many sequences, in one row of a batch, whatever the mask says."""

    ragged = False

    @abstractmethod
    def place(self, batch: int, tokens: int) -> Placed | None:
        """Make room for `tokens` more of each of `batch` sequences; None where only `update` will do. Nothing is written."""

    @abstractmethod
    def stored(self, tokens: int) -> None:
        """They are there, and what they filled is sealed, or the statuses say why not."""
