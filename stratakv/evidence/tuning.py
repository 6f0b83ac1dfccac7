"""What a tuned profile rests on, schema "stratakv/tune/1" (docs/tuning.md): whoever tunes writes it by `evidence_json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv import __version__
from stratakv.errors import UserError
from stratakv.evidence.reading import ABSENT, INTERVAL, NUMBER, PAIRS, ROW, Data, first_problem, read_checked

if TYPE_CHECKING:  # a report is made from the files alone, without torch
    from stratakv.profile.profile import Pair, Profile

SCHEMA = "stratakv/tune/1"
VERSION = 1
_SPANS = {"recent": int, "recent_type": str, "first": int, "first_type": str}
_CELL = {
    "ordinal": int,
    "side": frozenset({"k", "v"}),
    "type": str,
    "kld": (*NUMBER, None),
    "ci95": INTERVAL,
    "gradient": (*NUMBER, None),
}
_POINT = {
    "bytes_per_token": int,
    "bpv": NUMBER,
    "predicted_kld": NUMBER,
    "pairs": PAIRS,
    "kld": (*NUMBER, None),
    "kld_ci95": INTERVAL,
}
_OPINION = {  # files from before second opinions lack it, and those of `sensitivity`
    "passes": NUMBER,
    "contexts": int,
    "against": [{"name": str, "what": str, "kld": NUMBER, "change": NUMBER, "change_ci95": INTERVAL, "kind": str}],
    "words": str,
}
_BY_LAYER = {"spans": list, "predicted_kld": NUMBER, "bytes": int, "lower_bound": NUMBER, "taken": bool}
_SPAN_CHOICE = {
    "by_layer": (_BY_LAYER, ABSENT),
    "options": [{"spans": (_SPANS, None), "predicted_kld": (*NUMBER, None), "bytes": (int, None)}],
    "words": str,
}
_FIELDS = {
    "name": str,
    "model": {"name": str, "fingerprint": (str, None), "kv_layers": int},
    "geometry": [{"ordinal": int, "layer": int, "role": str, "head_dim": [int, int], "kv_heads": int}],
    "budget": {"text": str, "bytes_per_token": int, "bpv": NUMBER},
    "text": {"name": str, "sha256": str, "context": int, "chunk": int},
    "machine": dict,
    "command": str,
    "cost": {
        "seconds": NUMBER,
        "forward_passes": NUMBER,
        "stages": [{"name": str, "seconds": NUMBER, "forward_passes": NUMBER}],
    },
    "headroom": {"gain": NUMBER, "words": str},
    "sensitivity": {
        "operating_point": str,
        "cells": [_CELL],
    },
    "front": [_POINT],
    "fidelity": {
        "points": [{"predicted": NUMBER, "measured": NUMBER, "bytes_per_token": int}],
        "r2": (*NUMBER, None),
        "bias": (*NUMBER, None),
    },
    "second_opinion": (_OPINION, ABSENT),
    "span_choice": (_SPAN_CHOICE, ABSENT),
    "certificate": dict,
    "chosen": {"pairs": PAIRS, "bytes_per_token": int, "bpv": NUMBER},
    "rows": [ROW],
    "reference": str,
    "warnings": [str],
}


def read_evidence(path: str | Path) -> Data:
    """The evidence that was written beside a profile. Raises UserError for what is missing or of another kind."""
    wanted = "an evidence file that `stratakv tune` wrote"
    data = read_checked(path, SCHEMA, _FIELDS, wanted)
    spans = data.get("spans")
    kind: Any = [(_SPANS, None)] if isinstance(spans, list) else _SPANS
    if spans is not None and (problem := first_problem(spans, kind, "spans")):
        raise UserError(f"{path}: {problem}: give {wanted}")
    if problem := _uneven(data):
        raise UserError(f"{path}: {problem}: give {wanted}")
    return data


def _uneven(data: Data) -> str | None:
    """The first list by KV layer that has another number of layers than the model, in words."""
    layers = data["model"]["kv_layers"]
    counted = {"geometry": data["geometry"], "chosen.pairs": data["chosen"]["pairs"]}
    counted |= {f"front[{index}].pairs": point["pairs"] for index, point in enumerate(data["front"])}
    if isinstance(data.get("spans"), list):
        counted["spans"] = data["spans"]
    for name, each in counted.items():
        if len(each) != layers:
            return f"{name} is of {len(each)} layers, the model has {layers}"
    if not data["front"]:
        return "front is empty"
    beyond = next((cell for cell in data["sensitivity"]["cells"] if not 0 <= cell["ordinal"] < layers), None)
    return None if beyond is None else f"a cell is of layer {beyond['ordinal']}, the model has {layers}"


def evidence_json(
    profile: Profile,
    *,
    budget: Mapping[str, Any],
    types: Sequence[str],
    effort: str,
    text: Mapping[str, Any],
    machine: Mapping[str, Any],
    command: str,
    stages: Mapping[str, tuple[float, float]],
    sensitivity: Mapping[str, Any],
    front: Sequence[Mapping[str, Any]],
    damages: Sequence[Mapping[Pair, float]],
    certificate: Mapping[str, Any],
    chosen: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    reference: str,
    warnings: Sequence[str],
    told: Mapping[str, Any],
    more: Mapping[str, Any],
) -> Data:
    """Everything that the choice of a profile rests on. Whatever `read_evidence` would refuse raises ValueError.

    text: of `text_json`. stages: seconds and forward passes by name. sensitivity: its cells of `cell_json`. front: of
    `point_json`. damages: by KV ordinal what each pair of `types` is expected to add to the KLD, in nats. told: what stages
    found out beside the choice, by field (`headroom`, `fidelity`); what has `words` is shown wherever evidence is, see `said`.
    chosen, more: further fields of the choice and of the whole.
    """
    geometry = profile.geometry
    data: Data = {
        "schema": SCHEMA,
        "version": VERSION,
        "stratakv": __version__,
        **more,
        "name": profile.name,
        "model": {"name": geometry.name, "fingerprint": profile.fingerprint, "kv_layers": len(geometry.kv_layers)},
        "geometry": [{**layer.fields, "window": layer.window} for layer in geometry.kv_layers],
        "budget": dict(budget),
        "types": list(types),
        "effort": effort,
        "text": dict(text),
        "machine": dict(machine),
        "command": command,
        "cost": _cost_json(stages),
        "sensitivity": dict(sensitivity),
        "front": list(front),
        "damages": {
            "types": list(types),
            "by_layer": [[[known[k, v] for v in types] for k in types] for known in damages],
        },
        "told": list(told),
        **told,
        "certificate": dict(certificate),
        "chosen": {
            "pairs": [list(pair) for pair in profile.pairs],
            "bytes_per_token": profile.bytes_per_token,
            "bpv": profile.bpv,
            **chosen,
        },
        "rows": list(rows),
        "reference": reference,
        "warnings": list(warnings),
    }
    if problem := first_problem(json.loads(json.dumps(data, allow_nan=False)), _FIELDS):
        raise ValueError(f"evidence of {profile.name}: {problem}")
    data["bits_per_value"] = bits_of(data)
    return data


def text_json(name: str, sha256: str, *, context: int, select: int, validate: int) -> dict[str, Any]:
    """The tuning text. context: tokens; select, validate: contexts that chose, and that checked the choice."""
    return {
        "name": name,
        "sha256": sha256,
        "context": context,
        "chunk": context,
        "select_chunks": select,
        "validate_chunks": validate,
    }


def cell_json(
    ordinal: int,
    side: str,
    type_: str,
    *,
    kld: float | None,
    interval: Sequence[float] | None,
    gradient: float | None,
) -> dict[str, Any]:
    """What one type costs on one side ('k', 'v') of one KV layer, in nats. kld: measured; gradient: predicted."""
    return {
        "ordinal": ordinal,
        "side": side,
        "type": type_,
        "kld": kld,
        "ci95": None if interval is None else list(interval),
        "gradient": gradient,
    }


def point_json(
    profile: Profile, predicted: float, *, kld: float | None = None, interval: Sequence[float] | None = None
) -> dict[str, Any]:
    """A point of the front: bytes, and KLD in nats, predicted, and measured where it was."""
    return {
        "bytes_per_token": profile.bytes_per_token,
        "bpv": profile.bpv,
        "predicted_kld": predicted,
        "pairs": [list(pair) for pair in profile.pairs],
        "kld": kld,
        "kld_ci95": interval,
    }


def damages_of(evidence: Mapping[str, Any]) -> tuple[dict[Pair, float], ...]:
    """By KV ordinal what each pair of types is expected to cost, in nats; summed up it is the KLD. () without the table."""
    table = evidence.get("damages")
    if not table:
        return ()
    types = table["types"]
    return tuple(
        {(k, v): float(row[a][b]) for a, k in enumerate(types) for b, v in enumerate(types)}
        for row in table["by_layer"]
    )


def said(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What stages found out beside the choice, in their words, by field."""
    told = [(name, evidence[name]) for name in evidence.get("told", ("headroom",))]  # older files know no other
    return [(name, found["words"]) for name, found in told if "words" in found]


