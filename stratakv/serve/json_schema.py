"""JSON schemas before they bind an answer: closed as llama.cpp closes them, what can't bind found, errors given a place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[str | int, ...]

_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_ONES = ("items", "additionalProperties", "additionalItems")
# Keywords that llguidance knows no way to bind. Each only narrows what is allowed: without it an answer may be too wide
_UNBOUND = ("not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames",
            "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties",
            "contentEncoding", "contentMediaType", "contentSchema")  # fmt: skip
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
_LOOKS_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?:[=!>]|<[=!])|\\[1-9])")
_SECONDS = 1.0  # to look for the place of an error: all answers wait meanwhile


def closed(schema: Any) -> Any:
    """The same schema, where objects with named properties allow no others unless they say so.

    Left open: parts that are combined (allOf, or anyOf beside properties), which see each other's properties as foreign.
    """
    return _closed(schema, _combined_references(schema), "#", False)


def unbound(schema: Any) -> list[tuple[Path, str]]:
    """(path, keyword) of all that can't bind an answer: it is written as if they were not there."""
    found: list[tuple[Path, str]] = []
    for path, part in _all_parts(schema):
        found += [(path, key) for key in _UNBOUND if key in part and part[key] not in (False, None)]
        if isinstance(part.get("format"), str) and part["format"] not in _FORMATS:
            found.append((path, "format"))
        if isinstance(part.get("pattern"), str) and _LOOKS_AROUND.search(part["pattern"]):
            found.append((path, "pattern"))
    return found


def without(schema: Any, paths: list[tuple[Path, str]]) -> Any:
    """A copy without these keywords."""
    for path, keyword in paths:
        at = _at(schema, path)
        schema = _replaced(schema, path, {key: value for key, value in at.items() if key != keyword})
    return schema


def place_of(path: Path, keyword: str | None = None) -> str:
    """A path in words: `properties.tags: uniqueItems`."""
    own = path[1:] if path[:1] == ("$defs",) and str(path[1:2]).startswith("('tools.") else path  # call_schema's names
    where = ".".join(map(str, own))
    return f"{where}: {keyword}" if where and keyword else keyword or where


def explained(schema: Any, problem_of: Callable[[Any], str]) -> str:
    """What is wrong with a schema, and where. problem_of: what the grammar says about a schema, empty: nothing."""
    problem = problem_of(schema)
    path: Path = ()
    end = time.monotonic() + _SECONDS

    def to_blame(at: Path, part: Any) -> bool:
        """Whether something else is said with this part in that place."""
        return time.monotonic() < end and problem_of(_replaced(schema, at, part)) != problem

    part: Any = schema
    while isinstance(part, dict):
        step = next((step for step, _ in _parts(part) if to_blame((*path, *step), {})), None)
        if step is None:
            break
        path = (*path, *step)
        part = _at(schema, path)
    keys = part if isinstance(part, dict) else {}
    keyword = next((key for key in keys if to_blame(path, {k: v for k, v in keys.items() if k != key})), None)
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    reason = next(
        (line.removeprefix("error: ") for line in lines if line.startswith("error: ")), (lines or ["wrong"])[0]
    )
    where = place_of(path, keyword)
    return f"{where}: {reason}" if where else reason


def _parts(schema: dict[str, Any]) -> Iterator[tuple[Path, Any]]:
    """(way, schema) of those directly within a schema, without those that can't bind."""
    for key in _MAPS:
        if isinstance(schema.get(key), dict):
            yield from (((key, name), part) for name, part in schema[key].items())
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            yield from (((key, number), part) for number, part in enumerate(schema[key]))
    for key in _ONES:
        if isinstance(schema.get(key), dict):
            yield (key,), schema[key]


def _all_parts(schema: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    waiting: list[tuple[Path, Any]] = [((), schema)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, dict):
            yield path, part
            waiting += [((*path, *step), inner) for step, inner in _parts(part)]


def _at(schema: Any, path: Path) -> Any:
    for step in path:
        schema = schema[step]
    return schema


def _replaced(schema: Any, path: Path, part: Any) -> Any:
    if not path:
        return part
    copy: Any = list(schema) if isinstance(schema, list) else dict(schema)
    copy[path[0]] = _replaced(schema[path[0]], path[1:], part)
    return copy


def _combines(schema: dict[str, Any], key: str) -> bool:
    """Whether the members of allOf, anyOf or oneOf describe parts of one object."""
    members = schema.get(key)
    if not isinstance(members, list):
        return False
    return "properties" in schema or "$ref" in schema or (key == "allOf" and len(members) > 1)


def _combined_references(schema: Any) -> set[str]:
    """What members that are combined refer to."""
    found = set()
    for _, part in _all_parts(schema):
        for key in ("allOf", "anyOf", "oneOf"):
            if _combines(part, key):
                found |= {str(member["$ref"]) for member in part[key] if isinstance(member, dict) and "$ref" in member}
        if "$ref" in part and "properties" in part:
            found.add(str(part["$ref"]))
    return found


def _closed(schema: Any, combined: set[str], pointer: str, is_open: bool) -> Any:
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)

    def inner(part: Any, *step: str | int) -> Any:
        inside = step[0] in ("allOf", "anyOf", "oneOf") and (is_open or _combines(schema, str(step[0])))
        return _closed(part, combined, f"{pointer}/" + "/".join(map(str, step)), inside)

    for key in _MAPS:
        if isinstance(schema.get(key), dict):
            out[key] = {name: inner(part, key, name) for name, part in schema[key].items()}
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            out[key] = [inner(part, key, number) for number, part in enumerate(schema[key])]
    for key in _ONES:
        if isinstance(schema.get(key), dict):
            out[key] = inner(schema[key], key)
    named = schema.get("properties")
    if not isinstance(named, dict) or any(
        key in schema for key in ("allOf", "anyOf", "oneOf", "$ref", "enum", "const")
    ):
        return out
    out.setdefault("type", "object")
    says = ("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties", "propertyNames")
    required = schema.get("required")
    others = isinstance(required, list) and any(name not in named for name in required)
    if not is_open and pointer not in combined and not others and not any(key in schema for key in says):
        out["additionalProperties"] = False
    return out
