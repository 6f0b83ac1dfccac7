"""Assignments by their true KLD on the packed path: designed ones that correct the predictions, then the best candidates.

All candidates of a comparison see the same contexts. Successive halving (Jamieson and Talwalkar 2016) spends most of the
passes on the promising half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratakv.measure.divergence import Floats
from stratakv.tune.allocate import Allocation
from stratakv.tune.damage import DamageModel, Measured, Terms, cross_validated, fitted
from stratakv.tune.effort import Effort
from stratakv.tune.measurer import Measurer, Pairs
from stratakv.tune.problem import Problem

_SIGMAS = (0.7, 1.4, 2.8)  # of the lognormal factors that make designed assignments; the next where one makes too few
_SIGNIFICANT = 2.0  # standard errors by which a neighbour has to be better


@dataclass(frozen=True)
class Found:
    """The chosen assignment, its KLD on the contexts where candidates were compared, the model, and what its solution is."""

    pairs: Pairs
    kld: float
    model: DamageModel
    allocation: Allocation


def designed(problem: Problem, terms: Terms, count: int, seed: int = 1) -> list[Pairs]:
    """Different assignments within the budget that would be right if each cell mattered more or less than predicted."""
    rng = np.random.default_rng(seed)
    layers, types = len(terms.operating), terms.types
    found = dict[Pairs, None]()
    for sigma in np.repeat(_SIGMAS, 4 * count):
        if len(found) == count:
            break
        damage = terms.damage * np.exp(sigma * rng.standard_normal((layers, 2, 1)))
        table = [
            {(k, v): float(damage[i, 0, a] + damage[i, 1, b]) for a, k in enumerate(types) for b, v in enumerate(types)}
            for i in range(layers)
        ]
        found[problem.solve(table).pairs] = None
    found.pop(terms.operating, None)
    return list(found)


def measured_rows(measurer: Measurer, terms: Terms, profiles: Sequence[Pairs]) -> list[Measured]:
    """Changes against the operating point, each profile in one batch; the profiles take turns with the batches."""
    there = range(max(1, min(len(profiles), len(measurer.ids) // measurer.batch)))
    base = measurer.klds([terms.operating], there, terms.operating).reshape(len(there), -1).sum(axis=1)
    rows = []
    for n, pairs in enumerate(profiles):
        batch = there[n % len(there)]
        (kld,) = measurer.klds([pairs], [batch], quiet=True)
        rows.append(Measured(pairs, float(kld.sum() / base[batch] - 1), len(kld)))
        measurer.report("design", n + 1, len(profiles))
    return rows


def fidelity(
    problem: Problem, terms: Terms, level: float, rows: Sequence[Measured], of: Sequence[int]
) -> dict[str, Any]:
    """Predicted against true KLD of the designed assignments (rows `of`), each predicted by a fit that didn't see it.

    r2: of the predictions as they are (not of a fitted line). bias: mean prediction over mean measurement, minus 1.
    gradients: the same two of the gradients alone. KLD is given as the operating point's times the change.
    """
    true = np.array([rows[n].change for n in of])
    predicted = cross_validated(terms, level, rows, of)
    alone = np.array([terms.row(rows[n].pairs)[0] / level for n in of]) if level > 0 else np.zeros(len(of))
    points = [
        {"predicted": level * (1 + p), "measured": level * (1 + m), "bytes_per_token": problem.size(rows[n].pairs)}
        for n, p, m in zip(of, predicted.tolist(), true.tolist(), strict=True)
    ]
    return {"points": points, **_fit(predicted, true), "gradients": _fit(alone, true)}


def halving(
    measurer: Measurer, candidates: Sequence[Pairs], batches: Sequence[int], around: Pairs | None
) -> tuple[list[Pairs], Floats]:
    """The survivors, best first, and their KLD in all batches' contexts. The first candidate always survives."""
    alive = list(dict.fromkeys(candidates))
    incumbent, used = alive[0], 1
    while True:
        used = min(used, len(batches))
        klds = measurer.klds(alive, batches[:used], around)
        order = np.argsort(klds.mean(axis=1), kind="stable")
        if used == len(batches):
            return [alive[i] for i in order], klds[order]
        keep = [alive[i] for i in order[: max(2, -(-len(order) // 2))]]
        alive = keep if incumbent in keep else [*keep, incumbent]
        used *= 2


def search(
    measurer: Measurer,
    problem: Problem,
    terms: Terms,
    level: float,
    rows: list[Measured],
    effort: Effort,
    seed: int = 0,
) -> Found:
    """From the rows to the assignment: what the corrected predictions say is best. Draws of what they leave possible, and
    then neighbours, replace it only where their true KLD is lower beyond the noise of these contexts: the predictions rest
    on more of them. The operating point does where it is lower at all."""
    rng = np.random.default_rng(seed)
    batches = range(effort.search_batches)
    # without rows the gradients' own level: against a measured one, coarse types' bias would make fine types look perfect
    model = fitted(terms, level if rows else terms.level, rows)
    solution = problem.solve(model.damages())
    if not effort.search_batches:
        return Found(solution.pairs, solution.cost, model, solution)
    drawn = [problem.solve(model.drawn(rng)).pairs for _ in range(effort.drawn)]
    contexts = len(batches) * measurer.batch
    with measurer.stage("candidates", contexts * (2 + len(drawn))):
        base = measurer.klds([terms.operating], batches, terms.operating)[0]
        best, kld = _best_of(measurer, [solution.pairs, *drawn], batches, terms.operating)
    for _ in range(effort.swaps):
        near = problem.neighbours(best, model.damages(), effort.neighbours)
        with measurer.stage("swaps", contexts * (1 + len(near))):
            better, lower = _best_of(measurer, [best, *near], batches, best)
        if better == best:
            break
        best, kld = better, lower
    if base.mean() <= kld.mean() and problem.allows(terms.operating, model.damages()):
        best, kld = terms.operating, base
    mean = float(kld.mean())
    return Found(best, mean, model.moved(best, mean) if rows else model, solution)


def _best_of(
    measurer: Measurer, candidates: Sequence[Pairs], batches: Sequence[int], around: Pairs
) -> tuple[Pairs, Floats]:
    """The first candidate, or the survivor of halving that is better beyond the noise; and its KLD by context."""
    ranked, klds = halving(measurer, candidates, batches, around)
    first = ranked.index(candidates[0])
    return (ranked[0], klds[0]) if _better(klds[0], klds[first]) else (ranked[first], klds[first])


def _better(kld: Floats, than: Floats) -> bool:
    difference = kld - than
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.inf
    return bool(difference.mean() < -_SIGNIFICANT * error)


def _fit(predicted: Floats, measured: Floats) -> dict[str, Any]:
    left, total = (
        ((measured - predicted) ** 2).sum(),
        ((measured - measured.mean()) ** 2).sum() if len(measured) else 0.0,
    )
    return {
        "r2": float(1 - left / total) if total > 0 else None,
        "bias": float((1 + predicted).mean() / (1 + measured).mean() - 1) if len(measured) else None,
    }