def bits_of(evidence: Mapping[str, Any]) -> dict[str, float]:
    """Bits per value in this model of the types that were tried or chosen, and of f16; norms, scales and padding counted.

    UserError for a type that neither the file nor the registry knows.
    """
    names = {"f16", *(name for pair in evidence["chosen"]["pairs"] for name in pair)}
    names |= {cell["type"] for cell in evidence["sensitivity"]["cells"]}
    known = evidence.get("bits_per_value", {})
    missing = sorted(names - set(known))
    return {**known, **(_bits_json(missing, evidence["geometry"]) if missing else {})}  # older files know none


def _bits_json(names: Sequence[str], layers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    from stratakv.profile import LayerGeometry, ModelGeometry, Profile

    kept = tuple(
        LayerGeometry(each["layer"], each["ordinal"], each["role"], tuple(each["head_dim"]), each["kv_heads"], 0)
        for each in layers
    )
    geometry = ModelGeometry("", kept)
    return {name: Profile(name, geometry, ((name, name),) * len(kept)).bpv for name in names}


def _cost_json(stages: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    return {
        "seconds": round(sum(seconds for seconds, _ in stages.values()), 2),
        "forward_passes": round(sum(passes for _, passes in stages.values()), 2),
        "stages": [
            {"name": name, "seconds": round(seconds, 2), "forward_passes": round(passes, 2)}
            for name, (seconds, passes) in stages.items()
        ],
    }
