"""What writes evidence and what reads it agree: one list of fields stands behind both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evidences import evidence
from geometries import plain

from stratakv.errors import UserError
from stratakv.evidence import read_evidence
from stratakv.evidence.tuning import bits_of, cell_json, damages_of, evidence_json, point_json, said, text_json
from stratakv.profile import resolve

PROFILE = resolve("turbo4", plain(3))
LAYERS = len(PROFILE.pairs)
TOLD = {"headroom": {"gain": 0.5, "words": "half"}, "fidelity": {"points": [], "r2": None, "bias": None}}
DAMAGES = [{("turbo4", "turbo4"): 1e-3 * (layer + 1)} for layer in range(LAYERS)]


def written(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "budget": {"text": "turbo4", "bytes_per_token": PROFILE.bytes_per_token, "bpv": PROFILE.bpv},
        "types": ["turbo4"],
        "effort": "normal",
        "text": text_json("t.txt", "0" * 64, context=512, select=2, validate=3),
        "machine": {"cpu": "made-up"},
        "command": "stratakv tune",
        "stages": {"gradients": (1.234, 8), "ablation": (2.0, 4)},
        "sensitivity": {
            "operating_point": "turbo4",
            "cells": [cell_json(0, "k", "turbo4", kld=None, interval=None, gradient=0.1)],
        },
        "front": [point_json(PROFILE, 0.1)],
        "damages": DAMAGES,
        "certificate": {},
        "chosen": {},
        "rows": [],
        "reference": "turbo4",
        "warnings": [],
        "told": TOLD,
        "more": {"through": "nothing"},
    }
    return evidence_json(PROFILE, **{**fields, **changes})


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    data = written()
    (tmp_path / "e.json").write_text(json.dumps(data))
    read = read_evidence(tmp_path / "e.json")
    assert read == json.loads(json.dumps(data))
    assert damages_of(read) == tuple(DAMAGES)
    assert said(read) == [("headroom", "half")]
    assert read["cost"] == {
        "seconds": 3.23,
        "forward_passes": 12,
        "stages": [
            {"name": "gradients", "seconds": 1.23, "forward_passes": 8},
            {"name": "ablation", "seconds": 2.0, "forward_passes": 4},
        ],
    }


def test_bits_are_the_types_own_in_this_model() -> None:
    data = written()
    assert data["bits_per_value"] == {"f16": 16.0, "turbo4": PROFILE.bpv}
    del data["bits_per_value"]
    assert bits_of(data) == {"f16": 16.0, "turbo4": PROFILE.bpv}, "a file that an older version wrote"
    data["bits_per_value"] = {"turbo4": 1.0}
    assert bits_of(data) == {"f16": 16.0, "turbo4": 1.0}
    data["chosen"]["pairs"][0] = ["turbo99", "turbo4"]
    with pytest.raises(UserError, match="unknown KV type 'turbo99'"):
        bits_of(data)


def test_evidence_without_damages_has_none() -> None:
    assert damages_of(evidence()) == ()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"budget": {"text": "turbo4"}}, "budget.bytes_per_token is missing"),
        ({"front": [{}]}, r"front\[0\].bytes_per_token is missing"),
        ({"reference": None}, "reference is null"),
        ({"told": {**TOLD, "headroom": {"gain": float("nan"), "words": ""}}}, "not JSON compliant"),
        ({"told": {"headroom": TOLD["headroom"]}}, "fidelity is missing"),
        ({"told": {**TOLD, "second_opinion": {"passes": 4}}}, "second_opinion.contexts is missing"),
        (
            {"told": {**TOLD, "span_choice": {"options": [{}], "words": ""}}},
            r"span_choice.options\[0\].spans is missing",
        ),
    ],
)
def test_what_could_not_be_read_is_not_written(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        written(**changes)
