"""What `tune` and `judge` wrote, read and checked: a file that lacks something is one line, not a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratakv.errors import UserError

EVIDENCE_SCHEMA = "stratakv/tune/1"
JUDGE_SCHEMA = "stratakv/judge/1"
FAMILIES = ("tuned", "uniform", "mode", "rule", "permutation")

Data = dict[str, Any]

# What is read here: further fields are welcome. A type, None for null, a list of one kind, a mapping, a tuple of choices.
_NUMBER = (int, float)
_INTERVAL = ([_NUMBER], None)
_PAIRS = [[str]]
_ROW = {
    "name": str,
    "profile": _PAIRS,
    "bytes_per_token": int,
    "bpv": _NUMBER,
    "kld_mean": _NUMBER,
    "kld_mean_ci95": _INTERVAL,
    "kld_diff": _NUMBER,
    "kld_diff_ci95": _INTERVAL,
    "top1": _NUMBER,
    "ppl_diff": _NUMBER,
    "ppl_diff_ci95": _INTERVAL,
}
_EVIDENCE = {
    "name": str,
    "model": {"name": str, "fingerprint": (str, None), "kv_layers": int},
    "geometry": [{"ordinal": int, "layer": int, "role": str, "head_dim": [int], "kv_heads": int}],
    "budget": {"text": str, "bytes_per_token": int, "bpv": _NUMBER},
    "text": {"name": str, "sha256": str, "context": int, "chunk": int},
    "machine": dict,
    "command": str,
    "cost": {
        "seconds": _NUMBER,
        "forward_passes": _NUMBER,
        "stages": [{"name": str, "seconds": _NUMBER, "forward_passes": _NUMBER}],
    },
    "headroom": {"gain": _NUMBER, "words": str},
    "sensitivity": {
        "operating_point": str,
        "cells": [
            {
                "ordinal": int,
                "side": str,
                "type": str,
                "kld": (*_NUMBER, None),
                "ci95": _INTERVAL,
                "gradient": (*_NUMBER, None),
            }
        ],
    },
    "front": [
        {
            "bytes_per_token": int,
            "bpv": _NUMBER,
            "predicted_kld": _NUMBER,
            "pairs": _PAIRS,
            "kld": (*_NUMBER, None),
            "kld_ci95": _INTERVAL,
        }
    ],
    "fidelity": {
        "points": [{"predicted": _NUMBER, "measured": _NUMBER, "bytes_per_token": int}],
        "r2": (*_NUMBER, None),
        "bias": (*_NUMBER, None),
    },
    "certificate": dict,
    "chosen": {"pairs": _PAIRS, "bytes_per_token": int, "bpv": _NUMBER},
    "rows": [_ROW],
    "reference": str,
    "warnings": [str],
}
_JUDGE = {
    "tuned": str,
    "model": {"name": str, "fingerprint": (str, None)},
    "text": {"name": str, "sha256": str, "tokens_scored": int},
    "context": int,
    "chunk": int,
    "chunks": int,
    "compute_dtype": str,
    "command": str,
    "machine": dict,
    "reference": str,
    "rows": [{**_ROW, "family": str}],
    "equal_bytes": {"at": int, "tolerance": _NUMBER},
    "claims": [{"claim": str, "holds": (bool, None), "value": (*_NUMBER, None), "ci95": _INTERVAL}],
    "warnings": [str],
}


def read_evidence(path: str | Path) -> Data:
    """The evidence that `tune` wrote beside a profile. Raises UserError for what is missing or of another kind."""
    return _read(path, EVIDENCE_SCHEMA, _EVIDENCE, "an evidence file that `stratakv tune` wrote")


def read_judge(path: str | Path) -> Data:
    """What `judge` measured on a text that the tuning never saw. Raises UserError as `read_evidence` does."""
    return _read(path, JUDGE_SCHEMA, _JUDGE, "a file that `stratakv judge --json` wrote")


def _read(path: str | Path, schema: str, spec: Mapping[str, Any], wanted: str) -> Data:
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give {wanted}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}): give {wanted}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise UserError(f"{path}: schema is {found!r}, {schema!r} is needed: give {wanted}")
    problem = _problem(data, spec, "")
    if problem:
        raise UserError(f"{path}: {problem}: give {wanted}")
    return dict(data)


def _problem(value: Any, spec: Any, where: str) -> str | None:
    """The first thing that is not as `spec` says, in words; None when all is."""
    if isinstance(spec, tuple):
        return None if any(_problem(value, one, where) is None for one in spec) else f"{where} is {_shown(value)}"
    if isinstance(spec, Mapping):
        if not isinstance(value, dict):
            return f"{where} is {_shown(value)}, not an object"
        for key, inner in spec.items():
            at = f"{where}.{key}" if where else key
            if key not in value:
                return f"{at} is missing"
            if problem := _problem(value[key], inner, at):
                return problem
        return None
    if isinstance(spec, list):
        if not isinstance(value, list):
            return f"{where} is {_shown(value)}, not a list"
        problems = (_problem(each, spec[0], f"{where}[{index}]") for index, each in enumerate(value))
        return next((problem for problem in problems if problem), None)
    if spec is None:
        return None if value is None else f"{where} is {_shown(value)}"
    right = isinstance(value, spec) and (spec is bool or not isinstance(value, bool))
    return None if right else f"{where} is {_shown(value)}, not {spec.__name__}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
