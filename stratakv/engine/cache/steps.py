"""What the layers of one cache have in common: their steps, and where a step ends."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stratakv.errors import UserError
from stratakv.kernels.spans import Mixture, Pages
from stratakv.kernels.status import Status
from stratakv.kernels.step import Step
from stratakv.profile.spans import Spans


class SteppingLayer(Protocol):
    """A layer as far as its steps go. number: among those that share them."""

    number: int

    def seal_due(self) -> None:
        """A step is over: what of its end may turn out to be impossible, and can be undone."""

    def settle(self) -> None:
        """A step is over and counts: what can't be undone."""

    def undo(self, tokens: int) -> None:
        """The step that brought the last tokens doesn't count."""


class Steps:
    """Layers to which the same happened have the same page numbers: the step that the first one asks for serves them all.

    status: what the layers couldn't store, by their `number`. transformers says nowhere that a forward call is over: a step ends
    when the last layer has stored its part, and, where a model leaves that one out, before an earlier one begins another.
    """

    def __init__(self) -> None:
        self.status = Status()
        self._of: dict[tuple[int, int, int, int | None], Step] = {}
        self._mixtures: dict[tuple[Spans, int, int, int | None], Mixture] = {}
        self._last: Mixture | None = None
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

    def mixture(
        self, spans: Spans, fine: Pages, sealed: Pages, length: int, tokens: int, *, window: int | None
    ) -> Mixture:
        """The same of layers with spans."""
        last = self._last  # a decoding step's time is in these microseconds
        if (
            last is not None
            and (last.fine is fine and last.sealed is sealed and last.spans is spans)
            and (last.length == length and last.tokens == tokens and last.window == window)
        ):
            return last
        self._last = found = self._mixture(spans, fine, sealed, length, tokens, window)
        return found

    def _mixture(
        self, spans: Spans, fine: Pages, sealed: Pages, length: int, tokens: int, window: int | None
    ) -> Mixture:
        key = spans, length, tokens, window
        known = self._mixtures.get(key)
        if known is not None and _same(known.fine, fine) and _same(known.sealed, sealed):
            return known
        if known is None and len(self._mixtures) >= 8:
            self._mixtures.clear()
        self._mixtures[key] = made = Mixture(spans, fine, sealed, length, tokens, window)
        return made

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
        """All layers have so many tokens more; or, where one couldn't store its states or seal a page, none has: UserError."""
        layers, self._stored = self._stored, []
        for layer, _ in layers:
            layer.seal_due()
        try:
            self.status.check()
        except UserError:
            for layer, tokens in layers:
                layer.undo(tokens)
            raise
        for layer, _ in layers:
            layer.settle()

    def forget(self) -> None:
        """Of the step under way nothing counts any more."""
        self._stored = []
        self.status.clear()


def _same(one: Pages, other: Pages) -> bool:
    return one is other or (np.array_equal(one.indices, other.indices) and np.array_equal(one.numbers, other.numbers))
