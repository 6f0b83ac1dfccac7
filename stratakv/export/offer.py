"""What a target can't express, said with the best that it can, as JSON data ("stratakv/export/1")."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stratakv.export.costs import MeasuredCosts, distance_costs
from stratakv.export.target import NotExpressible, Target, budget, in_layers, lost_spans
from stratakv.kvtypes import kv_type
from stratakv.kvtypes.trellis import TrellisType
from stratakv.kvtypes.turbo import TurboType
from stratakv.profile import Profile
from stratakv.profile.rules import rule_line

SCHEMA = "stratakv/export/1"


def offer(profile: Profile, target: Target, costs: MeasuredCosts | None) -> Profile:
    """The best profile that the target can express within `budget`, named by its rule line.

    costs: by what was measured; None: the nearest in bits. Raises UserError where the target can express nothing on this model.
    """
    pairs = target.nearest(profile, distance_costs(profile) if costs is None else costs)
    return replace(profile, name=rule_line(pairs), pairs=pairs, warnings=(), evidence=None, spans=())


def as_turbo(profile: Profile, target: Target) -> Profile | None:
    """The profile with turbo types of the same bits in place of trellis types, where the target has them and can say it.

    It takes more than `budget` where the target pads what we don't: then an offer is of fewer bits. None: no trellis types.
    """
    turbo = {type_.bits: name for name in target.types if isinstance(type_ := kv_type(name), TurboType)}

    def one(name: str) -> str:
        type_ = kv_type(name)
        return turbo.get(type_.bits, name) if isinstance(type_, TrellisType) else name

    pairs = tuple((one(k), one(v)) for k, v in profile.pairs)
    found = replace(profile, name=rule_line(pairs), pairs=pairs, warnings=(), evidence=None, spans=())
    try:
        target.command(found, "")
    except NotExpressible:
        return None
    return None if pairs == profile.pairs else found


def offer_data(profile: Profile, offered: Profile, target: Target, costs: MeasuredCosts | None) -> dict[str, Any]:
    """The offer beside what was asked for. KLD is predicted here, in nats; null without measured costs. turbo: of `as_turbo`,
    null too where that is the offer."""
    turbo = as_turbo(profile, target)
    beside = turbo is not None and turbo.pairs != offered.pairs
    return {
        "profile": [list(pair) for pair in offered.pairs],
        "text": offered.name,
        "bytes_per_token": target.bytes_per_token(offered),
        "asked_bytes_per_token": profile.bytes_per_token,
        "within_bytes": target.bytes_per_token(offered) <= budget(profile),
        "chosen_by": "nearest in bits, layer by layer" if costs is None else "least predicted KLD",
        "estimated_types": [] if costs is None else costs.estimated(offered.pairs),
        "predicted_kld": None if costs is None else costs.total(offered.pairs),
        "asked_predicted_kld": None if costs is None else costs.total(profile.pairs),
        "measured": None,
        "turbo": {"text": turbo.name, "bytes_per_token": target.bytes_per_token(turbo)} if turbo and beside else None,
        "changes": [*_changes(profile, offered), *lost_spans(profile, target.title)],
    }


def _changes(profile: Profile, offered: Profile) -> list[str]:
    """'K turbo5 -> turbo4 in KV layers 0, 3-5'."""
    found: dict[str, list[int]] = {}
    for ordinal, (asked, given) in enumerate(zip(profile.pairs, offered.pairs, strict=True)):
        for side, before, after in zip("KV", asked, given, strict=True):
            if before != after:
                found.setdefault(f"{side} {before} -> {after}", []).append(ordinal)
    return [in_layers({words: layers}) for words, layers in sorted(found.items())]
