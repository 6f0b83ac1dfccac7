"""`tune` from a loaded model and a text to a profile and its evidence, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.evidence.tuning import point_json
from stratakv.measure.corpus import Text, cut
from stratakv.measure.far import FarContexts
from stratakv.profile import Profile
from stratakv.profile.profile import Pair, pair_text
from stratakv.profile.spans import NONE, PAGE_TOKENS, Spans
from stratakv.profile.spread import fitted
from stratakv.tune.allocate import Allocation
from stratakv.tune.baselines import spanned
from stratakv.tune.budget import Budget
from stratakv.tune.damage import Measured, Terms
from stratakv.tune.effort import EFFORTS, Effort
from stratakv.tune.far import far_for_tuning, mixed, weight_of
from stratakv.tune.headroom import headroom
from stratakv.tune.measurer import Measurer, Pairs, Report
from stratakv.tune.memory import check_gradient_memory
from stratakv.tune.opinion import Opinion, doubts_in_words
from stratakv.tune.options import Damages
from stratakv.tune.problem import Problem
from stratakv.tune.sensitivity import Sensitivity, by_ablation, by_gradient
from stratakv.tune.span_choice import best_uniform, choose_spans, span_options
from stratakv.tune.split import Split, open_store, split_contexts
from stratakv.tune.types import allowed_types, types_to_ablate, useful_types
from stratakv.tune.verify import Found, designed, fidelity, measured_rows, search


@dataclass(frozen=True)
class Request:
    """What to tune for. types: allowed ones, None for all that the model can store. floors: by KV ordinal. name: of the
    profile, None for `free_name` of one made from its bits. runs: the directory where measurements are kept. spans: under which
    the tuning finds the types of the rest, None: it chooses them too, where the budget is that of a context. second_opinion:
    forward passes for it, 0 for none, None for what goes with the effort. far: weight of far predictions, 0 to 1, None for the
    usual one."""

    budget: Budget
    effort: str = "first"
    types: tuple[str, ...] | None = None
    pairs: frozenset[Pair] | None = None
    floors: dict[int, Pair] = field(default_factory=dict)
    name: str | None = None
    free_name: Callable[[str], str] = lambda name: name
    runs: Path = Path("stratakv-runs")
    spans: Spans | None = NONE
    second_opinion: int | None = None
    far: float | None = None


@dataclass(frozen=True)
class Tuned:
    """All results of the stages. operating: what sensitivities are around. reference: the best uniform pair. rows: on the
    validation part, none without a second opinion. told: what stages found out beside the choice, by field of the evidence."""

    profile: Profile
    operating: Pair
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

    text: of which the first two thirds choose and the last third gives the second opinion. context: tokens. say: told a line a
    stage.
    Raises UserError for a budget or types that allow nothing, for a text that is too short, and for contexts that lie wholly in
    the spans.
    """
    effort, geometry = EFFORTS[request.effort], loaded.geometry
    weight = weight_of(request.far, long=request.budget.context is not None, measures=bool(effort.search_batches))
    opinion = Opinion.of(request.second_opinion, effort)
    effort = replace(effort, validate_contexts=opinion.contexts)
    types = allowed_types(geometry, request.types)
    problem = Problem(
        geometry,
        request.budget.size,
        request.budget.context,
        types,
        request.pairs,
        request.floors,
        request.spans or NONE,
    )
    problem.check()
    free = request.spans is None and problem.context is not None
    contexts = cut(text, loaded.tokenizer, context, None, geometry.context)
    effort = effort.at(context)
    _check_spans(problem, types, context)
    split = split_contexts(contexts, effort)
    store = open_store(loaded, contexts, request.runs, "select")
    measurer = Measurer(loaded, split.select, store, report, problem.spans, say)
    effort = _within(effort, len(split.select), measurer.batch)

    options = span_options(problem, context) if free else (request.spans or NONE,)
    if free and len(options) == 1:
        say("spans: none, no layer can have any, or these contexts are too short for them")
    start = _uniform(problem, types)
    far = far_for_tuning(loaded, text, context, measurer) if weight else ""
    if isinstance(far, str) and far:
        if request.far is not None:
            raise UserError(f"--far {weight:g}: {far}: leave --far out")
        say(f"far predictions don't count here: {far}")
    if isinstance(far, FarContexts):
        check_gradient_memory(
            loaded, far.context, effort.draws, any(options), "--far 0 leaves far predictions out, which take them"
        )
    by_spans = by_gradient(measurer, types, start, effort.gradient_contexts, effort.draws, options)
    if isinstance(far, FarContexts):
        kept_far = open_store(loaded, far, request.runs, "far")
        distant = Measurer(loaded, far.ids, kept_far, report, say=say, costs=measurer.costs, first=far.first)
        with_far = by_gradient(distant, types, start, len(far.ids), effort.draws, options, "far gradient")
        by_spans = mixed(by_spans, with_far, weight)
    damages = {spans: _absolute(each) for spans, each in by_spans.items()}
    choice = choose_spans(problem, damages)
    problem, damage = choice.problem, choice.of_layers({spans: each.damage for spans, each in by_spans.items()})
    measurer.spans = problem.spans
    best_pair = best_uniform(problem, damages)
    start = _start(problem, _absolute(Sensitivity(types, start, damage)))
    bound = range(len(start)) if len(options) > 1 or problem.pairs is not None else problem.floors
    wanted = (*start, *([best_pair[1]] if best_pair else []), *(choice.best.pairs[ordinal] for ordinal in bound))
    kept = useful_types(geometry, types, damage.mean(axis=0), wanted)
    problem = replace(problem, types=kept)
    found = _with_types(Sensitivity(types, start, damage), kept)
    if len(options) > 1:
        say(f"spans: {choice.told['words']}")
    predicted = _absolute(found)
    told = headroom(problem, predicted)
    say(told["words"])

    if problem.settled(predicted) is not None:  # nothing to find out
        effort = replace(effort, designed=0, drawn=0, swaps=0)
    elif effort.ablation_batches:
        ablated = types_to_ablate(problem, found, predicted, effort.ablated_types)
        found = by_ablation(measurer, found, ablated, range(effort.ablation_batches))
    terms = Terms(found.types, start, found.damage.mean(axis=0))
    seen, level = list[Measured](), terms.level
    if effort.search_batches:
        there = len(split.select) // measurer.batch
        with measurer.stage("design", measurer.batch * (effort.designed + 3 * max(1, there))):
            seen = measured_rows(measurer, terms, designed(problem, terms, effort.designed))
            level = float(measurer.klds([start], range(there)).mean())
    of = range(len(seen))
    seen += _ablated_rows(found)
    best = search(measurer, problem, terms, level, seen, effort)
    say(f"chosen: {_described(best, problem)}")
    checked = fidelity(problem, terms, level, seen, of)

    bpv = Profile("", geometry, best.pairs).bpv
    spans = fitted(problem.spans, geometry, best.pairs)
    name = request.name or request.free_name(f"tuned-{bpv:.3f}")
    profile = Profile(name, geometry, best.pairs, fingerprint=loaded.fingerprint, spans=spans)
    compared_spans, pair = best_pair or (problem.spans, start[0])
    reference = spanned(Profile(pair_text(pair), geometry, (pair,) * len(start)), compared_spans)
    rows, second = opinion.measured(loaded, split.validate, request.runs, (profile, reference), problem, measurer)
    front = _front(problem, best, rows[0] if rows else {})
    warnings = (*opinion.warnings(len(split.validate.ids)), *_warnings(profile, second, request.budget, problem, best))
    return Tuned(
        profile,
        start[0],
        reference,
        problem,
        kept,
        found,
        best,
        front,
        rows,
        split,
        measurer,
        effort,
        warnings,
        {
            "headroom": told,
            **({"far": {"weight": weight, "contexts": len(far.ids)}} if isinstance(far, FarContexts) else {}),
            **({"span_choice": choice.told} if len(options) > 1 else {}),
            "fidelity": checked,
            "second_opinion": second,
        },
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
    asked = problem.spans
    assert isinstance(asked, Spans)  # by layer they are chosen, not asked for
    coarsest = min(types, key=lambda name: problem.size(((name, name),) * len(problem.geometry.kv_layers)))
    profile = spanned(Profile("", problem.geometry, _uniform(problem, [coarsest])), problem.spans)
    profile.check_context(context)
    if asked and not any(profile.spans):
        raise UserError(f"no KV layer can have the spans '{asked.text()}' with the types {', '.join(types)}")
    if not profile.seals_at(context):
        raise UserError(
            f"the spans '{asked.text()}' cover contexts of {context:,} tokens: nothing is left to choose types for; "
            f"give -c {2 * asked.pages * PAGE_TOKENS} or more, or fewer pages"
        )


def _uniform(problem: Problem, types: Sequence[str]) -> Pairs:
    return ((types[0], types[0]),) * len(problem.geometry.kv_layers)


def _start(problem: Problem, damages: Damages) -> Pairs:
    """The best uniform pair; the smallest type where none fits."""
    if (pair := problem.uniform(damages)) is not None:
        return (pair,) * len(damages)
    return min((((name, name),) * len(damages) for name in problem.types or ()), key=problem.size)


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


def _described(best: Found, problem: Problem) -> str:
    counts: dict[Pair, int] = {}
    for pair in best.pairs:
        counts[pair] = counts.get(pair, 0) + 1
    parts = ", ".join(
        f"{count} x {pair_text(pair)}" for pair, count in sorted(counts.items(), key=lambda item: -item[1])
    )
    return f"{parts}; {problem.size(best.pairs):,} of {problem.budget:,} bytes, KLD {max(0.0, best.kld):.3g} where it was chosen"


def _front(problem: Problem, best: Found, row: Mapping[str, Any], most: int = 100) -> list[dict[str, Any]]:
    """The predicted Pareto front, thinned to `most` points, and the chosen assignment, with its measured KLD where there is a
    row."""
    front: list[Allocation] = problem.table(best.model.damages()).front(most)
    chosen = Allocation(best.pairs, problem.size(best.pairs), best.model.predict(best.pairs))
    points = []
    for each in sorted([*front, chosen], key=lambda each: each.size):
        measured = {"kld": row["kld_mean"], "interval": row["kld_mean_ci95"]} if row and each is chosen else {}
        points.append(point_json(Profile("", problem.geometry, each.pairs), max(0.0, each.cost), **measured))
    return points


def _warnings(
    profile: Profile, opinion: Mapping[str, Any], budget: Budget, problem: Problem, best: Found
) -> Sequence[str]:
    told = []
    if len(set(profile.pairs)) == 1:
        told.append(f"{profile.name} is uniform: no mix of types is expected to be better at {budget.text}")
    else:
        told += doubts_in_words(profile.name, opinion)
    used, larger = problem.size(best.pairs), problem.next_size(best.model.damages())
    if used < 0.995 * problem.budget:
        more = "more bytes would not help" if larger is None else f"the next better assignment takes {larger:,}"
        told.append(f"the best assignment takes {used:,} of the {problem.budget:,} bytes: {more}")
    return told
