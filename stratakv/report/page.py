"""The page: everything it says is worked out here or in the charts, from the JSON alone; the template only arranges it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stratakv.evidence.tuning import bits_of, said
from stratakv.export.targets import runtimes
from stratakv.measure.table import labels, milli
from stratakv.measure.verdicts import kld_in_words
from stratakv.report.cells import MANY, cell_charts, side_mark, value_of
from stratakv.report.equal_bytes import equal_rows
from stratakv.report.fidelity import fidelity_chart
from stratakv.report.heat import colours
from stratakv.report.pareto import drawable, legend_mark, legend_styles, pareto_chart

Data = Mapping[str, Any]

_WIDTHS = {"wide": 760.0, "narrow": 360.0}  # the style sheet shows one of them
_LONGEST = 40  # letters of a profile's name that a table folds to two lines; what is longer gets a letter
_SHORT = 6  # letters of a type's name that fit beside K or V in a narrow cell
_HERE = Path(__file__).parent
_FAMILIES = {
    "tuned": "tuned",
    "uniform": "the same types in all layers",
    "mode": "the fork's modes",
    "rule": "first and last layers",
    "permutation": "the tuned types, shuffled over the layers",
    "bare": "the tuned types without spans",
}


def build_report(evidence: Data, judges: Sequence[Data] = ()) -> str:
    """One HTML page, nothing loaded from elsewhere. The same data give the same bytes.

    evidence: of `read_evidence`. judges: of `read_judge`, each on a text that the tuning never saw; without one the page says
    that nothing has been judged yet.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        milli=milli, kld=_kld, percent=_percent, interval=_interval, commas=lambda n: f"{n:,.0f}"
    )
    bits = bits_of(evidence)
    return environment.get_template("page.html.jinja").render(
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        e=evidence,
        said=[words for _, words in said(evidence)],
        geometry=_geometry(evidence, bits),
        layers=_layers(evidence, bits),
        types=_type_key(evidence, bits),
        long_names=any(len(name) > _SHORT for pair in evidence["chosen"]["pairs"] for name in pair),
        judges=[_judged(judge, evidence) for judge in judges],
        tuning=_tuning_text(evidence),
        sensitivities=cell_charts(evidence["sensitivity"], bits),
        many=len(evidence["geometry"]) > MANY,
        predicted=any(cell["kld"] is None and cell["gradient"] for cell in evidence["sensitivity"]["cells"]),
        sides={side: side_mark(side) for side in ("k", "v")},
        fidelity={name: fidelity_chart(evidence["fidelity"], width=width) for name, width in _WIDTHS.items()},
        spans=_spans(evidence.get("spans") or {}),
        commands=_commands(evidence),
        machine=_machine(evidence["machine"]),
    )


def _judged(judge: Data, evidence: Data) -> dict[str, Any]:
    rows = sorted(judge["rows"], key=lambda row: (row["bytes_per_token"], row["kld_mean"]))
    tuned = next(row for row in rows if row["family"] == "tuned")
    far = [{**row, **row["far"]} for row in rows if row.get("far")]
    name, called = judge["text"]["name"], _called(rows)
    return {
        "data": judge,
        "called": called,
        "letters": _letters(called),
        "tuned": tuned,
        "answer": _answer(tuned, rows, judge["reference"]),
        "against": _against(tuned, rows, judge["reference"]),
        "equal": equal_rows(judge, called),
        "rows": rows,
        "charts": _charts(rows, (), judge["reference"], called, f"KL divergence over bytes a token on {name}"),
        "far": _far(far, judge["reference"], called, f"KL divergence of far predictions over bytes a token on {name}"),
        "legend": _legend(rows),
        "undrawn": [called[row["name"]] for row in rows if not drawable(row, _limit(rows))],
        "machine": _machine(judge["machine"]),
    }


def _far(rows: Sequence[Data], reference: str, called: Mapping[str, str], title: str) -> dict[str, Any] | None:
    """Far predictions: the tuned row's, its change, and the chart; None where nothing was measured."""
    if not rows:
        return None
    tuned = next(row for row in rows if row["family"] == "tuned")
    drawn = any(drawable(row, _limit(rows)) for row in rows)
    return {
        "tuned": tuned,
        "against": _against(tuned, rows, reference),
        "charts": _charts(rows, (), reference, called, title) if drawn else None,
    }


