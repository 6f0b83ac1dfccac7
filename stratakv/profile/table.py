"""What every layer gets, as data ("stratakv/show/1") and as text made from that data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stratakv.errors import UserError
from stratakv.profile.geometry import LayerGeometry
from stratakv.profile.modes import fork_bytes_per_token
from stratakv.profile.profile import Profile
from stratakv.profile.spans import Spans
from stratakv.profile.storage import LayerStorage
from stratakv.sizes import size_text

SCHEMA = "stratakv/show/1"
CONTEXTS = (512, 4096, 32768, 131072)
_WIDTH = 120
_LEFT_ALONE = {
    "linear": "linear attention keeps a state of fixed size, there is no K and V to store",
    "shared": "reads the cache of another layer",
}


def show_table(profile: Profile, contexts: Sequence[int] = (), warnings: Iterable[str] = ()) -> dict[str, Any]:
    """The resolved table as JSON data; all bytes are of one sequence.

    contexts: tokens to give the cache's size at, beside the usual ones that the model allows. warnings: more of them,
    shown before the profile's own. Raises UserError for a context below 1, or one that is shorter than the profile's spans.
    """
    limit = profile.geometry.context
    told = [*warnings, *profile.warnings]
    for context in contexts:
        if context < 1:
            raise UserError(f"context {context}: it must be at least 1 token")
        profile.check_context(context)
        if 0 < limit < context:
            told.append(
                f"context {context} is beyond the model's {limit}: it was not trained on later positions, so quality "
                "falls there whatever the types; the bytes are shown all the same"
            )
    usual = [context for context in (*CONTEXTS, limit) if context and (not limit or context <= limit)]
    f16 = LayerStorage.of(("f16", "f16"))
    shown = sorted({*usual, *contexts})
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "model": profile.geometry.name,
        "profile": profile.name,
        "layers": [_row(profile, layer) for layer in profile.geometry.layers],
        "bytes_per_token": profile.bytes_per_token,
        "f16_bytes_per_token": sum(sum(f16.token_bytes(layer)) for layer in profile.geometry.kv_layers),
        "bpv": profile.bpv,
        "bytes_at_context": {str(context): profile.bytes_at(context) for context in shown},
        "spans_bytes_at_context": {str(context): profile.spans_bytes_at(context) for context in shown},
        "warnings": told,
        "notes": list(profile.notes),
    }
    if profile.compat_fork:
        data["fork_bytes_per_token"] = fork_bytes_per_token(profile)
    return data


def format_table(data: Mapping[str, Any]) -> str:
    """Text for a terminal from show_table's data: runs of equal layers are folded, bytes are those of each layer."""
    rows = [("layer", "KV layer", "role", "K", "V", "bytes/token", "")]
    for run in _runs(data["layers"]):
        first, last = run[0], run[-1]
        types = (first["k"], first["v"]) if first["applied"] else ("-", "-")
        each = f"{first['bytes_per_token']:,}" + (" each" if len(run) > 1 and first["applied"] else "")
        note = f"left alone: {first['why']}" if not first["applied"] else "; ".join(filter(None, _notes(first)))
        rows.append(
            (
                _span(first["layer"], last["layer"]),
                _span(first["ordinal"], last["ordinal"]),
                first["role"],
                *types,
                each,
                note,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = textwrap.wrap(f"{data['model']}: profile {data['profile']}", _WIDTH, subsequent_indent="  ")
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    share = data["bytes_per_token"] / data["f16_bytes_per_token"]
    beside = " outside of spans" if any(row["spans"] for row in data["layers"]) else ""
    lines.append(f"{data['bytes_per_token']:,} bytes a token{beside}, {data['bpv']:.3f} bpv, {share:.1%} of f16")
    if "fork_bytes_per_token" in data:
        lines.append(
            f"the fork needs {data['fork_bytes_per_token']:,} bytes a token for these (it pads turbo heads to 128)"
        )
    for context, size in data["bytes_at_context"].items():
        spans = data["spans_bytes_at_context"][context]
        more = f", {spans / (size - spans):.1%} more than without spans" if beside else ""
        lines.append(f"at {int(context):>9,} tokens: {size_text(size)}{more}")
    lines += data["notes"]
    lines += [f"warning: {warning}" for warning in data["warnings"]]
    return "\n".join(lines)


def _row(profile: Profile, layer: LayerGeometry) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer.layer, "ordinal": layer.ordinal, "role": layer.role}
    if layer.ordinal is None:
        why = layer.why or _LEFT_ALONE.get(layer.role, "has no KV cache of its own")
        return {
            **row,
            "k": None,
            "v": None,
            "bytes_per_token": 0,
            "window": None,
            "spans": None,
            "all_fine": False,
            "applied": False,
            "why": why,
        }
    k, v = profile.pairs[layer.ordinal]
    size = sum(profile.layer_bytes(layer.ordinal))
    spans = profile.spans[layer.ordinal].to_json()
    kept = {"k": k, "v": v, "bytes_per_token": size, "window": layer.window, "spans": spans}
    storage = profile.storages[layer.ordinal]
    all_fine = storage.for_layer(layer) != storage
    return {**row, **kept, "all_fine": all_fine, "applied": True, "why": None}


def _runs(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Neighbours that differ in nothing but their numbers."""
    runs: list[list[Mapping[str, Any]]] = []
    for row in rows:
        if runs and _alike(runs[-1][-1], row):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def _alike(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return all(left[key] == right[key] for key in left if key not in ("layer", "ordinal"))


def _span(first: int | None, last: int | None) -> str:
    if first is None:
        return "-"
    return str(first) if first == last else f"{first}-{last}"


def _notes(row: Mapping[str, Any]) -> tuple[str, str]:
    window = f"keeps {row['window']:,} tokens" if row["window"] is not None else ""
    spans = Spans(**row["spans"]).text() if row["spans"] else ""
    return window, f"{spans} (all that it keeps)" if row["all_fine"] else spans
