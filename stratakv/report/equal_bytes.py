"""The rows at the same bytes, with a small drawing of each KLD and its interval on one common scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from markupsafe import Markup

from stratakv.measure.table import milli
from stratakv.measure.verdicts import kld_in_words
from stratakv.report.pareto import STYLES
from stratakv.report.svg import Scale, line, log_scale, mark

_WIDTH, _HEIGHT = 220.0, 22.0

Row = Mapping[str, Any]


def equal_rows(judge: Mapping[str, Any], called: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of the table at equal bytes, best first; permutations are one row. called: what each profile's name is written as.

    Those count whose bytes a token are within the tolerance of equal_bytes.at.
    Each: name, bytes_per_token, bpv, kld and change in words, far (the KLD of far predictions in words, '' where there are none),
    family, drawing.
    """
    at, tolerance = judge["equal_bytes"]["at"], judge["equal_bytes"]["tolerance"]
    rows = [row for row in judge["rows"] if abs(row["bytes_per_token"] - at) <= tolerance * at and row["kld_mean"] > 0]
    if not rows:
        return []
    reference = next((row for row in judge["rows"] if row["name"] == judge["reference"]), None)
    values = [row["kld_mean"] for row in rows] + [
        end for row in rows for end in (row["kld_mean_ci95"] or ()) if end > 0
    ]
    scale = log_scale(values, 6, _WIDTH - 6)
    found = [
        {
            "name": called[row["name"]],
            "family": row["family"],
            "bytes_per_token": row["bytes_per_token"],
            "bpv": row["bpv"],
            "order": row["kld_mean"],
            "kld": _kld(row),
            "far": _kld(row["far"]) if row.get("far") else "",
            "change": "reference" if row is reference else _change(row, reference),
            "drawing": _drawing(scale, [row], reference),
        }
        for row in rows
        if row["family"] != "permutation"
    ]
    shuffled = sorted((row for row in rows if row["family"] == "permutation"), key=lambda row: float(row["kld_mean"]))
    if shuffled:
        found.append(
            {
                "name": f"{len(shuffled)} shuffles of the tuned profile",
                "family": "permutation",
                "bytes_per_token": shuffled[0]["bytes_per_token"],
                "bpv": shuffled[0]["bpv"],
                "order": shuffled[0]["kld_mean"],
                "kld": _range([row["kld_mean"] for row in shuffled]),
                "far": _range([row["far"]["kld_mean"] for row in shuffled if row.get("far")]),
                "change": "lowest: " + _change(shuffled[0], reference),
                "drawing": _drawing(scale, shuffled, reference),
            }
        )
    return sorted(found, key=lambda row: row["order"])


def _kld(numbers: Row) -> str:
    return milli(numbers["kld_mean"]) + _ends(numbers["kld_mean_ci95"])


def _range(klds: Sequence[float]) -> str:
    return f"{milli(min(klds))} to {milli(max(klds))}, median {milli(median(klds))}" if klds else ""


def _change(row: Row, reference: Row | None) -> str:
    if reference is None:
        return ""
    return kld_in_words(row["kld_diff"], row["kld_diff_ci95"], reference["kld_mean"]).removeprefix("KLD ")


def _drawing(scale: Scale, rows: Sequence[Row], reference: Row | None) -> Markup:
    middle = _HEIGHT / 2
    drawn = []
    if reference is not None:
        drawn.append(line(scale(reference["kld_mean"]), 1, scale(reference["kld_mean"]), _HEIGHT - 1, "reference"))
    for row in rows:
        shape, css = STYLES[row["family"]]
        if row["kld_mean_ci95"] and len(rows) == 1:
            low, high = (scale(max(end, scale.low)) for end in row["kld_mean_ci95"])
            drawn.append(line(low, middle, high, middle, f"bar {css}"))
        drawn.append(mark(shape, scale(row["kld_mean"]), middle, 3.2 if len(rows) > 1 else 4.4, css))
    shell = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" class="dots" aria-hidden="true">{}</svg>')
    return shell.format(_WIDTH, _HEIGHT, Markup("").join(drawn))


def _ends(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{milli(interval[0])}, {milli(interval[1])}]"
