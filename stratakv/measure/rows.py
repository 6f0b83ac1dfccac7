"""From scores by token to the numbers of one row. Definitions: docs/measuring.md; a change of one raises METRICS_VERSION."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stratakv.measure.divergence import Floats
from stratakv.measure.intervals import MIN_BLOCKS, Interval, change_interval, mean_interval, standard_error
from stratakv.measure.metrics import METRICS
from stratakv.measure.run import BASELINE, Scores
from stratakv.measure.verdicts import judge, pareto_front
from stratakv.profile import Profile

METRICS_VERSION = 1
_VERDICT = ("pareto", "verdict_kind", "verdict")


def quality_rows(
    profiles: Sequence[Profile],
    scores: Sequence[Scores],
    baseline: Scores,
    reference: int,
    context: int,
    far: tuple[int, Scores, Sequence[Scores]] | None = None,
) -> list[dict[str, Any]]:
    """One JSON row a profile, in the given order. reference: index of the profile that KLD differences are taken against.
    context: tokens of a context. Every Scores needs its kld. Intervals are null below MIN_BLOCKS contexts. far: tokens
    of a far context, and baseline's and profiles' scores there; a row's "far" then has the same numbers of those, else null.
    """
    rows = [
        {
            **likelihood_row(profile, each, context),
            **_divergences(each, baseline, scores[reference]),
            "baseline": all(pair == (BASELINE, BASELINE) for pair in profile.pairs) and not any(profile.spans),
        }
        for profile, each in zip(profiles, scores, strict=True)
    ]
    _add_verdicts(rows, reference)
    if far is None:
        return [{**row, "far": None} for row in rows]
    far_context, far_baseline, far_scores = far
    found = [
        {
            **sizes(profile, far_context),
            **_likelihood(each),
            **_divergences(each, far_baseline, far_scores[reference]),
        }
        for profile, each in zip(profiles, far_scores, strict=True)
    ]
    whole = [row | each for row, each in zip(rows, found, strict=True)]
    _add_verdicts(whole, reference)
    return [
        {**row, "far": {name: other[name] for name in (*each, *_VERDICT)}}
        for row, each, other in zip(rows, found, whole, strict=True)
    ]


def _add_verdicts(rows: Sequence[dict[str, Any]], reference: int) -> None:
    front = pareto_front([(row["bytes_per_token"], row["kld_mean"]) for row in rows])
    for index, (row, on_front) in enumerate(zip(rows, front, strict=True)):
        kind, text = judge(row, rows[reference], is_reference=index == reference)
        row.update(zip(_VERDICT, (on_front, kind, text), strict=True))


def likelihood_row(profile: Profile, scores: Scores, context: int) -> dict[str, Any]:
    """The part of a row that needs no reference: bytes, PPL with its standard error, time.

    context: tokens of a context. allocated_bytes: what the cache took.
    """
    return {
        "name": profile.name,
        "profile": [list(pair) for pair in profile.pairs],
        "spans": [each.to_json() for each in profile.spans],
        **sizes(profile, context),
        "allocated_bytes": scores.allocated,
        **_likelihood(scores),
        "warnings": [*profile.warnings, *_of_spans(profile, context)],
    }


def sizes(profile: Profile, context: int) -> dict[str, Any]:
    """What a context of so many tokens takes by the types' arithmetic; bytes a token and bpv count spans as they are there."""
    return {
        "bytes_per_token": profile.bytes_per_token_at(context),
        "bpv": profile.bpv_at(context),
        "context_bytes": profile.bytes_at(context),
    }


def _likelihood(scores: Scores) -> dict[str, Any]:
    nll = scores.nll.mean(axis=1)
    ppl = math.exp(nll.mean())
    over = "contexts" if len(nll) >= MIN_BLOCKS else "tokens"
    return {
        "ppl": ppl,
        "ppl_se": ppl * standard_error(nll if over == "contexts" else scores.nll.ravel()),
        "ppl_se_over": over,
        "nll_per_chunk": nll.tolist(),
        "seconds": scores.seconds,
    }


def _of_spans(profile: Profile, context: int) -> list[str]:
    if profile.seals_at(context):
        return []
    return [
        f"{profile.name}: spans cover all {context:,} tokens of a context, so its other types were not read: give a longer one"
    ]


def _divergences(scores: Scores, baseline: Scores, reference: Scores) -> dict[str, Any]:
    """What needs the f16 cache (baseline) and the profile that differences are taken against (reference)."""
    kld, agree = _kld(scores), scores.agree
    assert agree is not None
    per_chunk, other = kld.mean(axis=1), _kld(reference).mean(axis=1)
    return {
        **_ppl_difference(scores.nll.mean(axis=1) - baseline.nll.mean(axis=1), math.exp(baseline.nll.mean())),
        "kld_mean": float(kld.mean()),
        "kld_mean_ci95": _json(mean_interval(per_chunk)),
        **{metric.field: metric.of(kld, agree) for metric in METRICS},
        "kld_diff": float((per_chunk - other).mean()),
        "kld_diff_ci95": _kld_difference(per_chunk, other),
        "kld_per_chunk": per_chunk.tolist(),
    }


def _ppl_difference(nll_difference: Floats, ppl: float) -> dict[str, Any]:
    """PPL minus the baseline's. The interval is that of the paired difference in NLL, carried over at the baseline's PPL."""
    interval = mean_interval(nll_difference)
    at = [ppl * math.expm1(end) for end in interval] if interval else None
    return {"ppl_diff": ppl * math.expm1(nll_difference.mean()), "ppl_diff_ci95": at}


def _kld_difference(per_chunk: Floats, other: Floats) -> list[float] | None:
    """The interval of the paired relative difference, carried over at the reference's KLD; plain where that is 0."""
    if other.mean() <= 0:
        return _json(mean_interval(per_chunk - other))
    interval = change_interval(per_chunk, other)
    return None if interval is None else [float(end * other.mean()) for end in interval]


def _kld(scores: Scores) -> Floats:
    if scores.kld is None:
        raise ValueError("these scores were taken without a reference")
    return scores.kld


def _json(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