def _tuning_text(evidence: Data) -> dict[str, Any]:
    """The front and the rows on the text that the profile was chosen on."""
    rows = [{**row, "family": row.get("family") or _family(row, evidence)} for row in evidence["rows"]]
    rows.sort(key=lambda row: (row["bytes_per_token"], row["kld_mean"]))
    title = (
        f"The tuned front and baselines on the tuning text {evidence['text']['name']}: KL divergence over bytes a token"
    )
    front = [_as_rows_count(point) for point in evidence["front"]]
    called, drawn = _called(rows), any(row["kld_mean"] > 0 for row in rows)
    charts = _charts(rows, front, evidence["reference"], called, title) if drawn else None
    return {
        "rows": rows,
        "called": called,
        "letters": _letters(called),
        "charts": charts,
        "legend": _legend(rows),
        "unspanned": bool(evidence.get("spans"))  # older files' gradients knew of none
        and not evidence["fidelity"]["points"]
        and "second_opinion" not in evidence,
        "points": [point for point in evidence["front"] if point["kld"]],
    }


def _as_rows_count(point: Data) -> Data:
    """A point of the front at its bytes with spans, where it has some: rows count them."""
    size = point.get("bytes_per_token_at_context", point["bytes_per_token"])
    return {**point, "bytes_per_token": size, "bpv": point["bpv"] * size / point["bytes_per_token"]}


def _charts(
    rows: Sequence[Data], front: Sequence[Data], reference: str, called: Mapping[str, str], title: str
) -> dict[str, Any]:
    return {
        name: pareto_chart(rows, front, reference, called, width=width, title=title, limit=_limit(rows))
        for name, width in _WIDTHS.items()
    }


def _called(rows: Sequence[Data]) -> dict[str, str]:
    """What each row's name is written as: a rule line of 30 layers would fill a table, so that it gets a letter."""
    names = {row["name"]: row["name"] for row in rows}
    long = [row["name"] for row in rows if row["family"] == "tuned" and len(row["name"]) > _LONGEST]
    tuned = {name: "tuned" for name in long[:1] if "tuned" not in names}
    return {**labels([name for name in names if name not in tuned], _LONGEST), **tuned}


def _letters(called: Mapping[str, str]) -> list[tuple[str, str]]:
    """(what is written, the name), for the legend."""
    return [(letter, name) for name, letter in called.items() if letter != name]


def _limit(rows: Sequence[Data]) -> float:
    """Bytes a token up to which a chart goes: twice the tuned profile's show what is near it."""
    tuned = [row["bytes_per_token"] for row in rows if row["family"] == "tuned"]
    return 2.0 * float(tuned[0] if tuned else min(row["bytes_per_token"] for row in rows if row["kld_mean"] > 0))


def _spans(spans: Data | list[Data | None]) -> str:
    """As `Spans.text` says it, '' for none, and where layers differ how many have which: not by that, since a page is made
    without torch, which profiles import."""
    if isinstance(spans, list):
        texts = [_spans(each or {}) or "none" for each in spans]
        return ", ".join(f"{text} in {texts.count(text)} of {len(texts)} layers" for text in dict.fromkeys(texts))
    there = [word for word in ("recent", "first") if spans.get(word)]
    return "; ".join(f"{word}: {spans[word]} page{'s' * (spans[word] != 1)} {spans[f'{word}_type']}" for word in there)


def _legend(rows: Sequence[Data]) -> list[tuple[Any, str]]:
    return [(legend_mark(family), _FAMILIES[family]) for family in legend_styles(rows)]


def _family(row: Data, evidence: Data) -> str:
    """Of rows that don't name it: by the pairs and the name."""
    if row["profile"] == evidence["chosen"]["pairs"]:
        return "tuned"
    for start, family in (("permutation", "permutation"), ("mode", "mode"), ("edges", "rule")):
        if row["name"].startswith(start):
            return family
    return "uniform" if len({tuple(pair) for pair in row["profile"]}) == 1 else "rule"


def _answer(row: Data, rows: Sequence[Data], reference: str) -> str:
    """The one sentence that matters: 'KLD 32 % lower than with turbo4'."""
    base = next((each["kld_mean"] for each in rows if each["name"] == reference), 0)
    if not base:
        return "Measured"
    interval, change = row["kld_diff_ci95"], row["kld_diff"] / base
    if interval is None or interval[0] <= 0 <= interval[1]:
        return f"No difference from {reference} shown"
    return f"KLD {abs(change):.0%} {'lower' if change < 0 else 'higher'} than with {reference}".replace("%", " %")


