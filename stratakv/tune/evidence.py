"""The evidence of a tuning, as JSON and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stratakv.evidence.tuning import evidence_json, said, text_json
from stratakv.machine import machine
from stratakv.measure.corpus import Text
from stratakv.measure.rows import METRICS_VERSION
from stratakv.profile import ModelGeometry, Profile
from stratakv.profile.profile import pair_text
from stratakv.profile.spread import LayerSpans, fitted, layer_spans_from_json, layer_spans_json, layer_spans_text
from stratakv.tune.run import Request, Tuned
from stratakv.tune.sensitivity import agreement, cells_json, split_half


def evidence_of(tuned: Tuned, text: Text, request: Request, command: str) -> dict[str, Any]:
    """Everything that the choice rests on. text: the tuning text."""
    profile, model = tuned.profile, tuned.found.model
    gap = model.predict(tuned.found.pairs) - tuned.found.allocation.cost
    size = profile.bytes_per_token if request.budget.context else request.budget.size
    return evidence_json(
        profile,
        budget={
            "text": request.budget.text,
            "bytes_per_token": size,
            "bpv": profile.bpv * size / profile.bytes_per_token,
            "bytes": request.budget.size,
            "context": request.budget.context,
            "floors": {str(ordinal): list(pair) for ordinal, pair in request.floors.items()},
        },
        types=tuned.types,
        effort=request.effort,
        text=text_json(
            text.name,
            text.sha256,
            context=tuned.split.validate.context,
            select=len(tuned.split.select),
            validate=len(tuned.split.validate.ids),
        ),
        machine=machine(),
        command=command,
        stages={name: (cost.seconds, cost.passes) for name, cost in tuned.measurer.costs.items()},
        sensitivity={
            "operating_point": pair_text(tuned.operating),
            "cells": cells_json(tuned.sensitivity),
            "gradient_chunks": len(tuned.sensitivity.damage),
            "ablation_chunks": 0 if tuned.sensitivity.added is None else len(tuned.sensitivity.added),
            "split_half": split_half(tuned.sensitivity),
            "agreement": agreement(tuned.sensitivity),
        },
        front=_with_spans(tuned.front, tuned.problem.spans, profile.geometry, tuned.split.validate.context),
        damages=model.damages(),
        certificate={
            **tuned.found.allocation.certificate,
            "optimal": tuned.found.pairs == tuned.found.allocation.pairs
            and tuned.found.allocation.certificate["optimal"],
            "gap": max(0.0, gap),
            "of": "the predicted KLD; the chosen assignment is the one with the lowest measured KLD among the candidates",
        },
        chosen={"kld_where_chosen": tuned.found.kld},
        rows=tuned.rows,
        reference=tuned.reference.name,
        warnings=tuned.warnings,
        told=tuned.told,
        more={"metrics_version": METRICS_VERSION, "spans": layer_spans_json(tuned.problem.spans)},
    )


def _with_spans(
    front: Sequence[dict[str, Any]], spans: LayerSpans, geometry: ModelGeometry, context: int
) -> list[dict[str, Any]]:
    """The points with their bytes at the tuning's context too, as rows count them; as they are without spans."""
    if not spans:
        return list(front)

    def counted(point: dict[str, Any]) -> int:
        pairs = tuple((k, v) for k, v in point["pairs"])
        profile = Profile("", geometry, pairs, spans=fitted(spans, geometry, pairs))
        return profile.bytes_per_token_at(context)

    return [{**point, "bytes_per_token_at_context": counted(point)} for point in front]


def format_evidence(data: Mapping[str, Any]) -> str:
    """What a terminal shows: the choice, what it is worth where it wasn't chosen, what it cost to find."""
    lines = [f"{data['name']} for {data['model']['name']}: {data['chosen']['bytes_per_token']:,} bytes a token, "
             f"{data['chosen']['bpv']:.3f} bpv (budget {data['budget']['text']})"]  # fmt: skip
    lines += [f"  KV layer {ordinal:>3}  {pair_text((k, v))}" for ordinal, (k, v) in enumerate(data["chosen"]["pairs"])]
    if data.get("spans"):
        spans = layer_spans_text(layer_spans_from_json(data["spans"]))
        lines.append(f"spans: {spans}; bytes a token and bpv are those outside of them")
    lines += [f"{name.replace('_', ' ')}: {words}" for name, words in said(data)]
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
