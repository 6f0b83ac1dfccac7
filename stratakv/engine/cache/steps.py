"""What the layers of one cache have in common: their steps, and where a step ends."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stratakv.errors import UserError
from stratakv.kernels.status import Status
from stratakv.kernels.step import Step


class SteppingLayer(Protocol):
    """A layer as far as its steps go. number: among those that share them. length: tokens that each sequence has."""

    number: int
    length: int

    def drop_unreachable(self) -> None:
        """Free pages that no later query can see."""


class Steps:
    """Layers to which the same happened have the same page numbers: the step that the first one asks for serves them all.

    status: what the layers couldn't store, by their `number`. transformers says nowhere that a forward call is over: a step ends
    when the last layer has stored its part, and, where a model leaves that one out, before an earlier one begins another.
    """

    def __init__(self) -> None:
        self.status = Status()
        self._of: dict[tuple[int, int, int, int | None], Step] = {}
        self._stored: list[tuple[SteppingLayer, int]] = []  # of the step under way, and how many tokens

    def even(
        self, tables: NDArray[np.int64], length: int, tokens: int, *, window: int | None, dropped: int
    ) -> tuple[Step, NDArray[np.int64]]:
        """As Step.even; and the tables that it holds, equal to those given: a layer that gives these next time is known
        at once."""
        key = length, tokens, dropped, window
        step = self._of.get(key)
        if step is not None and step.rectangle is not None:
            known = step.rectangle.tables
            if known is tables or np.array_equal(known, tables):
                return step, known
        if step is None and len(self._of) >= 8:  # of steps before: a cache has one a kind of layer
            self._of.clear()
        self._of[key] = step = Step.even(tables, length, tokens, window=window, dropped=dropped)
        return step, tables

    def begin(self, layer: SteppingLayer) -> None:
        """A layer is about to store something."""
        if self._stored and layer.number <= self._stored[-1][0].number:
            self.end()

    def stored(self, layer: SteppingLayer, tokens: int) -> None:
        """A layer's part of the step has been written."""
        self._stored.append((layer, tokens))
        if layer.number == self.status.last:
            self.end()

    def end(self) -> None:
        """All layers have so many tokens more; or, where one couldn't store its states, none has: UserError."""
        layers, self._stored = self._stored, []
        try:
            self.status.check()
        except UserError:
            for layer, tokens in layers:
                layer.length -= tokens
            raise
        for layer, _ in layers:
            layer.drop_unreachable()

    def forget(self) -> None:
        """Of the step under way nothing counts any more."""
        self._stored = []
        self.status.clear()