def _against(row: Data, rows: Sequence[Data], reference: str) -> str | None:
    """'KLD -31 % [-34, -28]' against the reference row."""
    base = next((each for each in rows if each["name"] == reference), None)
    return None if base is None else kld_in_words(row["kld_diff"], row["kld_diff_ci95"], base["kld_mean"])


def _layers(evidence: Data, bits: Mapping[str, float]) -> list[dict[str, Any]]:
    """What each KV layer gets, and what one changed cell there costs."""
    cells = [cell for cell in evidence["sensitivity"]["cells"] if value_of(cell) is not None]
    costs = {(cell["ordinal"], cell["side"], cell["type"]): cell for cell in cells}
    names = sorted({name for _, _, name in costs}, key=lambda name: (bits[name], name))
    spans = evidence.get("spans") or {}
    by_layer = spans if isinstance(spans, list) else [spans] * len(evidence["geometry"])
    return [
        {
            **layer,
            "spans": _spans(own or {}),
            "k": k,
            "v": v,
            "colour": {"k": colours(bits[k]), "v": colours(bits[v])},
            "cells": {side: [costs.get((layer["ordinal"], side, name)) for name in names] for side in ("k", "v")},
            "tried": names,
        }
        for layer, (k, v), own in zip(evidence["geometry"], evidence["chosen"]["pairs"], by_layer, strict=True)
    ]


def _type_key(evidence: Data, bits: Mapping[str, float]) -> list[dict[str, Any]]:
    """The types that the profile uses, coarsest first, with their colours and how often they occur."""
    used = [name for pair in evidence["chosen"]["pairs"] for name in pair]
    names = sorted(set(used), key=lambda name: (bits[name], name))
    return [{"name": name, "colour": colours(bits[name]), "count": used.count(name)} for name in names]


def _geometry(evidence: Data, bits: Mapping[str, float]) -> dict[str, Any]:
    roles = {layer["role"] for layer in evidence["geometry"]}
    return {"share": evidence["chosen"]["bpv"] / bits["f16"], "alike": roles == {"full"}}


def _commands(evidence: Data) -> list[tuple[str, str]]:
    """What to do with the profile: (in words, command line)."""
    words = shlex.split(evidence["command"])
    model = next((after for word, after in pairwise(words) if word in ("-m", "--model")), "MODEL")
    file = f"{evidence['name']}.profile.json"
    quoted = shlex.quote(model), shlex.quote(file)
    context = evidence["budget"].get("context")
    one = f" -c {context} -np 1" if context else ""  # the cache that the budget is of
    return [
        (
            "What every layer gets, and the cache's size",
            "stratakv show -m {} --profile {}".format(*quoted),
        ),
        ("Write with it", "stratakv generate -m {} --profile {} -p 'Once upon a time'".format(*quoted)),
        ("Serve it: OpenAI's API and llama-server's", "stratakv serve -m {} --profile {}".format(*quoted) + one),
        (f"Take it to another runtime: {runtimes()}", "stratakv export {1} -m {0} --to fork".format(*quoted)),
    ]


def _machine(machine: Data) -> str:
    told = {key.replace("_", " "): value for key, value in machine.items() if not isinstance(value, (dict, list))}
    if isinstance(told.get("memory"), int):
        told["memory"] = f"{told['memory'] / 2**30:.1f} GiB"
    return ", ".join(f"{key} {value}" for key, value in told.items())


def _kld(value: float, ends: Sequence[float] | None = None) -> str:
    return milli(value) + ("" if ends is None else f" [{milli(ends[0])}, {milli(ends[1])}]")


def _percent(value: float | None, ends: Sequence[float] | None = None) -> str:
    if value is None:
        return "not measured"
    return f"{100 * value:+.0f} %" + ("" if ends is None else f" [{100 * ends[0]:+.0f}, {100 * ends[1]:+.0f}]")


def _interval(ends: Sequence[float] | None, form: str = "+.2f") -> str:
    return "" if ends is None else f" [{ends[0]:{form}}, {ends[1]:{form}}]"
