"""The final judgement of a tuned profile on text that its tuning never saw, against every baseline: "stratakv/judge/1"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratakv.engine.load import LoadedModel
from stratakv.errors import UserError
from stratakv.evidence.judgement import SCHEMA
from stratakv.measure.corpus import Contexts
from stratakv.measure.far import NOT_ASKED, FarContexts, NoFar, measurable
from stratakv.measure.intervals import change_interval
from stratakv.measure.results import conditions
from stratakv.measure.rows import quality_rows
from stratakv.measure.run import Progress, Scores
from stratakv.profile import Profile, Spans
from stratakv.tune.baselines import TOLERANCE, baselines, reference_for, spanned, wish_of
from stratakv.tune.scores import kept_scores, passes
from stratakv.tune.split import open_store

CLAIMED = 0.30


def judge(
    loaded: LoadedModel,
    contexts: Contexts,
    tuned: Profile,
    *,
    far: FarContexts | NoFar = NOT_ASKED,
    runs: Path,
    permutations: int = 20,
    batch: int = 512,
    command: str = "",
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """A comparison ("stratakv/compare/1" with a family in every row) and the claims that it shows or doesn't.

    contexts: of a text other than the tuning's, UserError where the profile's evidence names the same. far: contexts whose far
    predictions are measured too. runs: where scores are kept, so that a killed judgement goes on. progress: called with
    (passes done, passes in all).
    """
    if tuned.evidence and tuned.evidence.get("text") == contexts.text.sha256:
        raise UserError(
            f"{contexts.text.name} is the text that {tuned.name} was tuned on: judge it on another one, which it has not seen"
        )
    tuned.check_context(contexts.context)
    reference = spanned(reference_for(tuned.geometry, tuned.bytes_per_token), wish_of(tuned))
    families, profiles = zip(*baselines(tuned, reference, permutations), strict=True)
    far_contexts, told = measurable(loaded, far, batch)
    there = len(contexts.ids)
    of_each = passes(profiles)
    total = (there + told["chunks"]) * of_each

    def measured(part: Contexts, name: str, before: int) -> tuple[Scores, list[Scores]]:
        store = open_store(loaded, part, runs, name)
        try:
            return kept_scores(
                loaded, part, profiles, store, batch=batch, progress=lambda done, _: progress(before + done, total)
            )
        finally:
            store.close()

    baseline, scores = measured(contexts, f"judge {batch}", 0)
    far_scores = None
    if far_contexts:
        far_scores = (
            far_contexts.context,
            *measured(far_contexts, f"judge {batch} far {far_contexts.first}", there * of_each),
        )
    index = next(i for i, profile in enumerate(profiles) if profile.storages == reference.storages)
    rows = quality_rows(profiles, scores, baseline, index, contexts.context, far_scores)
    for row, family in zip(rows, families, strict=True):
        row["family"] = family
    at = rows[index]["bytes_per_token"] if _equal(rows[0], rows[index]) else rows[0]["bytes_per_token"]
    return {
        "schema": SCHEMA,
        **conditions(loaded, contexts, batch, command, far_contexts),
        "far": told,
        "reference": rows[index]["name"],
        "baseline": {"name": "f16", "seconds": baseline.seconds},
        "tuned": tuned.name,
        "spans": wish_of(tuned).to_json(),
        "equal_bytes": {"at": at, "tolerance": TOLERANCE},
        "claims": claims(rows, rows[index], at),
        "rows": rows,
    }


def claims(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Any], at: int) -> list[dict[str, Any]]:
    """What is claimed of the tuned row, each with whether it holds (None: no difference is shown). value and ci95: relative
    change of KLD, paired.

    Against several rows at once, value and ci95 are of the strongest of them, and all of them count. Rows of more bytes than
    `at` don't take part; the tuned row must have 99.5 to 100 % of them.
    """
    tuned = next(row for row in rows if row["family"] == "tuned")
    fits = at * (1 - TOLERANCE) <= tuned["bytes_per_token"] <= at
    made = []
    change, interval = _change(tuned, reference)
    if reference["bytes_per_token"] == at:
        made.append(
            _claim(
                f"at least {CLAIMED:.0%} less KLD than uniform {reference['name']} at its bytes, and the interval excludes 0",
                fits and change <= -CLAIMED and _below(interval),
                change,
                interval,
            )
        )
    else:
        made.append(
            _claim(
                f"less KLD than uniform {reference['name']}, which takes fewer bytes",
                _below(interval),
                change,
                interval,
            )
        )
    if tuned.get("far") and reference.get("far"):
        change, interval = _change(tuned["far"], reference["far"])
        shown = None if interval is None or interval[0] <= 0 <= interval[1] else change < 0
        made.append(_claim(f"less KLD of far predictions than uniform {reference['name']}", shown, change, interval))
    for family, words in (
        ("uniform", "every other uniform pair"),
        ("mode", "every mode"),
        ("rule", "every layer rule"),
    ):
        others = [
            row for row in rows if row["family"] == family and row is not reference and row["bytes_per_token"] <= at
        ]
        if others:
            changes = [_change(tuned, row) for row in others]
            change, interval = changes[int(np.argmin([row["kld_mean"] for row in others]))]
            made.append(
                _claim(
                    f"less KLD than {words} at those bytes or fewer ({len(others)} of them), each by a paired interval",
                    fits and all(_below(each) for _, each in changes),
                    change,
                    interval,
                )
            )
    for row in rows:
        if row["family"] == "bare":
            change, interval = _change(tuned, row)
            fewer = 1 - row["bytes_per_token"] / tuned["bytes_per_token"]
            words = f"less KLD than the same types without spans, which take {fewer:.1%} fewer bytes at this context"
            made.append(_claim(words, _below(interval), change, interval))
    others = [row for row in rows if row["family"] == "permutation"]
    if others:
        lowest = min(others, key=lambda row: row["kld_mean"])
        change, interval = _change(tuned, lowest)
        open_ = interval is None or interval[0] <= 0 <= interval[1]
        words = f"less mean KLD than the lowest of {len(others)} permutations of itself"
        made.append(_claim(words, None if open_ else change < 0, change, interval))
    return made


def format_claims(data: Mapping[str, Any]) -> str:
    """The claims in lines."""
    lines = [f"spans: {Spans(**data['spans']).text()}"] if data.get("spans") else []
    for each in data["claims"]:
        ends = "" if each["ci95"] is None else f" [{each['ci95'][0]:+.0%}, {each['ci95'][1]:+.0%}]"
        flag = "not shown" if each["holds"] is None else "holds" if each["holds"] else "DOES NOT HOLD"
        lines.append(f"{flag}: {each['claim']}: {each['value']:+.1%}{ends}")
    return "\n".join(lines)


def _claim(words: str, holds: bool | None, value: float, interval: Sequence[float] | None) -> dict[str, Any]:
    ends = None if interval is None else [float(end) for end in interval]
    return {"claim": words, "holds": None if holds is None else bool(holds), "value": float(value), "ci95": ends}


def _change(tuned: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, Sequence[float] | None]:
    if other["kld_mean"] <= 0:
        return 0.0, None
    return tuned["kld_mean"] / other["kld_mean"] - 1, change_interval(tuned["kld_per_chunk"], other["kld_per_chunk"])


def _below(interval: Sequence[float] | None) -> bool:
    return interval is not None and interval[1] < 0


def _equal(tuned: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    size = reference["bytes_per_token"]
    return bool(size * (1 - TOLERANCE) <= tuned["bytes_per_token"] <= size)
