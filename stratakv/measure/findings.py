"""The question the project began with, answered in words from a comparison's JSON data."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stratakv.measure.table import WIDTH
from stratakv.measure.verdicts import bytes_in_words, kld_in_words

Row = Mapping[str, Any]


def findings(data: Mapping[str, Any]) -> str:
    """Which profiles are better than the reference, at what bytes, and is the difference real?

    A difference is called real when its paired 95 % interval excludes 0, that is, by the rows' verdict_kind alone.
    """
    rows: Sequence[Row] = data["rows"]
    reference = next(row for row in rows if row["verdict_kind"] == "reference")
    name, size = reference["name"], reference["bytes_per_token"]

    def chosen(kind: str, fits: Callable[[Row], bool] = lambda row: True) -> list[Row]:
        picked = [row for row in rows if row["verdict_kind"] == kind and fits(row)]
        return sorted(picked, key=lambda row: (row["bytes_per_token"], row["kld_mean"]))

    def cheap(row: Row) -> bool:
        return bool(row["bytes_per_token"] <= size)

    def dearer(row: Row) -> bool:
        return bool(row["bytes_per_token"] >= size)

    wins, better = chosen("better", cheap), chosen("better", lambda row: not cheap(row))
    parts = [f"Which profiles are better than uniform {name} ({size:,} bytes a token, {reference['bpv']:.3f} bpv)?"]
    if wins:
        parts += _section("Better, for the same bytes or fewer, and the difference is real:", wins, reference)
    else:
        parts.append(f"None of these is better at {name}'s bytes or fewer.")
    parts += _section("Better, for more bytes, and the difference is real:", better, reference)
    parts += _section("Worse, although it costs as many bytes or more:", chosen("worse", dearer), reference)
    parts += _section("Worse, for fewer bytes:", chosen("worse", lambda row: not dearer(row)), reference)
    parts += _section("No difference shown (the 95 % interval contains 0):", chosen("no difference shown"), reference)
    parts += _section("Undecided, too few contexts for an interval:", chosen("undecided"), reference)
    parts += ["", *_perplexity_note(rows), *_conditions_note(data)]
    return "\n".join(parts)


def _section(title: str, rows: Sequence[Row], reference: Row) -> list[str]:
    if not rows:
        return []
    width = max(len(row["name"]) for row in rows)
    return [title, *(f"  {row['name']:<{width}}  {_difference(row, reference)}" for row in rows)]


def _difference(row: Row, reference: Row) -> str:
    size = kld_in_words(row["kld_diff"], row["kld_diff_ci95"], reference["kld_mean"])
    cost = bytes_in_words(row["bytes_per_token"], reference["bytes_per_token"])
    return f"{size} {cost} ({row['bytes_per_token']:,} a token, {row['bpv']:.3f} bpv)"


def _perplexity_note(rows: Sequence[Row]) -> list[str]:
    """How many of the differences perplexity alone would have seen."""
    judged = [row for row in rows if row["ppl_diff_ci95"] is not None and not row["baseline"]]
    if not judged:
        return []
    unseen = [row for row in judged if row["ppl_diff_ci95"][0] <= 0 <= row["ppl_diff_ci95"][1]]
    text = (
        f"Perplexity alone shows no loss against f16 for {len(unseen)} of {len(judged)} profiles (interval contains 0)."
    )
    return textwrap.wrap(text, WIDTH)


def _conditions_note(data: Mapping[str, Any]) -> list[str]:
    text = (
        f"True of {data['model']['name']}, {data['text']['name']} and contexts of {data['context']} tokens ({data['chunks']} of "
        "them, paired, block bootstrap). Each interval stands alone: of 20 profiles without any difference, one would seem to "
        "have one. Another model can answer differently: measure yours with `stratakv compare`."
    )
    return textwrap.wrap(text, WIDTH)
