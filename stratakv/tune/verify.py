"""Candidates by their true KLD on the packed path: solving again where the solution lies, a local search, a check of the model.

All candidates of a comparison see the same contexts. Successive halving (Jamieson and Talwalkar 2016) spends most of the
passes on the promising half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratakv.tune.allocate import Allocation
from stratakv.tune.damage import DamageModel, remeasured, worth_measuring
from stratakv.tune.effort import Effort
from stratakv.tune.measurer import Measurer, Pairs
from stratakv.tune.problem import Problem

_RANDOM_SIGMA = 1.0  # of the lognormal factors that make random assignments


@dataclass(frozen=True)
class Found:
    """The chosen assignment, its KLD on the selection contexts, the model around it, and what the last solve says."""

    pairs: Pairs
    kld: float
    model: DamageModel
    allocation: Allocation


def halving(
    measurer: Measurer, candidates: Sequence[Pairs], batches: Sequence[int], around: Pairs | None
) -> list[tuple[Pairs, float]]:
    """The survivors by mean KLD over all batches, best first. The first candidate, the incumbent, always survives."""
    alive = list(dict.fromkeys(candidates))
    incumbent, used = alive[0], 1
    while True:
        used = min(used, len(batches))
        means = measurer.klds(alive, batches[:used], around).mean(axis=1)
        ranked = [(alive[i], float(means[i])) for i in np.argsort(means, kind="stable")]
        if used == len(batches):
            return ranked
        keep = [pairs for pairs, _ in ranked[: max(2, -(-len(ranked) // 2))]]
        alive = keep if incumbent in keep else [*keep, incumbent]
        used *= 2


def search(measurer: Measurer, problem: Problem, model: DamageModel, effort: Effort, seed: int = 0) -> Found:
    """From the model to the best assignment that true KLD finds: rounds of solve, choose, re-measure; then swaps."""
    rng = np.random.default_rng(seed)
    batches = range(effort.search_batches)
    incumbent = model.operating if problem.size(model.operating) <= problem.budget else None
    for _ in range(effort.rounds):
        solved = problem.solve(model.damages()).pairs
        drawn = [problem.solve(model.drawn(rng)).pairs for _ in range(effort.drawn)]
        with measurer.stage("candidates"):
            best, kld = halving(measurer, [incumbent or solved, solved, *drawn], batches, model.operating)[0]
        if best == incumbent == model.operating:
            break
        incumbent, model = best, model.moved(best, kld)
        damages = model.damages()
        wanted = worth_measuring(model, problem.allowed(damages), effort.alternatives, problem.price(damages))
        model = remeasured(measurer, model, wanted, range(effort.remeasure_batches))
    assert incumbent is not None, "an effort has at least one round"
    for _ in range(effort.swaps):
        damages = model.damages()
        candidates = [
            incumbent,
            problem.solve(damages).pairs,
            *problem.neighbours(incumbent, damages, effort.neighbours),
        ]
        with measurer.stage("swaps"):
            best, kld = halving(measurer, candidates, batches, incumbent)[0]
        model = model.moved(best, kld)
        if best == incumbent:
            break
        incumbent = best
    with measurer.stage("swaps"):
        kld = float(measurer.klds([incumbent], batches).mean())
    return Found(incumbent, kld, model, problem.solve(model.damages()))


def fidelity(
    measurer: Measurer, problem: Problem, model: DamageModel, count: int, contexts: int, seed: int = 1
) -> dict[str, Any]:
    """Predicted against true KLD of random assignments within the budget.

    They are the allocator's choices for damages times random factors. r2: of the predictions as they are (not of a fitted
    line). bias: mean prediction over mean measurement, minus 1. Predictions are scaled by the operating point's KLD on these
    contexts over that on all. contexts: how many of the first ones.
    """
    rng = np.random.default_rng(seed)
    contexts = min(contexts, len(measurer.ids))
    table, profiles = model.damages(), dict[Pairs, None]()
    least = [min(known.values()) for known in table]
    for _ in range(4 * count):
        if len(profiles) == count:
            break
        factors = [
            {
                pair: (value - low) * float(np.exp(_RANDOM_SIGMA * rng.standard_normal()))
                for pair, value in known.items()
            }
            for known, low in zip(table, least, strict=True)
        ]
        profiles[problem.solve(factors).pairs] = None
    with measurer.stage("fidelity"):
        few = measurer.in_batches_of(contexts)
        level = float(few.klds([model.operating], [0]).mean())
        measured = few.klds(list(profiles), [0]).mean(axis=1)
    scale = level / model.level if model.level > 0 else 1.0
    predicted = np.array([scale * model.predict(pairs) for pairs in profiles])
    left, total = ((measured - predicted) ** 2).sum(), ((measured - measured.mean()) ** 2).sum()
    return {
        "points": [
            {"predicted": float(p), "measured": float(m), "bytes_per_token": problem.size(pairs)}
            for pairs, p, m in zip(profiles, predicted, measured, strict=True)
        ],
        "r2": float(1 - left / total) if total > 0 else None,
        "bias": float(predicted.mean() / measured.mean() - 1) if measured.mean() > 0 else None,
    }
