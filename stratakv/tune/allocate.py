"""One (K type, V type) pair a KV layer under a budget of bytes: the multiple-choice knapsack, solved exactly.

One budget is solved by `knapsack`. The whole Pareto front comes from dynamic programming over byte units (Kellerer, Pferschy,
Pisinger 2004, "Knapsack Problems", chapter 11): the unit is the greatest common divisor of all differences of sizes, so nothing
is rounded, and one table holds every budget. Corrections for pairs of layers are exact too: layers that a correction ties
together are solved as one, whose options are the best combination of each size. Knows no model: numbers in, choices out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from stratakv.errors import UserError
from stratakv.profile.profile import Pair
from stratakv.tune.knapsack import Floats, Ints, cheapest

MAX_UNITS = 1 << 18
MAX_COMBINATIONS = 1 << 22
_AT_ONCE = 64  # of the front's points


@dataclass(frozen=True)
class Options:
    """What one KV layer may store: pairs[i] takes sizes[i] bytes and does costs[i] of damage (KLD in nats). A pair may be there
    more than once, as with spans and without."""

    pairs: tuple[Pair, ...]
    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UserError("a layer is left without any pair of types: allow more types, or a lower floor")
        if not len(self.pairs) == len(self.sizes) == len(self.costs) or not all(map(math.isfinite, self.costs)):
            raise ValueError("options need one size and one finite cost a pair")


@dataclass(frozen=True)
class Correction:
    """What two layers (ordinals, in order) cost beside the sum of both: nats by (pair of the first, pair of the second)."""

    layers: tuple[int, int]
    extra: Mapping[tuple[Pair, Pair], float]


@dataclass(frozen=True)
class Allocation:
    """A choice: pairs by KV ordinal, their bytes, their predicted damage. options: which of each layer's. certificate: what is
    known about its optimality."""

    pairs: tuple[Pair, ...]
    size: int
    cost: float
    options: tuple[int, ...] = ()
    certificate: Mapping[str, Any] = field(default_factory=dict)


class Table:
    """The knapsack of a model's layers, for one budget or for all.

    layers: the options by KV ordinal. corrections: see `Correction`; layers tied together may have at most MAX_COMBINATIONS
    combinations (three layers of 160 pairs), ValueError otherwise. unit: bytes, of the front; exact as long as that has at most
    MAX_UNITS units, beyond that sizes are rounded up to larger units there.
    """

    def __init__(self, layers: Sequence[Options], corrections: Sequence[Correction] = ()) -> None:
        self.layers = tuple(layers)
        self._items = [_merged(self.layers, group, corrections) for group in _groups(len(layers), corrections)]
        self.base = sum(int(item.sizes.min()) for item in self._items)
        extra = [item.sizes - item.sizes.min() for item in self._items]
        exact = reduce(math.gcd, (int(size) for each in extra for size in each), 0) or 1
        span = sum(int(each.max()) for each in extra)
        self.unit = exact * max(1, -(-span // (exact * MAX_UNITS)))
        self.exact = self.unit == exact
        self._units = [-(-each // self.unit) for each in extra]

    @cached_property
    def _best(self) -> list[Floats]:
        """best[i][u]: the least damage of the first i items in exactly u units, infinite where no choice takes that."""
        best = [np.zeros(1)]
        for item, units in zip(self._items, self._units, strict=True):
            grown = np.full(len(best[-1]) + int(units.max()), np.inf)
            total = np.empty_like(best[-1])
            for offset, cost in zip(units.tolist(), item.costs.tolist(), strict=True):
                here = grown[offset : offset + len(total)]
                np.minimum(here, np.add(best[-1], cost, out=total), out=here)
            best.append(grown)
        return best

    def solve(self, budget: int) -> Allocation:
        """The least damage in at most `budget` bytes; of equal ones the smallest. UserError where nothing fits."""
        if budget < self.base:
            raise UserError(
                f"a budget of {budget:,} bytes is below the {self.base:,} that the smallest allowed types take: "
                "give more bytes, or allow smaller types"
            )
        chosen, bound = cheapest(self._items, budget)
        options = np.zeros(len(self.layers), dtype=np.int64)
        for item, option in zip(self._items, chosen, strict=True):
            options[list(item.ordinals)] = item.choices[option]
        certificate = {
            "method": "undominated partial choices within a Lagrangian gap",
            "optimal": True,
            "gap": 0.0,
            "lower_bound": bound,
            "lower_bound_by": "Lagrangian relaxation",
        }
        size = sum(int(item.sizes[option]) for item, option in zip(self._items, chosen, strict=True))
        cost = sum(float(item.costs[option]) for item, option in zip(self._items, chosen, strict=True))
        return self._allocation(options, size, cost, certificate)

    def front(self, most: int | None = None) -> list[Allocation]:
        """All budgets: each allocation does less damage than any smaller one, from the smallest to the least damage.

        most: so many of them, evenly thinned.
        """
        units = self._front_units
        if most is not None and len(units) > most:
            units = units[np.unique(np.linspace(0, len(units) - 1, most).round().astype(int))]
        return self._at(units)

    def beyond(self, budget: int) -> Allocation | None:
        """The first of the front that takes more than the budget; None where none does."""
        units = self._front_units
        units = units[self.base + self.unit * units > budget]
        for first in range(0, len(units), _AT_ONCE):
            larger = [each for each in self._at(units[first : first + _AT_ONCE]) if each.size > budget]
            if larger:
                return larger[0]
        return None

    @cached_property
    def _front_units(self) -> Ints:
        best = self._best[-1]
        return np.flatnonzero(best < np.minimum.accumulate(np.concatenate(([np.inf], best[:-1]))))

    def _allocation(
        self, options: Ints, size: int, cost: float, certificate: Mapping[str, Any] | None = None
    ) -> Allocation:
        pairs = tuple(layer.pairs[i] for layer, i in zip(self.layers, options, strict=True))
        return Allocation(pairs, size, cost, tuple(map(int, options)), certificate or {})

    def _at(self, units: Ints) -> list[Allocation]:
        """The choices that lead to exactly these units, found backwards: the option whose sum is the table's own number."""
        left = units.copy()
        choices = np.zeros((len(left), len(self.layers)), dtype=np.int64)
        size, cost = np.zeros(len(left), dtype=np.int64), np.zeros(len(left))
        steps = zip(self._items, self._units, self._best[:-1], self._best[1:], strict=True)
        for item, offsets, before, after in reversed(list(steps)):
            start = left[:, None] - offsets
            inside = (start >= 0) & (start < len(before))
            sums = np.where(inside, before[np.where(inside, start, 0)] + item.costs, np.inf)
            option = np.argmax(sums == after[left][:, None], axis=1)
            left -= offsets[option]
            size += item.sizes[option]
            cost += item.costs[option]
            choices[:, item.ordinals] = item.choices[option]
        return [self._allocation(row, int(s), float(c)) for row, s, c in zip(choices, size, cost, strict=True)]


