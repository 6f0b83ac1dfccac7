"""Train the levels of the trellis types and print them as `stratakv/kvtypes/trellis_levels.py` has them.

python tools/train_trellis_levels.py [--bits 4] [--states 8]
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from math import sqrt
from statistics import NormalDist

import torch
from torch import Tensor

from stratakv.kvtypes.trellis import bins_of
from stratakv.kvtypes.trellis_levels import Levels
from stratakv.kvtypes.viterbi import TRELLISES, Trellis

BLOCK, SEED = 128, 1
FINE = 409_600  # the ratio while levels are trained: rounding to integers of this size costs nothing
VECTORS = {8: 4000, 64: 1500, 256: 600}
ROUNDS = 40


def directions(count: int, block: int, seed: int) -> Tensor:
    """Random unit vectors, float32 [count, block]."""
    x = torch.randn(count, block, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit: Tensor = x / x.norm(dim=-1, keepdim=True)
    return unit.to(torch.float32)


def chosen(y: Tensor, levels: Levels, trellis: Trellis) -> Tensor:
    """The numbers of the levels that encoding chooses, int64 [n, block]."""
    numbers, costs = (torch.tensor(table) for table in levels.table())
    bins = bins_of(y)
    subsets = trellis.subsets(trellis.cheapest(costs[bins])).to(torch.int64)
    return 4 * numbers[bins].gather(-1, subsets[..., None])[..., 0].to(torch.int64) + subsets


def means(y: Tensor, found: Tensor, count: int) -> list[float]:
    """The mean of the coordinates at each positive level and, mirrored, at its negative, in standard deviations."""
    values = y.to(torch.float64).flatten() * sqrt(y.shape[-1])
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, found.flatten(), values)
    number = torch.bincount(found.flatten(), minlength=count)
    total, number = total - total.flip(0), number + number.flip(0)
    return (total / number.clamp_min(1))[count // 2 :].tolist()


def error(y: Tensor, found: Tensor, levels: Levels) -> float:
    """Mean squared error of unit vectors, the decoded ones being as long."""
    decoded = torch.tensor(levels.integers, dtype=torch.float64)[found]
    return float((y - decoded / decoded.norm(dim=-1, keepdim=True)).square().sum(-1).mean())


def trained(y: Tensor, bits: int, trellis: Trellis, rounds: int) -> Levels:
    """Levels of ratio FINE, each the mean of what chooses it."""
    count = 2 ** (bits + 1)
    # a start near where training ends: it is slow on long ways
    start = NormalDist(0, FINE / 75)
    levels = Levels(FINE, tuple(round(start.inv_cdf((count // 2 + i + 0.5) / count)) for i in range(count // 2)))
    for _ in range(rounds):
        levels = moved(levels, means(y, chosen(y, levels, trellis), count))
    return levels


def moved(levels: Levels, to: list[float]) -> Levels:
    """Levels at these places, in standard deviations, rounded to integers that ascend from 1 to 127 (FINE: without end)."""
    half: list[int] = []
    for place in to:
        half.append(max(round(place * levels.ratio / 100), half[-1] + 1 if half else 1))
    if levels.ratio < FINE:
        half = [min(level, 128 - len(half) + i) for i, level in enumerate(half)]
    return replace(levels, half=tuple(half))


def rounded(y: Tensor, fine: Levels, trellis: Trellis) -> Levels:
    """The small integers, and their ratio, that lose least."""
    places = [level * 100 / FINE for level in fine.half]
    fit = int(12700 / places[-1])
    best, least = fine, float("inf")
    for ratio in range(fit * 6 // 10, fit * 13 // 10, max(1, fit // 60)):
        levels = moved(Levels(ratio, ()), places)
        for _ in range(2):  # the others move to where a clipped one leaves them
            found = chosen(y, levels, trellis)
            if (now := error(y, found, levels)) < least:
                best, least = levels, now
            levels = moved(levels, means(y, found, 2 * len(places)))
    return best


def lines(bits: tuple[int, ...], states: tuple[int, ...], rounds: int = ROUNDS) -> Iterator[str]:
    """The table's entry for each, under the error on directions that training didn't see: before and after rounding."""
    for each, number in product(bits, states):
        trellis, count = TRELLISES[number], VECTORS[number]
        y, unseen = directions(count, BLOCK, SEED), directions(count, BLOCK, SEED + 1)
        fine = trained(y, each, trellis, rounds)
        levels = rounded(y[: count // 2], fine, trellis)
        reached = (error(unseen, chosen(unseen, some, trellis), some) for some in (fine, levels))
        yield f"    # {' '.join(f'{e:.6f}' for e in reached)}"
        text = f"({each}, {number}): Levels({levels.ratio}, {levels.half}),"
        yield textwrap.fill(text, 120, initial_indent=" " * 4, subsequent_indent=" " * 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4, 5, 6])
    parser.add_argument("--states", type=int, nargs="*", default=list(TRELLISES))
    args = parser.parse_args()
    for line in lines(tuple(args.bits), tuple(args.states)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
