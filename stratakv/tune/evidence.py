"""The evidence of a tuned profile as JSON, schema "stratakv/tune/1" (docs/tuning.md), and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratakv import __version__
from stratakv.errors import UserError
from stratakv.machine import machine
from stratakv.measure.corpus import Text
from stratakv.measure.rows import METRICS_VERSION
from stratakv.profile.profile import Pair, Profile, pair_text
from stratakv.tune.run import Request, Tuned
from stratakv.tune.sensitivity import agreement, cells_json, split_half

SCHEMA = "stratakv/tune/1"
VERSION = 1


def evidence_json(tuned: Tuned, text: Text, request: Request, command: str) -> dict[str, Any]:
    """Everything that the choice rests on. text: the tuning text."""
    profile, model = tuned.profile, tuned.found.model
    context = tuned.split.validate.context
    gap = model.predict(tuned.found.pairs) - tuned.found.allocation.cost
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "stratakv": __version__,
        "metrics_version": METRICS_VERSION,
        "name": profile.name,
        "model": {
            "name": profile.geometry.name,
            "fingerprint": profile.fingerprint,
            "kv_layers": len(profile.geometry.kv_layers),
        },
        "geometry": [
            {
                "ordinal": layer.ordinal,
                "layer": layer.layer,
                "role": layer.role,
                "head_dim": list(layer.head_dim),
                "kv_heads": layer.kv_heads,
                "window": layer.window,
            }
            for layer in profile.geometry.kv_layers
        ],
        "budget": {
            "text": request.budget.text,
            "bytes_per_token": profile.bytes_per_token if request.budget.context else request.budget.size,
            "bpv": _bpv(profile, profile.bytes_per_token if request.budget.context else request.budget.size),
            "bytes": request.budget.size,
            "context": request.budget.context,
            "floors": {str(ordinal): list(pair) for ordinal, pair in request.floors.items()},
        },
        "types": list(tuned.types),
        "effort": request.effort,
        "text": {
            "name": text.name,
            "sha256": text.sha256,
            "context": context,
            "chunk": context,
            "select_chunks": len(tuned.split.select),
            "validate_chunks": len(tuned.split.validate.ids),
        },
        "machine": machine(),
        "command": command,
        "cost": _cost(tuned),
        "headroom": tuned.headroom,
        "sensitivity": {
            "operating_point": tuned.reference.name,
            "cells": cells_json(tuned.sensitivity),
            "gradient_chunks": len(tuned.sensitivity.damage),
            "ablation_chunks": 0 if tuned.sensitivity.added is None else len(tuned.sensitivity.added),
            "split_half": split_half(tuned.sensitivity),
            "agreement": agreement(tuned.sensitivity),
        },
        "front": tuned.front,
        "damages": _damages(tuned),
        "fidelity": tuned.fidelity,
        "certificate": {
            **tuned.found.allocation.certificate,
            "optimal": tuned.found.pairs == tuned.found.allocation.pairs
            and tuned.found.allocation.certificate["optimal"],
            "gap": max(0.0, gap),
            "of": "the predicted KLD; the chosen assignment is the one with the lowest measured KLD among the candidates",
        },
        "chosen": {
            "pairs": [list(pair) for pair in profile.pairs],
            "bytes_per_token": profile.bytes_per_token,
            "bpv": profile.bpv,
            "kld_where_chosen": tuned.found.kld,
        },
        "rows": tuned.rows,
        "reference": tuned.reference.name,
        "warnings": list(tuned.warnings),
    }


def damages_from(evidence: Mapping[str, Any]) -> list[dict[Pair, float]]:
    """The allocator's damages of an evidence file: by KV ordinal what each pair is expected to add to the KLD, in nats.

    Raises UserError for an evidence file without them.
    """
    try:
        table = evidence["damages"]
        types: Sequence[str] = table["types"]
        return [
            {(k, v): layer[a][b] for a, k in enumerate(types) for b, v in enumerate(types)}
            for layer in table["by_layer"]
        ]
    except (KeyError, TypeError, IndexError) as error:
        raise UserError("the evidence file has no table of damages: it is not one that stratakv tune wrote") from error


def format_evidence(data: Mapping[str, Any]) -> str:
    """What a terminal shows: the choice, what it is worth where it wasn't chosen, what it cost to find."""
    row = data["rows"][0]
    lines = [f"{data['name']} for {data['model']['name']}: {data['chosen']['bytes_per_token']:,} bytes a token, "
             f"{data['chosen']['bpv']:.3f} bpv (budget {data['budget']['text']})"]  # fmt: skip
    lines += [f"  KV layer {ordinal:>3}  {pair_text((k, v))}" for ordinal, (k, v) in enumerate(data["chosen"]["pairs"])]
    lines.append(f"headroom: {data['headroom']['words']}")
    lines.append(
        f"on the part of {data['text']['name']} that nothing was chosen on ({data['text']['validate_chunks']} contexts of "
        f"{data['text']['context']} tokens), against uniform {data['reference']}: {row['verdict']}"
    )
    agreed, fit = data["sensitivity"]["agreement"], data["fidelity"]
    if agreed["by_type"]:
        ranks = ", ".join(f"{name} {value:.2f}" for name, value in agreed["by_type"].items())
        lines.append(f"gradients against ablation, rank correlation by type: {ranks}")
    if fit["r2"] is not None:
        lines.append(
            f"predicted against true KLD of {len(fit['points'])} random assignments: R2 {fit['r2']:.2f}, "
            f"bias {round(100 * fit['bias']):+d} %; gradients alone: R2 "
            f"{fit['gradients']['r2']:.2f}, bias {round(100 * fit['gradients']['bias']):+d} %"
        )
    lines.append(f"cost: {data['cost']['forward_passes']:,.0f} forward passes, {data['cost']['seconds']:,.0f} s")
    lines += [f"warning: {warning}" for warning in data["warnings"]]
    return "\n".join(lines)


def _cost(tuned: Tuned) -> dict[str, Any]:
    stages = [
        {"name": name, "seconds": round(cost.seconds, 2), "forward_passes": round(cost.passes, 2)}
        for name, cost in tuned.measurer.costs.items()
    ]
    return {
        "seconds": round(sum(cost.seconds for cost in tuned.measurer.costs.values()), 2),
        "forward_passes": round(sum(cost.passes for cost in tuned.measurer.costs.values()), 2),
        "stages": stages,
    }


def _damages(tuned: Tuned) -> dict[str, Any]:
    table = tuned.found.model.damages()
    return {
        "types": list(tuned.types),
        "by_layer": [[[known[k, v] for v in tuned.types] for k in tuned.types] for known in table],
    }


def _bpv(profile: Profile, size: int) -> float:
    return profile.bpv * size / profile.bytes_per_token