@dataclass(frozen=True)
class _Item:
    """Layers that are chosen together, dominated options left out. choices[i]: an option of each of the layers."""

    ordinals: tuple[int, ...]
    sizes: Ints
    costs: Floats
    choices: npt.NDArray[np.int32]


def _groups(layers: int, corrections: Sequence[Correction]) -> list[tuple[int, ...]]:
    """Layers tied together by corrections, directly or through others."""
    group = list(range(layers))
    for first, second in (correction.layers for correction in corrections):
        old, new = group[second], group[first]
        group = [new if each == old else each for each in group]
    return [tuple(i for i in range(layers) if group[i] == name) for name in dict.fromkeys(group)]


def _merged(layers: Sequence[Options], ordinals: tuple[int, ...], corrections: Sequence[Correction]) -> _Item:
    """All combinations of the layers, of which for each size only the best can be part of an optimum."""
    shape = tuple(len(layers[ordinal].pairs) for ordinal in ordinals)
    if math.prod(shape) > MAX_COMBINATIONS:
        raise ValueError(
            f"corrections tie layers {ordinals} together, {math.prod(shape):,} combinations: leave some of them out"
        )
    sizes, costs = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    for axis, ordinal in enumerate(ordinals):
        along = [1] * len(shape)
        along[axis] = -1
        sizes += np.asarray(layers[ordinal].sizes, dtype=np.int64).reshape(along)
        costs += np.asarray(layers[ordinal].costs).reshape(along)
    for correction in corrections:
        if correction.layers[0] in ordinals:
            first, second = (layers[ordinal].pairs for ordinal in correction.layers)
            extra = np.array([[correction.extra.get((a, b), 0.0) for b in second] for a in first])
            axes = [ordinals.index(ordinal) for ordinal in correction.layers]
            full = np.expand_dims(extra, tuple(i for i in range(len(shape)) if i not in axes))
            costs += full if axes[0] < axes[1] else np.swapaxes(full, *axes)
    flat_sizes, flat_costs = sizes.ravel(), costs.ravel()
    order = np.lexsort((flat_costs, flat_sizes))
    before = np.minimum.accumulate(np.concatenate(([np.inf], flat_costs[order][:-1])))
    kept = order[flat_costs[order] < before]
    choices = np.stack(np.unravel_index(kept, shape), axis=-1).astype(np.int32)
    return _Item(ordinals, flat_sizes[kept], flat_costs[kept], choices)
