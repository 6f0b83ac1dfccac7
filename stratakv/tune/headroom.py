"""What mixed precision can win on a model at a budget, predicted before any search, in numbers and in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratakv.profile.profile import pair_text
from stratakv.tune.options import Damages
from stratakv.tune.problem import Problem

NOTHING, LITTLE = 0.05, 0.15


def headroom(problem: Problem, damages: Damages) -> dict[str, Any]:
    """gain: share of the best uniform pair's predicted damage that the best assignment saves at the same bytes. uniform: that
    pair. spread: 1 - geometric / arithmetic mean of the layers' damages under it, what ideal types would save at a high rate.
    words: both in a sentence.

    damages: predicted, absolute, by KV ordinal, of the same pairs in every layer.
    """
    if settled := problem.settled(damages):
        only = pair_text(settled.pairs[0]) if len(set(settled.pairs)) == 1 else None
        name = f"uniform {only}" if only else "one assignment of types"
        words = (
            f"nothing can be saved here: only {name} fits a budget this small; give more bytes, or allow more types"
            if settled.tight
            else f"nothing needs to be saved here: {name}, the most exact of the allowed types, fits the budget"
        )
        return {"gain": 0.0, "uniform": only, "spread": None, "words": words}
    best = problem.solve(damages)
    uniform = problem.uniform(damages)
    if uniform is None:
        words = "no uniform pair of the allowed types fits this budget, so there is nothing to compare with"
        return {"gain": 0.0, "uniform": None, "spread": None, "words": words}
    cost = sum(known[uniform] for known in damages)
    gain = 1 - best.cost / cost if cost > 0 else 0.0
    levels = np.maximum([known[uniform] for known in damages], 1e-12)
    spread = 1 - float(np.exp(np.log(levels).mean()) / levels.mean())
    return {
        "gain": gain,
        "uniform": pair_text(uniform),
        "spread": spread,
        "words": _words(gain, pair_text(uniform), spread),
    }


def _words(gain: float, uniform: str, spread: float) -> str:
    why = f"the layers' sensitivities differ by a spread of {spread:.0%}"
    if gain < NOTHING:
        return (
            f"mixed precision can save hardly anything here: about {gain:.0%} of the KLD of uniform {uniform}; {why}. "
            f"Uniform {uniform} is as good a choice"
        )
    if gain < LITTLE:
        return f"mixed precision can save little here, about {gain:.0%} of the KLD of uniform {uniform}; {why}"
    return f"mixed precision can save about {gain:.0%} of the KLD of uniform {uniform} at the same bytes; {why}"
