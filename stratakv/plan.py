"""Memory, context, quality: which profiles keep two of them, and what the third then is ("stratakv/plan/1").

Bytes are arithmetic and exact. Quality is measured or it is unknown: it comes from a tuned front or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stratakv.errors import UserError
from stratakv.pages.footprint import LONGEST, allocated_bytes, longest_context
from stratakv.profile import ModelGeometry, Profile, resolve
from stratakv.profile.parse import respanned_each, with_default_spans
from stratakv.profile.rules import rule_line
from stratakv.profile.spans import NONE, Sizes
from stratakv.profile.spread import LayerSpans, fitted

SCHEMA = "stratakv/plan/1"
# What is compared where nothing was tuned, most bytes first on usual models; of equal bytes the one with less error
USUAL = (
    *("f16", "q8_0", "turbo8", "tcq6", "q8_0/tcq4", "q8_0/turbo4", "tcq5", "q4_0_rot"),
    *("tcq4", "turbo4", "tcq3", "turbo3", "tcq2", "turbo2"),
)


@dataclass(frozen=True)
class Candidate:
    """A profile and its KLD in nats, None where it is unknown. measured: true KLD, not the tuner's prediction."""

    profile: Profile
    kld: float | None = None
    measured: bool = False


@dataclass(frozen=True)
class Wish:
    """What was asked for. memory: bytes of pages for all sequences. quality: KLD in nats, at most. sequences: at once."""

    memory: int | None = None
    context: int | None = None
    quality: float | None = None
    sequences: int = 1


def usual_candidates(geometry: ModelGeometry, sizes: Sizes | None = None, wish: Wish | None = None) -> list[Candidate]:
    """Uniform profiles of unknown quality, without those that the model's head dims don't allow.

    sizes: spans for those that can have them, UserError where none can; without any the default ones, as `serve` takes them,
    where what is wished for fits with them.
    """
    found = []
    for text in USUAL:
        try:
            profile = resolve(text, geometry)
        except UserError:
            continue
        found.append(Candidate(profile if sizes else _as_served(profile, wish or Wish())))
    return _with_spans(found, sizes or {})


def _as_served(profile: Profile, wish: Wish) -> Profile:
    """The same by its name with the default spans, unless what is wished for fits without them alone; where the context is left
    open they may take a tenth of it."""
    found = with_default_spans(profile, context=wish.context)
    if wish.memory is not None:
        with_spans, without = (longest_context(each, wish.memory, wish.sequences) for each in (found, profile))
        if with_spans < (wish.context or min(0.9 * without, profile.geometry.context or LONGEST)):
            return profile
    return replace(found, name=profile.name)


def front_candidates(
    front: Sequence[dict[str, Any]], geometry: ModelGeometry, tuned: LayerSpans = NONE, sizes: Sizes | None = None
) -> list[Candidate]:
    """The points of a tuned front (of an evidence file).

    tuned: spans that the KLDs are of. sizes: spans instead of those in every layer. Both are for the points that can have them;
    where they make any difference, every KLD is unknown. Raises UserError where the points don't fit the model.
    """
    sizes = sizes or {}
    found = []
    for point in front:
        pairs = tuple((k, v) for k, v in point["pairs"])
        if len(pairs) != len(geometry.kv_layers):
            raise UserError(
                f"the evidence is of a model with {len(pairs)} KV layers, this one has {len(geometry.kv_layers)}"
            )
        kld = point["predicted_kld"] if point["kld"] is None else point["kld"]
        profile = Profile(f"front at {point['bpv']:.3f} bpv", geometry, pairs, spans=fitted(tuned, geometry, pairs))
        found.append(Candidate(profile, float(kld), point["kld"] is not None))
    asked = _with_spans(found, sizes)
    if [each.profile.spans for each in asked] == [each.profile.spans for each in found]:
        return found
    return [Candidate(each.profile) for each in asked]


def _with_spans(candidates: list[Candidate], sizes: Sizes) -> list[Candidate]:
    """The same profiles by their names, with spans where they can have them."""
    profiles = respanned_each([each.profile for each in candidates], sizes)
    named = [replace(new, name=each.profile.name) for each, new in zip(candidates, profiles, strict=True)]
    return [replace(each, profile=profile) for each, profile in zip(candidates, named, strict=True)]


