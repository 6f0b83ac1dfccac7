"""The multiple-choice knapsack for one budget, exact for any sizes: undominated partial choices within a Lagrangian gap.

With a price a byte every option has a reduced cost, and every choice within the budget costs the dual bound, plus its options'
reduced costs, plus the price of what it leaves free. So a choice within some gap of the bound has no more reduced cost than
that gap, and leaves no more free: few partial choices do. The gap grows until the best choice found lies within it. (Kellerer,
Pferschy, Pisinger 2004, "Knapsack Problems", chapters 5 and 11.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FIRST_GAP, _GROWTH = 1 / 64, 4.0  # of the gap that rounding the dual's solution leaves
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Dual:
    """bound: no choice within the budget costs less. price: of a byte, that it is found at; fits: costs of a choice that fits."""

    bound: float
    price: float
    fits: float


def dual(items: Sequence[Any], budget: int) -> Dual:
    """The Lagrangian dual by bisection on the price.

    items: anything with sizes and costs, the smallest of which fit the budget. Any price gives a valid bound, so it holds however
    the bisection ends.
    """
    columns = [(np.asarray(item.sizes, dtype=np.float64), np.asarray(item.costs)) for item in items]

    def at(price: float) -> tuple[float, float, float]:
        chosen = [(sizes, costs, int(np.argmin(costs + price * sizes))) for sizes, costs in columns]
        size = sum(float(sizes[i]) for sizes, _, i in chosen)
        cost = sum(float(costs[i]) for _, costs, i in chosen)
        return cost + price * (size - budget), size, cost

    low, high = 0.0, max(float(np.ptp(costs)) for _, costs in columns) + 1.0
    bound, size, cost = at(low)
    if size <= budget:
        return Dual(bound, 0.0, cost)
    best, fits = low, np.inf
    for _ in range(100):
        price = (low + high) / 2
        value, size, cost = at(price)
        if value > bound:
            bound, best = value, price
        if size <= budget:
            fits = min(fits, cost)
        low, high = (price, high) if size > budget else (low, price)
    if not np.isfinite(fits):
        fits = sum(float(costs[np.argmin(sizes)]) for sizes, costs in columns)
    # costs that differ by less than their sum's last digit raise no bound: at price 0 they still don't fit
    return Dual(bound, best or high, fits)


def cheapest(items: Sequence[Any], budget: int) -> tuple[list[int], float]:
    """(an option of each item, together at the least cost within the budget, of equal ones the smallest; the dual bound).

    items: with sizes (whole numbers) and costs, none of an item's options dominated by another; their smallest fit the budget.
    """
    found = dual(items, budget)
    sizes = [np.asarray(item.sizes, dtype=np.int64) for item in items]
    costs = [np.asarray(item.costs, dtype=np.float64) for item in items]
    if not found.price:
        return [int(np.lexsort((s, c))[0]) for s, c in zip(sizes, costs, strict=True)], found.bound
    scale = sum(float(np.abs(each).max()) for each in costs)
    tolerance = _ROUNDING * scale
    gap = max(found.fits - found.bound, 0.0) * _FIRST_GAP + tolerance
    while True:
        choice = _within(sizes, costs, found.price, budget, gap)
        if choice is not None:
            cost = sum(float(each[i]) for each, i in zip(costs, choice, strict=True))
            if cost - found.bound <= gap:
                return choice, found.bound
            gap = min(_GROWTH * gap, cost - found.bound + tolerance)
        else:
            gap *= _GROWTH


def _within(sizes: Sequence[Ints], costs: Sequence[Floats], price: float, budget: int, gap: float) -> list[int] | None:
    """The cheapest of the choices whose reduced costs, and the price of what they leave free, sum up to at most `gap`; None
    where there is none."""
    reduced = [c + price * s for s, c in zip(sizes, costs, strict=True)]
    reduced = [each - each.min() for each in reduced]
    kept = [np.flatnonzero(each <= gap) for each in reduced]
    least = np.cumsum([0, *(int(s[k].min()) for s, k in zip(reversed(sizes), reversed(kept), strict=True))])[::-1]
    most = np.cumsum([0, *(int(s[k].max()) for s, k in zip(reversed(sizes), reversed(kept), strict=True))])[::-1]
    size, cost, above = np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1)
    steps = []
    for n, there in enumerate(kept):
        grown = (size[:, None] + sizes[n][there]).ravel()
        paid = (cost[:, None] + costs[n][there]).ravel()
        over = (above[:, None] + reduced[n][there]).ravel()
        reaches = price * (budget - grown - most[n + 1]) + over <= gap
        alive = np.flatnonzero((over <= gap) & (grown + least[n + 1] <= budget) & reaches)
        order = alive[
            np.lexsort((alive % len(there), paid[alive], grown[alive]))
        ]  # of equal ones the least for late items
        before = np.minimum.accumulate(np.concatenate(([np.inf], paid[order][:-1])))
        order = order[paid[order] < before]
        if not len(order):
            return None
        size, cost, above = grown[order], paid[order], over[order]
        steps.append((order // len(there), there[order % len(there)]))
    at = int(np.argmin(cost))
    choice = []
    for parents, options in reversed(steps):
        choice.append(int(options[at]))
        at = int(parents[at])
    return choice[::-1]
