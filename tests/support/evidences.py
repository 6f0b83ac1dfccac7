"""Made-up evidence of a tuning and a judgement of it, for everything that is made from their JSON."""

from __future__ import annotations

import math
from typing import Any

from comparisons import comparison

from stratakv.measure.verdicts import judge, pareto_front

TRIED = ("turbo2", "turbo3", "turbo5", "q8_0")
SIZES = {"turbo2": 68, "turbo3": 100, "turbo4": 132, "turbo5": 164, "q8_0": 272}  # 2 kv heads of 128
WORTH = {"turbo2": 1e-3, "turbo3": 2e-4, "turbo4": 0.0, "turbo5": -8e-5, "q8_0": -1.1e-4}
CHOSEN = ("turbo5", "turbo3", "turbo4", "turbo4")


def evidence(layers: int = 12, fingerprint: str = "0" * 64) -> dict[str, Any]:
    """A "stratakv/tune/1": V of layer 0 and K of the last layer matter most."""
    pairs = [["turbo4", "turbo5"], *(["turbo4", "turbo4"] for _ in range(layers - 2)), ["turbo4", "turbo3"]]
    size = sum(SIZES[name] for pair in pairs for name in pair)
    rows = [
        {**row, "family": "uniform", "profile": [["turbo4", "turbo4"]] * layers}
        for row in comparison()["rows"]
        if not row["name"].startswith(("mode", "edges"))
    ]
    return {
        "schema": "stratakv/tune/1",
        "version": "0.1.0",
        "name": "tuned-turbo4",
        "model": {"name": "made-up", "fingerprint": fingerprint, "kv_layers": layers},
        "geometry": [
            {"ordinal": i, "layer": i, "role": "full", "head_dim": [128, 128], "kv_heads": 2} for i in range(layers)
        ],
        "budget": {"text": "turbo4", "bytes_per_token": 264 * layers, "bpv": 4.125},
        "types": ["turbo4", *TRIED],
        "bits_per_value": {"f16": 16.0, **{name: size / 32 for name, size in SIZES.items()}},
        "effort": "normal",
        "text": {
            "name": "tune.txt",
            "sha256": "2" * 64,
            "context": 512,
            "chunk": 512,
            "select_chunks": 8,
            "validate_chunks": 8,
        },
        "machine": {"cpu": "made-up CPU", "cores": 2},
        "command": "stratakv tune -m embedded --budget turbo4",
        "cost": {
            "seconds": 300.5,
            "forward_passes": 900,
            "stages": [{"name": "ablation", "seconds": 300.5, "forward_passes": 900}],
        },
        "headroom": {"gain": 0.31, "words": "mixed precision can save at most about 31 % of the KLD here"},
        "sensitivity": {
            "operating_point": "turbo4",
            "cells": [_cell(i, side, name, layers) for name in TRIED for side in "kv" for i in range(layers)],
            "split_half": {"spearman": 0.97, "by_type": {}},
            "agreement": {"all": 0.95, "by_type": {}},
        },
        "front": [_front_point(name, layers) for name in SIZES],
        "fidelity": {
            "points": [
                {"predicted": 1e-3 * 1.1**i, "measured": 1.02e-3 * 1.1**i, "bytes_per_token": 3000} for i in range(20)
            ],
            "r2": 0.98,
            "bias": 0.02,
        },
        "certificate": {"method": "dynamic programming", "optimal": True, "gap": 0.0},
        "chosen": {"pairs": pairs, "bytes_per_token": size, "bpv": size / (64 * layers)},
        "rows": rows,
        "reference": "turbo4",
        "warnings": [],
    }


def judgement(change: float = -0.32, *, far: bool = False) -> dict[str, Any]:
    """A "stratakv/judge/1" in which the tuned profile's KLD is `change` of turbo4's lower. far: far predictions too."""
    data = comparison(far=far)
    families = {"mode 1": "mode", "mode 7": "mode", "edges3": "rule"}
    rows = [
        {**row, "profile": [["turbo4", "turbo4"]] * 12, "family": families.get(row["name"], "uniform")}
        for row in data["rows"]
    ]
    reference = next(row for row in rows if row["name"] == "turbo4")
    rows.append(_like(reference, "tuned-turbo4", 1 + change, "tuned"))
    rows += [_like(reference, f"permutation {i + 1}", 1.2 + 0.05 * i, "permutation") for i in range(20)]
    for row, on_front in zip(rows, pareto_front([(r["bytes_per_token"], r["kld_mean"]) for r in rows]), strict=True):
        kind, words = judge(row, reference, is_reference=row is reference)
        row.update(pareto=on_front, verdict_kind=kind, verdict=words)
    return {
        **data,
        "schema": "stratakv/judge/1",
        "command": "stratakv judge tuned-turbo4.profile.json -m embedded -f text.txt",
        "machine": {"cpu": "made-up CPU", "cores": 2},
        "tuned": "tuned-turbo4",
        "rows": rows,
        "equal_bytes": {"at": reference["bytes_per_token"], "tolerance": 0.005},
        "claims": [
            {
                "claim": "KLD at least 30 % lower than uniform turbo4",
                "holds": change < -0.3,
                "value": change,
                "ci95": [change - 0.03, change + 0.03],
            },
            {"claim": "lower than every rule at those bytes", "holds": None, "value": None, "ci95": None},
        ],
    }


def _cell(ordinal: int, side: str, name: str, layers: int) -> dict[str, Any]:
    weight = 8.0 if (ordinal, side) in ((0, "v"), (layers - 1, "k")) else 1.0 + 0.3 * math.sin(ordinal)
    kld = WORTH[name] * weight
    return {
        "ordinal": ordinal,
        "side": side,
        "type": name,
        "kld": kld,
        "ci95": [kld - 2e-5, kld + 2e-5],
        "gradient": kld,
    }


def _front_point(name: str, layers: int) -> dict[str, Any]:
    size = 2 * SIZES[name] * layers
    kld = 3e-3 * 4.0 ** ((132 - SIZES[name]) / 32)
    measured = name in ("turbo3", "turbo4")
    return {
        "bytes_per_token": size,
        "bpv": size / (64 * layers),
        "predicted_kld": kld,
        "pairs": [[name, name]] * layers,
        "kld": 1.05 * kld if measured else None,
        "kld_ci95": [kld, 1.1 * kld] if measured else None,
    }


def _like(row: dict[str, Any], name: str, factor: float, family: str) -> dict[str, Any]:
    far = {"far": {**row["far"], **_changed(row["far"], factor)}} if "far" in row else {}
    return {**row, **far, "name": name, "family": family, **_changed(row, factor)}


def _changed(row: dict[str, Any], factor: float) -> dict[str, Any]:
    kld = factor * row["kld_mean"]
    change = kld - row["kld_mean"]
    return {
        "verdict_kind": "better" if change < 0 else "worse",
        "kld_mean": kld,
        "kld_mean_ci95": [0.9 * kld, 1.1 * kld],
        "kld_diff": change,
        "kld_diff_ci95": [change - 1e-4, change + 1e-4],
    }
