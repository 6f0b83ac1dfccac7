"""JSON files read and checked: one that lacks something is one line, not a traceback."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratakv.errors import UserError

Data = dict[str, Any]

# Specs of fields: a type, None for null, a list of one kind, or of several: so many, each of its kind; a mapping, a set of words,
# a tuple of choices, ABSENT among them for a field that may be missing. Further fields are welcome.
ABSENT = object()
NUMBER = (int, float)
INTERVAL = ([NUMBER, NUMBER], None)
PAIRS = [[str, str]]
_KLD = {
    "kld_mean": NUMBER,
    "kld_mean_ci95": INTERVAL,
    "kld_diff": NUMBER,
    "kld_diff_ci95": INTERVAL,
    "top1": NUMBER,
    "ppl_diff": NUMBER,
    "ppl_diff_ci95": INTERVAL,
}
ROW = {
    "name": str,
    "profile": PAIRS,
    "bytes_per_token": int,
    "bpv": NUMBER,
    **_KLD,
    "far": ({**_KLD, "verdict_kind": str}, None, ABSENT),  # files from before far predictions lack it
}
FAR = ({"chunks": int, "words": str}, ABSENT)


def read_checked(path: str | Path, schema: str, spec: Mapping[str, Any], wanted: str) -> Data:
    """A JSON object of this schema with the fields of `spec`. wanted: what errors tell the user to give.

    Raises UserError for what can't be read, is of another schema, or lacks a field.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give {wanted}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise UserError(f"{path} is not JSON ({error}): give {wanted}") from error
    found = data.get("schema") if isinstance(data, dict) else None
    if found != schema:
        raise UserError(f"{path}: schema is {found!r}, {schema!r} is needed: give {wanted}")
    problem = first_problem(data, spec)
    if problem:
        raise UserError(f"{path}: {problem}: give {wanted}")
    return dict(data)


def first_problem(value: Any, spec: Any, where: str = "") -> str | None:
    """The first thing that is not as `spec` says, in words; None when all is."""
    if isinstance(spec, tuple):
        found = [first_problem(value, one, where) for one in spec if one is not ABSENT]
        inside = [problem for problem in found if problem and isinstance(value, dict)]
        return None if None in found else inside[0] if inside else f"{where} is {_shown(value)}"
    if isinstance(spec, Mapping):
        if not isinstance(value, dict):
            return f"{where} is {_shown(value)}, not an object"
        for key, inner in spec.items():
            at = f"{where}.{key}" if where else key
            if key not in value:
                if isinstance(inner, tuple) and ABSENT in inner:
                    continue
                return f"{at} is missing"
            if problem := first_problem(value[key], inner, at):
                return problem
        return None
    if isinstance(spec, list):
        if not isinstance(value, list):
            return f"{where} is {_shown(value)}, not a list"
        if len(spec) > 1 and len(value) != len(spec):
            return f"{where} is {_shown(value)}, not {len(spec)} values"
        kinds = spec if len(spec) > 1 else spec * len(value)
        problems = (
            first_problem(each, kind, f"{where}[{index}]")
            for index, (each, kind) in enumerate(zip(value, kinds, strict=True))
        )
        return next((problem for problem in problems if problem), None)
    if isinstance(spec, frozenset):
        found_word = isinstance(value, str) and value in spec
        return None if found_word else f"{where} is {_shown(value)}, not {' or '.join(sorted(spec))}"
    if spec is None:
        return None if value is None else f"{where} is {_shown(value)}"
    right = isinstance(value, spec) and (spec is bool or not isinstance(value, bool))
    return None if right else f"{where} is {_shown(value)}, not {spec.__name__}"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
