"""Steps that layers of one cache have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stratakv.kernels.step import Step


class Steps:
    """Layers to which the same happened have the same page numbers: the step that the first one asks for serves them all."""

    def __init__(self) -> None:
        self._of: dict[tuple[int, int, int, int | None], Step] = {}

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