def plan(candidates: Sequence[Candidate], wish: Wish) -> dict[str, Any]:
    """The table, and the index of the row that is recommended (None when nothing can be), as JSON data.

    Of memory, context and quality those that were given decide. With memory and context: the lowest KLD that fits, where KLD is
    unknown the most bytes that fit. With a quality: the fewest bytes that keep it. Context defaults to the model's own. Raises
    UserError where nothing fits or nothing is good enough, with what would be needed.
    """
    geometry = candidates[0].profile.geometry
    context = wish.context
    if context is None and (wish.memory is None or wish.quality is None):
        context = geometry.context or None
    for each in candidates:
        each.profile.check_context(context or 0)
    rows = sorted((_row(each, wish, context) for each in candidates), key=lambda row: -row["bytes_per_token"])
    good = [row for row in rows if wish.quality is None or (row["kld"] is not None and row["kld"] <= wish.quality)]
    if not good:
        raise UserError(_not_good(rows, wish))
    fitting = [row for row in good if row["fits"] is not False and row["max_context"] != 0]
    if not fitting and (wish.context is not None or context is None):
        raise UserError(_not_fitting(rows, good, wish, context))
    return {
        "schema": SCHEMA,
        "model": geometry.name,
        "model_context": geometry.context,
        "memory": wish.memory,
        "context": context,
        "context_given": wish.context is not None,
        "quality": wish.quality,
        "sequences": wish.sequences,
        "rows": rows,
        "recommended": rows.index(_best(fitting, wish)) if fitting and _decidable(wish, context) else None,
    }


def _row(candidate: Candidate, wish: Wish, context: int | None) -> dict[str, Any]:
    profile = candidate.profile
    longest = None if wish.memory is None else longest_context(profile, wish.memory, wish.sequences)
    needed = None if context is None else allocated_bytes(profile, context, sequences=wish.sequences)
    return {
        "name": profile.name,
        "profile": [list(pair) for pair in profile.pairs],
        "spans": [each.to_json() for each in profile.spans],
        "rule_line": rule_line(profile.pairs, profile.spans, profile.geometry),
        "bytes_per_token": profile.bytes_per_token,
        "bpv": profile.bpv,
        "kld": candidate.kld,
        "kld_measured": candidate.measured,
        "cache_bytes": needed,
        "max_context": longest,
        "max_context_unlimited": longest == LONGEST,
        "fits": None if needed is None or wish.memory is None else needed <= wish.memory,
    }


def _best(rows: Sequence[dict[str, Any]], wish: Wish) -> dict[str, Any]:
    if wish.quality is not None and (wish.memory is None or wish.context is None):
        return min(rows, key=lambda row: (row["bytes_per_token"], row["kld"]))
    if rows[0]["kld"] is not None:
        return min(rows, key=lambda row: (row["kld"], row["bytes_per_token"]))
    return rows[0]


def _decidable(wish: Wish, context: int | None) -> bool:
    """With only a context (or nothing) every profile would do: there is nothing to recommend."""
    return wish.quality is not None or (wish.memory is not None and context is not None)


def _not_good(rows: Sequence[dict[str, Any]], wish: Wish) -> str:
    known = [row["kld"] for row in rows if row["kld"] is not None]
    if not known:
        return f"--quality {wish.quality:g}: no KLD of these profiles is known: measure them, or tune for their spans"
    least = min(known)
    return f"--quality {wish.quality:g}: the tuned front's lowest KLD is {least:.3g} nats: allow more, or tune for more bytes"


def _not_fitting(
    rows: Sequence[dict[str, Any]], good: Sequence[dict[str, Any]], wish: Wish, context: int | None
) -> str:
    least = min(good, key=lambda row: (row["cache_bytes"] or 0, row["bytes_per_token"]))
    name = least["name"]
    what = "of those good enough" if len(good) < len(rows) else "of all"
    most = least["max_context"]
    if context is None:
        return f"{wish.memory:,} bytes hold not even one page with {name}, the smallest {what}: give more memory"
    shorter = f", or a context of at most {most:,} tokens" if most else ""
    return (
        f"nothing fits: {name}, the smallest {what}, needs {least['cache_bytes']:,} bytes for {context:,} tokens and "
        f"{wish.memory:,} are there: give more memory{shorter}"
    )
