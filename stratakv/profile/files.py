"""Profile files (schema "stratakv/profile/2"): saved atomically, loaded strictly. Files of schema 1, which has no spans, load.

A file is refused, with its name, the field and what is allowed, when any key is unknown or missing, a type or its
version is not ours, or the model at hand is another one. Warnings of the resolving are not stored: the file says what
each layer gets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratakv.errors import UserError
from stratakv.files import write_file
from stratakv.kvtypes import kv_type, type_names
from stratakv.profile.geometry import LayerGeometry, ModelGeometry
from stratakv.profile.profile import Pair, Profile
from stratakv.profile.spans import NONE, Spans
from stratakv.profile.storage import LayerStorage

SCHEMA = "stratakv/profile/2"
WITHOUT_SPANS = "stratakv/profile/1"
_GIVE = "give a profile file that `stratakv tune` or `export --to stratakv` of this version wrote"


def profile_to_json(profile: Profile) -> dict[str, Any]:
    """The profile as the JSON object that a file holds."""
    layers = [
        {**layer.fields, "k": k, "v": v, "spans": spans.to_json()}
        for layer, (k, v), spans in zip(profile.geometry.kv_layers, profile.pairs, profile.spans, strict=True)
    ]
    return {
        "schema": SCHEMA,
        "name": profile.name,
        "model": {
            "fingerprint": profile.fingerprint,
            "name": profile.geometry.name,
            "kv_layers": len(layers),
        },
        "layers": layers,
        "types": _types_of(profile.pairs, profile.spans),
        "bytes_per_token": profile.bytes_per_token,
        "bpv": profile.bpv,
        "evidence": None if profile.evidence is None else dict(profile.evidence),
    }


def save_profile(profile: Profile, path: str | Path) -> None:
    """Write the file in one step: either the whole new file is there afterwards, or what was there before.

    Raises UserError when the place cannot be written, ValueError when the evidence is not JSON.
    """
    write_file(path, (json.dumps(profile_to_json(profile), indent=1, allow_nan=False) + "\n").encode())


def load_profile(path: str | Path, geometry: ModelGeometry, fingerprint: str | None = None) -> Profile:
    """Read a profile for the model at hand.

    fingerprint: of that model; compared when both sides know one. Raises UserError naming file, field and what is
    allowed.
    """
    path = Path(path)
    reader = _Reader(path)
    data = reader.fields(
        _read_json(path),
        "the file",
        {
            "schema": str,
            "name": str,
            "model": dict,
            "layers": list,
            "types": dict,
            "bytes_per_token": int,
            "bpv": float,
            "evidence": (dict, type(None)),
        },
        optional=("evidence",),
    )
    if data["schema"] not in (SCHEMA, WITHOUT_SPANS):
        raise reader.error("schema", f"is {data['schema']!r}, allowed are {SCHEMA!r} and {WITHOUT_SPANS!r}: {_GIVE}")
    reader.check_model(data["model"], geometry, fingerprint)
    pairs, spans = reader.layers(data["layers"], geometry, data["schema"])
    reader.check_types(data["types"], pairs, spans)
    try:
        profile = Profile(
            data["name"],
            geometry,
            pairs,
            fingerprint=data["model"]["fingerprint"] or fingerprint,
            evidence=data.get("evidence"),
            spans=spans,
        )
    except UserError as error:
        raise UserError(f"profile {path}: {error}") from None
    if data["bytes_per_token"] != profile.bytes_per_token:
        raise reader.error("bytes_per_token", f"is {data['bytes_per_token']}, its types take {profile.bytes_per_token}")
    if abs(data["bpv"] - profile.bpv) > 1e-3:
        raise reader.error("bpv", f"is {data['bpv']}, its types take {profile.bpv:.4f}")
    return profile


def model_of(path: Path) -> tuple[str | None, str]:
    """Fingerprint and name of the model that a profile file is for; nothing else is checked. Raises UserError where it names
    none."""
    data = _read_json(path)
    try:
        return data["model"]["fingerprint"], str(data["model"]["name"])
    except (KeyError, TypeError) as error:
        raise UserError(f"profile {path} names no model: {_GIVE}") from error


class _Reader:
    """Checks of one file; every error names it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, field: str, problem: str) -> UserError:
        return UserError(f"profile {self.path}: {field} {problem}")

    def fields(
        self, value: Any, where: str, kinds: Mapping[str, Any], optional: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """An object with exactly these keys, each of its kind; bool is no number, an int will do for a float."""
        if not isinstance(value, dict):
            raise self.error(where, f"is {_shown(value)}, it must be an object with {', '.join(kinds)}")
        for key in value:
            if key not in kinds:
                raise self.error(where, f"has an unknown key {key!r}, allowed are {', '.join(kinds)}")
        for key, kind in kinds.items():
            if key not in value:
                if key in optional:
                    continue
                raise self.error(where, f"lacks the key {key!r}")
            wanted = (int, float) if kind is float else kind
            if isinstance(value[key], bool) or not isinstance(value[key], wanted):
                raise self.error(f"{where}, {key}", f"is {_shown(value[key])}, it must be {_KINDS[kind]}")
        return value

    def check_model(self, value: dict[str, Any], geometry: ModelGeometry, fingerprint: str | None) -> None:
        model = self.fields(value, "model", {"fingerprint": (str, type(None)), "name": str, "kv_layers": int})
        theirs = model["fingerprint"]
        if theirs and fingerprint and theirs != fingerprint:
            raise self.error(
                "model.fingerprint",
                f"is {theirs} ({model['name']}), the model at hand is {fingerprint} ({geometry.name}): "
                "use the profile with the model it was made for, or make one for this model",
            )
        if model["kv_layers"] != len(geometry.kv_layers):
            raise self.error(
                "model.kv_layers",
                f"is {model['kv_layers']} ({model['name']}), "
                f"the model at hand ({geometry.name}) has {len(geometry.kv_layers)}",
            )

    def layers(
        self, rows: list[Any], geometry: ModelGeometry, schema: str
    ) -> tuple[tuple[Pair, ...], tuple[Spans, ...]]:
        if len(rows) != len(geometry.kv_layers):
            raise self.error("layers", f"has {len(rows)} entries, the model has {len(geometry.kv_layers)} KV layers")
        read = [
            self._layer(f"layers[{index}]", row, layer, schema)
            for index, (row, layer) in enumerate(zip(rows, geometry.kv_layers, strict=True))
        ]
        return tuple(pair for pair, _ in read), tuple(spans for _, spans in read)

    def _layer(self, where: str, value: Any, layer: LayerGeometry, schema: str) -> tuple[Pair, Spans]:
        kinds: dict[str, Any] = {
            "layer": int,
            "ordinal": int,
            "role": str,
            "head_dim": list,
            "kv_heads": int,
            "k": str,
            "v": str,
        }
        if schema != WITHOUT_SPANS:
            kinds["spans"] = (dict, type(None))
        elif isinstance(value, dict) and "spans" in value:
            raise self.error(where, f"has spans, which schema {WITHOUT_SPANS!r} has not: they came with {SCHEMA!r}")
        row = self.fields(value, where, kinds)
        for key, expected in layer.fields.items():
            if row[key] != expected:
                raise self.error(f"{where}.{key}", f"is {row[key]!r}, the model at hand has {expected!r}")
        for side in ("k", "v"):
            if row[side] not in type_names():
                raise self.error(
                    f"{where}.{side}", f"is the unknown type {row[side]!r}, allowed are {', '.join(type_names())}"
                )
        return (row["k"], row["v"]), self._spans(f"{where}.spans", row.get("spans"), layer, (row["k"], row["v"]))

    def _spans(self, where: str, value: Any, layer: LayerGeometry, pair: Pair) -> Spans:
        if value is None:
            return NONE
        row = self.fields(value, where, {"recent": int, "recent_type": str, "first": int, "first_type": str})
        try:
            spans = Spans(**row)
            problem = LayerStorage.of(pair, spans).refuses(layer)
        except UserError as error:
            raise self.error(where, f"can't be: {error}") from None
        if problem or not spans:
            raise self.error(where, f"can't be: {problem or 'no pages; write null for no spans'}")
        return spans

    def check_types(self, value: dict[str, Any], pairs: tuple[Pair, ...], spans: tuple[Spans, ...]) -> None:
        expected = _types_of(pairs, spans)
        rows = self.fields(value, "types", dict.fromkeys(expected, dict))
        for name, ours in expected.items():
            row = self.fields(rows[name], f"types.{name}", {"version": int, "rotation_seed": (int, type(None))})
            for key, allowed in ours.items():
                if row[key] != allowed:
                    raise self.error(f"types.{name}.{key}", f"is {row[key]}, this version of stratakv has {allowed}")


_KINDS: dict[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    dict: "an object",
    list: "a list",
    (str, type(None)): "a text or null",
    (int, type(None)): "a whole number or null",
    (dict, type(None)): "an object or null",
}


def _types_of(pairs: tuple[Pair, ...], spans: tuple[Spans, ...]) -> dict[str, dict[str, int | None]]:
    used = dict.fromkeys([*(name for pair in pairs for name in pair), *(each.type for each in spans if each)])
    return {name: {"version": kv_type(name).version, "rotation_seed": kv_type(name).rotation_seed} for name in used}


def _read_json(path: Path) -> Any:
    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise UserError(f"profile {path}: the key {twice!r} is given twice")
        return dict(items)

    def no_constant(name: str) -> Any:
        raise UserError(f"profile {path}: {name} is not a number that JSON allows")

    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except OSError as error:
        raise UserError(f"cannot read the profile {path}: {error.strerror or error}; {_GIVE}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"profile {path} is not a text file in UTF-8: {_GIVE}") from error
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise UserError(f"profile {path} is not JSON ({error}): {_GIVE}") from error


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
