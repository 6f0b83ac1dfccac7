"""Which spans a profile gets, where the budget is that of a cache at a stated context: few options, each solved exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from stratakv.errors import UserError
from stratakv.profile.profile import Pair
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans
from stratakv.profile.spread import fitted
from stratakv.tune.allocate import Allocation
from stratakv.tune.options import Damages
from stratakv.tune.problem import Problem

RECENT, FIRST = (1, 2, 4), (0, 1)


@dataclass(frozen=True)
class SpanChoice:
    """problem: with the chosen spans. tried: by spans the best allocation with them, None where nothing fits."""

    problem: Problem
    tried: Mapping[Spans, Allocation | None]

    @property
    def told(self) -> dict[str, Any]:
        """For the evidence: every option with its predicted KLD, and a sentence."""
        options = [
            {"spans": spans.to_json(), "predicted_kld": found and found.cost, "bytes": found and found.size}
            for spans, found in self.tried.items()
        ]
        return {"options": options, "words": self._words()}

    def _words(self) -> str:
        chosen = self.problem.spans
        parts = [
            f"{spans.text() or 'none'} {'does not fit' if found is None else f'{1e3 * found.cost:.3g}'}"
            for spans, found in self.tried.items()
            if spans != chosen
        ]
        best = self.tried[chosen]
        assert best is not None
        return (
            f"{chosen.text() or 'none'}, predicted KLD {1e3 * best.cost:.3g} e-3 nats; instead of it {', '.join(parts)}"
        )


def span_options(problem: Problem, measured: int) -> tuple[Spans, ...]:
    """None, and 1, 2 or 4 recent pages without and with a first one, as far as some layer can have them.

    measured: tokens of a context that damages are measured in. Of spans that cover more than half of it they say too little, and
    of those that the budget's context doesn't outgrow nothing.
    """
    context = problem.context
    assert context is not None
    pairs = problem.smallest()
    options, seen = [NONE], {fitted(NONE, problem.geometry, pairs)}
    for recent in RECENT:
        for first in FIRST:
            spans = Spans(recent, first=first)
            there = fitted(spans, problem.geometry, pairs)
            if there not in seen and spans.pages * PAGE_TOKENS <= min(measured, context) // 2:
                seen.add(there)
                options.append(spans)
    return tuple(options)


def choose_spans(problem: Problem, damages: Mapping[Spans, Damages]) -> SpanChoice:
    """The option whose best assignment within the budget does the least damage, the one of fewer pages where two are equal.

    damages: by option, of all pairs, by KV ordinal. Every option's knapsack is solved exactly, so the best of them is the exact
    solution over types and spans. Raises UserError where nothing fits with any of them.
    """
    tried: dict[Spans, Allocation | None] = {}
    for spans, known in sorted(damages.items(), key=lambda each: each[0].pages):
        try:
            tried[spans] = replace(problem, spans=spans).solve(known)
        except UserError:
            tried[spans] = None
    fits = {spans: found.cost for spans, found in tried.items() if found is not None}
    if not fits:
        problem.check()
        raise UserError(f"nothing fits the budget of {problem.budget:,} bytes: give more, or allow smaller types")
    return SpanChoice(replace(problem, spans=min(fits, key=lambda spans: fits[spans])), tried)


def best_uniform(problem: Problem, damages: Mapping[Spans, Damages]) -> tuple[Spans, Pair] | None:
    """The pair that, in all layers alike and with the spans that suit it best, does the least damage within the budget.

    damages: as of `choose_spans`. None where no pair fits.
    """
    found = {}
    for spans, known in damages.items():
        if (pair := replace(problem, spans=spans).uniform(known)) is not None:
            found[spans, pair] = sum(each[pair] for each in known), spans.pages, pair
    return min(found, key=lambda each: found[each], default=None)
