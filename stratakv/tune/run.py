"""`tune` from a loaded model and a text to a profile and its evidence, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.evidence.tuning import point_json
from stratakv.measure.corpus import Contexts, Text, cut
from stratakv.measure.divergence import Floats
from stratakv.measure.rows import quality_rows
from stratakv.profile import Profile, resolve
from stratakv.profile.profile import Pair, pair_text
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans
from stratakv.profile.spread import fitted
from stratakv.tune.allocate import Allocation
from stratakv.tune.baselines import spanned
from stratakv.tune.budget import Budget
from stratakv.tune.damage import Measured, Terms
from stratakv.tune.effort import EFFORTS, Effort
from stratakv.tune.headroom import headroom
from stratakv.tune.measurer import Measurer, Pairs, Report
from stratakv.tune.problem import Problem
from stratakv.tune.scores import kept_scores
from stratakv.tune.sensitivity import Sensitivity, by_ablation, by_gradient
from stratakv.tune.split import Split, open_store, split_contexts
from stratakv.tune.types import allowed_types, types_to_ablate, useful_types
from stratakv.tune.verify import Found, designed, fidelity, measured_rows, search

COMPARED = ("turbo2", "turbo3", "turbo4", "turbo5", "tcq3", "tcq4", "q4_0_rot", "q8_0", "edges3", "mode7")


@dataclass(frozen=True)
class Request:
    """What to tune for. types: allowed ones, None for all that the model can store. floors: by KV ordinal. name: of the
    profile, made from its bits when None. runs: the directory where measurements are kept. spans: fixed, the tuning finds the
    types of the rest under them."""

    budget: Budget
    effort: str = "normal"
    types: tuple[str, ...] | None = None
    pairs: frozenset[Pair] | None = None
    floors: dict[int, Pair] = field(default_factory=dict)
    name: str | None = None
    runs: Path = Path("stratakv-runs")
    spans: Spans = NONE


@dataclass(frozen=True)
class Tuned:
    """All results of the stages. rows: on the validation part. told: what stages found out beside the choice, by field of the
    evidence."""

    profile: Profile
    reference: Profile
    problem: Problem
    types: tuple[str, ...]
    sensitivity: Sensitivity
    found: Found
    front: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    split: Split
    measurer: Measurer
    effort: Effort
    warnings: tuple[str, ...]
    told: dict[str, Any]


def tune(
    loaded: LoadedModel,
    text: Text,
    request: Request,
    *,
    context: int,
    say: Callable[[str], None] = lambda line: None,
    report: Report = lambda stage, done, total: None,
) -> Tuned:
    """Find a profile within the budget. Everything measured is kept in request.runs as it comes.

    text: of which the first two thirds choose and the last third reports. context: tokens. say: told a line a stage.
    Raises UserError for a budget or types that allow nothing, for a text that is too short, and for contexts that lie wholly in
    the spans.
    """
    effort, geometry = EFFORTS[request.effort], loaded.geometry
    types = allowed_types(geometry, request.types)
    problem = Problem(
        geometry, request.budget.size, request.budget.context, types, request.pairs, request.floors, request.spans
    )
    problem.table([{(k, v): 0.0 for k in types for v in types}] * len(geometry.kv_layers)).solve(problem.budget)
    contexts = cut(text, loaded.tokenizer, context, None, geometry.context)
    _check_spans(problem, types, context)
    split = split_contexts(contexts, effort)
    store = open_store(loaded, contexts, request.runs, "select")
    measurer = Measurer(loaded, split.select, store, report, request.spans)
    effort = _within(effort, len(split.select), measurer.batch)

    start = _uniform(problem, types)
    found = by_gradient(measurer, types, start, effort.gradient_contexts, effort.draws)
    mean = found.damage.mean(axis=0)
    start = _best_uniform(problem, types, mean)
    kept = useful_types(geometry, types, mean, start)
    problem = replace(problem, types=kept)
    found = _with_types(Sensitivity(types, start, found.damage), kept)
    predicted = _absolute(found)
    told = headroom(problem, predicted)
    say(told["words"])

    if problem.settled(predicted) is not None:  # nothing to find out
        effort = replace(effort, designed=0, drawn=0, swaps=0)
    elif effort.ablation_batches:
        ablated = types_to_ablate(problem, found, predicted, effort.ablated_types)
        found = by_ablation(measurer, found, ablated, range(effort.ablation_batches))
    terms = Terms(found.types, start, found.damage.mean(axis=0))
    rows, level = list[Measured](), terms.level
    if effort.search_batches:
        with measurer.stage("design"):
            rows = measured_rows(measurer, terms, designed(problem, terms, effort.designed))
            level = float(measurer.klds([start], range(len(split.select) // measurer.batch)).mean())
    of = range(len(rows))
    rows += _ablated_rows(found)
    best = search(measurer, problem, terms, level, rows, effort)
    say(f"chosen: {_described(best, problem)}")
    checked = fidelity(problem, terms, level, rows, of)

    bpv = Profile("", geometry, best.pairs).bpv
    spans = fitted(request.spans, geometry, best.pairs)
    name = request.name or f"tuned-{bpv:.3f}"
    profile = Profile(name, geometry, best.pairs, fingerprint=loaded.fingerprint, spans=spans)
    reference = spanned(Profile(_name_of(start), geometry, start), request.spans)
    validated = _validated(loaded, split.validate, request, profile, reference, measurer)
    front = _front(problem, best, validated[0])
    warnings = tuple(_warnings(validated, profile.name, request.budget, problem, best))
    return Tuned(
        profile,
        reference,
        problem,
        kept,
        found,
        best,
        front,
        validated,
        split,
        measurer,
        effort,
        warnings,
        {"headroom": told, "fidelity": checked},
    )


def _within(effort: Effort, contexts: int, batch: int) -> Effort:
    """The effort on a text that has fewer contexts than it would use."""
    batches = max(1, contexts // batch)
    return replace(
        effort,
        gradient_contexts=min(effort.gradient_contexts, contexts),
        **{name: min(getattr(effort, name), batches) for name in ("ablation_batches", "search_batches")},
    )


def _check_spans(problem: Problem, types: Sequence[str], context: int) -> None:
    coarsest = min(types, key=lambda name: problem.size(((name, name),) * len(problem.geometry.kv_layers)))
    profile = spanned(Profile("", problem.geometry, _uniform(problem, [coarsest])), problem.spans)
    profile.check_context(context)
    if problem.spans and not any(profile.spans):
        raise UserError(f"no KV layer can have the spans '{problem.spans.text()}' with the types {', '.join(types)}")
    if not profile.seals_at(context):
        raise UserError(
            f"the spans '{problem.spans.text()}' cover contexts of {context:,} tokens: nothing is left to choose types for; "
            f"give -c {2 * problem.spans.pages * PAGE_TOKENS} or more, or fewer pages"
        )


def _uniform(problem: Problem, types: Sequence[str]) -> Pairs:
    return ((types[0], types[0]),) * len(problem.geometry.kv_layers)


def _best_uniform(problem: Problem, types: Sequence[str], damage: Floats) -> Pairs:
    """The type that, used everywhere within the budget, does the least damage; the smallest where none fits."""
    layers = len(problem.geometry.kv_layers)
    every = [(((name, name),) * layers, float(damage[..., i].sum())) for i, name in enumerate(types)]
    fits = [each for each in every if problem.size(each[0]) <= problem.budget]
    return min(fits, key=lambda each: each[1])[0] if fits else min(every, key=lambda each: problem.size(each[0]))[0]


def _with_types(found: Sensitivity, kept: Sequence[str]) -> Sensitivity:
    columns = [found.types.index(name) for name in kept]
    return Sensitivity(tuple(kept), found.operating, found.damage[..., columns])


def _absolute(found: Sensitivity) -> list[dict[Pair, float]]:
    """Predicted damage of every pair, the sum of its sides."""
    mean = found.damage.mean(axis=0)
    return [
        {(k, v): float(layer[0, a] + layer[1, b]) for a, k in enumerate(found.types) for b, v in enumerate(found.types)}
        for layer in mean
    ]


def _ablated_rows(found: Sensitivity) -> list[Measured]:
    """The ablation's measurements as changes of the operating point's KLD."""
    if found.added is None or found.base is None or found.base.sum() <= 0:
        return []
    rows = []
    for i, pair in enumerate(found.operating):
        for side in (0, 1):
            for column, name in enumerate(found.types):
                added = found.added[:, i, side, column]
                if name != pair[side] and np.isfinite(added).all():
                    change = float(added.sum() / found.base.sum())
                    rows.append(Measured(found.cell(i, side, name), change, len(added)))
    return rows


def _name_of(pairs: Pairs) -> str:
    return pair_text(pairs[0]) if len(set(pairs)) == 1 else "uniform"


def _described(best: Found, problem: Problem) -> str:
    counts: dict[Pair, int] = {}
    for pair in best.pairs:
        counts[pair] = counts.get(pair, 0) + 1
    parts = ", ".join(
        f"{count} x {pair_text(pair)}" for pair, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return f"{parts}; {problem.size(best.pairs):,} of {problem.budget:,} bytes, KLD {max(0.0, best.kld):.3g} where it was chosen"


def _validated(
    loaded: LoadedModel,
    contexts: Contexts,
    request: Request,
    profile: Profile,
    reference: Profile,
    measurer: Measurer,
) -> list[dict[str, Any]]:
    """compare/1 rows on the part of the text that no choice has seen; beside uniform types where those are few of the passes."""
    profiles = [profile, reference]
    if any(reference.spans):
        profiles.append(replace(reference, name=_name_of(reference.pairs), spans=()))
    for text in COMPARED if EFFORTS[request.effort].search_batches else ():
        try:
            each = spanned(resolve(text, loaded.geometry), request.spans)
        except UserError:
            continue  # a type that this model can't store
        if all(each.storages != other.storages for other in profiles):
            profiles.append(each)
    store = open_store(loaded, contexts, request.runs, f"validate {len(contexts.ids)}")
    with measurer.stage("validation"):
        baseline, scores = kept_scores(
            loaded,
            contexts,
            profiles,
            store,
            batch=contexts.context,
            progress=lambda done, total: measurer.report("validation", done, total),
        )
    store.close()
    seconds = baseline.seconds + sum(each.seconds for each in scores)
    measurer.add_cost("validation", seconds, len(contexts.ids) * (1 + len(profiles)))
    return quality_rows(profiles, scores, baseline, 1, contexts.context)


def _front(problem: Problem, best: Found, row: dict[str, Any], most: int = 100) -> list[dict[str, Any]]:
    """The predicted Pareto front, thinned to `most` points, and the chosen assignment, the one with a measured KLD (row's)."""
    everything: list[Allocation] = problem.table(best.model.damages()).front()
    steps = np.unique(np.linspace(0, len(everything) - 1, most).round().astype(int))
    chosen = Allocation(best.pairs, problem.size(best.pairs), best.model.predict(best.pairs))
    points = []
    for each in sorted([*(everything[i] for i in steps), chosen], key=lambda each: each.size):
        measured = {"kld": row["kld_mean"], "interval": row["kld_mean_ci95"]} if each is chosen else {}
        points.append(point_json(Profile("", problem.geometry, each.pairs), max(0.0, each.cost), **measured))
    return points


def _warnings(
    rows: Sequence[dict[str, Any]], name: str, budget: Budget, problem: Problem, best: Found
) -> Sequence[str]:
    told = []
    row = next(row for row in rows if row["name"] == name)
    reference_pairs = next(each["profile"] for each in rows if each["verdict_kind"] == "reference")
    if row["profile"] == reference_pairs:
        told.append(f"{name} is uniform: no mix of types is expected to be better at {budget.text}")
    elif row["verdict_kind"] != "better":
        reference = next(each["name"] for each in rows if each["verdict_kind"] == "reference")
        told.append(
            f"on text that the choice didn't see, {name} is not shown to be better than uniform {reference} "
            f"({row['verdict']}): this model may not reward mixed types at {budget.text}"
        )
    used = problem.size(best.pairs) / problem.budget
    if used < 0.995:
        told.append(f"the best assignment found uses {used:.1%} of the budget: more bytes would not have helped here")
    return told
