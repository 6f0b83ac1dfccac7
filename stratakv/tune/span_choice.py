"""Which spans a profile gets where the budget is that of a cache at a context: of few options, in all layers or in each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stratakv.errors import UserError
from stratakv.measure.divergence import Floats
from stratakv.profile.profile import Pair
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans
from stratakv.profile.spread import LayerSpans, fitted, layer_spans_text
from stratakv.tune.allocate import Allocation, Options, Table
from stratakv.tune.options import Damages
from stratakv.tune.problem import Problem

RECENT, FIRST = (1, 2, 4), (0, 1)
# of the predicted KLD: what layers' own spans have to save. Of Gemma 3, 10 % predicted was nothing when measured, 31 % was 25 %
LEAST = 0.15


@dataclass(frozen=True)
class ByLayer:
    """The best allocation where each layer has the spans that suit it. options: by KV ordinal; spans: what
    layers have of these."""

    options: tuple[Spans, ...]
    spans: tuple[Spans, ...]
    best: Allocation


@dataclass(frozen=True)
class SpanChoice:
    """problem: with the chosen spans. tried: by spans of all layers the best allocation with them, None where nothing fits.
    by_layer: None where that comes to one of these."""

    problem: Problem
    tried: Mapping[Spans, Allocation | None]
    by_layer: ByLayer | None = None

    @property
    def best(self) -> Allocation:
        """What was chosen."""
        spans = self.problem.spans
        found = self._by_layer.best if isinstance(spans, tuple) else self.tried[spans]
        assert found is not None
        return found

    @property
    def _by_layer(self) -> ByLayer:
        assert self.by_layer is not None
        return self.by_layer

    def of_layers(self, damages: Mapping[Spans, Floats]) -> Floats:
        """Of damages [.., kv_layers, 2 (K, V), types] under each option those of each layer's spans."""
        spans = self.problem.spans
        options = self._by_layer.options if isinstance(spans, tuple) else (spans,) * len(self.best.pairs)
        return np.stack([damages[option][..., i, :, :] for i, option in enumerate(options)], axis=-3)

    @property
    def told(self) -> dict[str, Any]:
        """For the evidence: every option with its predicted KLD, and a sentence."""
        options = [
            {"spans": spans.to_json(), "predicted_kld": found and found.cost, "bytes": found and found.size}
            for spans, found in self.tried.items()
        ]
        return {
            "options": options,
            **({"by_layer": self._told_by_layer()} if self.by_layer else {}),
            "words": self._words(),
        }

    def _told_by_layer(self) -> dict[str, Any]:
        best = self._by_layer.best
        return {
            "spans": [spans.to_json() for spans in self._by_layer.spans],
            "predicted_kld": best.cost,
            "bytes": best.size,
            "lower_bound": best.certificate["lower_bound"],
            "taken": isinstance(self.problem.spans, tuple),
        }

    def _words(self) -> str:
        chosen = self.problem.spans
        parts = [
            f"{spans.text() or 'none'} {'does not fit' if found is None else f'{1e3 * found.cost:.3g}'}"
            for spans, found in self.tried.items()
            if spans != chosen
        ]
        others = ", ".join(parts)
        if isinstance(chosen, tuple):
            others = f"one for all layers: {others}"
        elif self.by_layer is not None:
            others += f", by layer {1e3 * self.by_layer.best.cost:.3g}"
        return f"{layer_spans_text(chosen) or 'none'}, predicted KLD {1e3 * self.best.cost:.3g} e-3 nats; instead of it {others}"


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
    """The types and spans within the budget that do the least damage, spans chosen for each layer by itself.

    damages: by option, of all pairs, by KV ordinal. One knapsack is over (K type, V type, spans) of each layer, one over types
    for each option in all layers alike; all are solved exactly. One option for all layers is taken where layers' own save less
    than LEAST, of equal ones that of fewer pages. Raises UserError where nothing fits with any of them.
    """
    damages = dict(sorted(damages.items(), key=lambda each: each[0].pages))
    tried: dict[Spans, Allocation | None] = {}
    for spans, known in damages.items():
        try:
            tried[spans] = replace(problem, spans=spans).solve(known)
        except UserError:
            tried[spans] = None
    fits = {spans: found.cost for spans, found in tried.items() if found is not None}
    if not fits:
        problem.check()
        raise UserError(f"nothing fits the budget of {problem.budget:,} bytes: give more, or allow smaller types")
    whole = min(fits, key=lambda spans: fits[spans])
    by_layer = _by_layer(problem, damages) if len(damages) > 1 else None
    own = by_layer is not None and by_layer.best.cost < (1 - LEAST) * fits[whole]
    chosen: LayerSpans = by_layer.spans if by_layer is not None and own else whole
    return SpanChoice(replace(problem, spans=chosen), tried, by_layer)


def _by_layer(problem: Problem, damages: Mapping[Spans, Damages]) -> ByLayer | None:
    """None where one of the options, in all layers, comes to the same."""
    tables = {spans: replace(problem, spans=spans).table(known).layers for spans, known in damages.items()}
    layers, options = [], []
    for parts in zip(*tables.values(), strict=True):
        layers.append(
            Options(
                tuple(pair for part in parts for pair in part.pairs),
                tuple(size for part in parts for size in part.sizes),
                tuple(cost for part in parts for cost in part.costs),
            )
        )
        options.append([spans for spans, part in zip(tables, parts, strict=True) for _ in part.pairs])
    found = Table(layers).solve(problem.budget)
    own = tuple(there[i] for there, i in zip(options, found.options, strict=True))
    there = fitted(own, problem.geometry, found.pairs)
    if any(fitted(spans, problem.geometry, found.pairs) == there for spans in damages):
        return None
    coarsest = problem.smallest()
    spans = tuple(fitted(each, problem.geometry, coarsest)[i] for i, each in enumerate(own))
    return ByLayer(own, spans, found)


def best_uniform(problem: Problem, damages: Mapping[Spans, Damages]) -> tuple[Spans, Pair] | None:
    """The pair that, in all layers alike and with the spans that suit it best, does the least damage within the budget.

    damages: as of `choose_spans`. None where no pair fits.
    """
    found = {}
    for spans, known in damages.items():
        if (pair := replace(problem, spans=spans).uniform(known)) is not None:
            found[spans, pair] = sum(each[pair] for each in known), spans.pages, pair
    return min(found, key=lambda each: found[each], default=None)
