"""The trellis types' levels: small integers times one scale, trained on random directions, and distances to them.

`tools/train_trellis_levels.py` made the table below (seed and all in it): Viterbi's algorithm chooses a level for each
coordinate of random unit vectors in 128 dimensions, each level moves to the mean of what chose it, and so on; then
integers under the ratio that loses least. In units of one standard deviation, 1 / sqrt(block), they serve every block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from stratakv.kvtypes.viterbi import FARTHEST

# A coordinate is rounded to one of BINS multiples of a standard deviation / BINS_A_DEVIATION before anything else
BINS_A_DEVIATION = 256
BINS = 8 * BINS_A_DEVIATION


@dataclass(frozen=True)
class Levels:
    """half: the positive levels, ascending integers; their negatives are levels too. ratio: of 100 standard deviations."""

    ratio: int
    half: tuple[int, ...]

    @property
    def integers(self) -> tuple[int, ...]:
        """All, ascending. Level n lies in subset n % 4, where it is number n // 4."""
        return (*(-level for level in reversed(self.half)), *self.half)

    def unit(self, block: int) -> float:
        """What 1 stands for in a unit vector of `block` dimensions."""
        return 100 / (self.ratio * sqrt(block))

    @lru_cache(maxsize=64)  # noqa: B019 (a frozen value)
    def table(self) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """For each bin (the coordinate (b - BINS / 2) / BINS_A_DEVIATION) and subset, both [BINS, 4] and read-only: the number of
        the nearest level, the lower one of two; and what choosing it costs beside the nearest level of all.

        Costs are squared distances less the bin's smallest, divided by what makes the largest between the outermost levels
        FARTHEST, rounded down; farther out they are capped at that. In integers: the same on every machine.
        """
        levels = np.array(self.integers, dtype=np.int64).reshape(-1, 4) * (100 * BINS_A_DEVIATION)
        value = (np.arange(BINS, dtype=np.int64) - BINS // 2) * self.ratio
        away = np.abs(value[:, None, None] - levels)
        nearest = away.argmin(1)
        square = away.min(1) ** 2
        square -= square.min(1, keepdims=True)
        grain = square[np.abs(value) <= levels.max()].max() // FARTHEST + 1
        cost = np.minimum(square // grain, FARTHEST)
        found = nearest.astype(np.uint8), cost.astype(np.int32)
        for array in found:
            array.setflags(write=False)
        return found


# (bits, states) -> levels, under the error that the tool measured before and after rounding them
# fmt: off
LEVELS = {
    # 0.085659 0.085656
    (2, 8): Levels(4917, (9, 29, 52, 91)),
    # 0.022813 0.022817
    (3, 8): Levels(4757, (5, 14, 25, 36, 48, 63, 84, 116)),
    # 0.005954 0.005964
    (4, 8): Levels(4248, (2, 6, 11, 15, 20, 25, 30, 35, 41, 47, 54, 62, 72, 84, 100, 125)),
    # 0.001539 0.001553
    (5, 8): Levels(3776, (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 26, 28, 30, 33, 35, 38, 40, 43, 46, 49, 52, 56, 60,
        65, 71, 77, 85, 94, 106, 125)),
    # 0.000404 0.000420
    (6, 8): Levels(3489, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
        27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 41, 42, 43, 45, 46, 48, 49, 51, 53, 54, 56, 58, 60, 63, 65,
        68, 71, 74, 78, 82, 87, 93, 101, 111, 127)),
    # 0.082449 0.082458
    (2, 64): Levels(4997, (9, 29, 53, 93)),
    # 0.021965 0.021963
    (3, 64): Levels(4623, (4, 14, 23, 34, 46, 61, 82, 114)),
    # 0.005734 0.005743
    (4, 64): Levels(4217, (2, 7, 10, 15, 19, 24, 29, 34, 40, 46, 53, 61, 71, 84, 100, 124)),
    # 0.001491 0.001501
    (5, 64): Levels(3715, (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 30, 32, 34, 37, 39, 42, 45, 48, 52, 56,
        60, 65, 70, 76, 83, 92, 104, 122)),
    # 0.000392 0.000408
    (6, 64): Levels(3451, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
        26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 43, 44, 46, 47, 49, 50, 52, 54, 56, 58, 60, 62,
        65, 67, 70, 73, 77, 81, 87, 93, 100, 111, 127)),
    # 0.081273 0.081266
    (2, 256): Levels(6446, (12, 36, 68, 120)),
    # 0.021602 0.021597
    (3, 256): Levels(4230, (4, 12, 21, 30, 41, 55, 74, 103)),
    # 0.005637 0.005653
    (4, 256): Levels(3350, (2, 5, 8, 12, 15, 19, 23, 27, 31, 36, 42, 49, 57, 67, 80, 99)),
    # 0.001441 0.001448
    (5, 256): Levels(3788, (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 28, 30, 33, 35, 38, 40, 43, 46, 49, 53, 57,
        61, 66, 71, 78, 85, 94, 106, 125)),
    # 0.000378 0.000391
    (6, 256): Levels(3439, (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25,
        26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 43, 44, 46, 47, 49, 50, 52, 54, 56, 58, 60, 62,
        65, 67, 70, 73, 77, 81, 87, 93, 100, 111, 127)),
}
# fmt: on
