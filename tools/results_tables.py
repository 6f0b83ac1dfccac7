"""Markdown tables from the JSON of `stratakv compare`, `judge` and `tune`: what docs/results.md shows.

python tools/results_tables.py docs/results/*.json

A comparison is a table of its own; judgements are a row each, and so are the evidences of tunings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stratakv.evidence.judgement import SCHEMA as JUDGE
from stratakv.evidence.tuning import SCHEMA as TUNE
from stratakv.measure.intervals import change_interval
from stratakv.measure.metrics import METRICS
from stratakv.measure.table import labels, milli
from stratakv.measure.verdicts import far_in_words

PUBLISHED = [metric for metric in METRICS if metric.published]
HEAD = (
    f"| profile | bpv | bytes/token | PPL - f16 | KLD, 1e-3 nats | {{far}}"
    f"{' | '.join(str(each.heading) for each in PUBLISHED)} | against {{reference}} |\n"
    f"|---|---:|---:|---:|---:|{{rule}}{'---:|' * len(PUBLISHED)}---|"
)
JUDGED = (
    "| model, text | bytes/token | KLD, 1e-3 nats | against uniform of the budget | best other uniform | best rule | "
    "best mode | lowest permutation |\n|---|---:|---:|---|---|---|---|---|"
)
TUNED = (
    "| model, budget | bytes/token | headroom told | then, on unseen tuning text | R2 | bias | R2 of gradients alone | "
    "gradients against ablation | passes | seconds |\n|---|---:|---|---|---:|---:|---:|---|---:|---:|"
)
LONGEST = 60  # letters of a rule in a cell of judgements
FAMILIES = ("uniform", "rule", "mode", "permutation")


def table(result: Mapping[str, Any]) -> str:
    """One table, a row a profile in the order of the run; a star marks the Pareto front over bytes and KLD.

    Far predictions are a column, and their change a part of the last one, where they were measured.
    """
    label = labels([row["name"] for row in result["rows"]])
    reference: Mapping[str, Any] = next((row for row in result["rows"] if row["verdict_kind"] == "reference"), {})
    far = bool(reference.get("far"))
    name = label.get(result["reference"], result["reference"])
    lines = [HEAD.format(reference=name, far="far KLD | " if far else "", rule="---:|" if far else "")]
    for row in result["rows"]:
        verdict = "; ".join(filter(None, (row["verdict"], far_in_words(row, reference))))
        distant = f"{_milli(row['far']['kld_mean'], row['far']['kld_mean_ci95'])} | " if far else ""
        star = " *" if row["pareto"] else ""
        lines.append(
            f"| {label[row['name']]}{star} | {row['bpv']:.3f} | {row['bytes_per_token']:,} | "
            f"{_interval(row['ppl_diff'], row['ppl_diff_ci95'], 1.0, '+.2f')} | "
            f"{_milli(row['kld_mean'], row['kld_mean_ci95'])} | {distant}{' | '.join(_metrics(row))} | {verdict} |"
        )
    return "\n".join([*lines, *_named(label)])


def judged(result: Mapping[str, Any], label: Mapping[str, str]) -> str:
    """The tuned row's KLD, and its paired change against the best row of each family within the judgement's bytes.

    label: what each row's name is written as.
    """
    rows, at = result["rows"], result["equal_bytes"]["at"]
    tuned = next(row for row in rows if row["family"] == "tuned")
    reference = next(row for row in rows if row["name"] == result["reference"])
    cells = [_against(tuned, reference, label)]
    for family in FAMILIES:
        others = [
            row for row in rows if row["family"] == family and row is not reference and row["bytes_per_token"] <= at
        ]
        best = min(others, key=lambda row: row["kld_mean"], default=None)
        cells.append("none fits" if best is None else _against(tuned, best, label))
    text = Path(result["text"]["name"]).stem
    return (
        f"| {result['model']['name']}, {text}, {result['chunks']} x {result['context']} | {tuned['bytes_per_token']:,} | "
        f"{milli(tuned['kld_mean'])} [{', '.join(map(milli, tuned['kld_mean_ci95']))}] | {' | '.join(cells)} |"
    )


def tuned(evidence: Mapping[str, Any]) -> str:
    """What the tuning told beforehand, what it then measured, and what that cost."""
    fit, row, told, cost = evidence["fidelity"], evidence["rows"][0], evidence["headroom"], evidence["cost"]
    ranks = ", ".join(f"{name} {value:.2f}" for name, value in evidence["sensitivity"]["agreement"]["by_type"].items())
    cells = [
        f"{evidence['model']['name']}, {evidence['budget']['text']}",
        f"{row['bytes_per_token']:,}",
        f"{100 * told['gain']:.0f} % of {told['uniform']}",
        row["verdict"],
        _number(fit["r2"], ".2f"),
        _percent(fit["bias"]),
        _number(fit["gradients"]["r2"], ".2f"),
        ranks,
        f"{cost['forward_passes']:,.0f}",
        f"{cost['seconds']:,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _against(tuned: Mapping[str, Any], other: Mapping[str, Any], label: Mapping[str, str]) -> str:
    change = tuned["kld_mean"] / other["kld_mean"] - 1
    interval = change_interval(tuned["kld_per_chunk"], other["kld_per_chunk"])
    ends = "" if interval is None else f" [{100 * interval[0]:+.0f}, {100 * interval[1]:+.0f}]"
    shown = "" if interval is None or not interval[0] <= 0 <= interval[1] else ", no difference shown"
    name = "" if other["family"] == "permutation" else f"{label[other['name']]}, "
    return f"{100 * change:+.1f} %{ends}{shown}<br>{name}{milli(other['kld_mean'])}"


def _named(label: Mapping[str, str]) -> list[str]:
    """What letters stand for, each once, after an empty line."""
    named = [f"* {letter} = `{name}`" for name, letter in label.items() if letter != name]
    return ["", *named] if named else []


def _metrics(row: Mapping[str, Any]) -> list[str]:
    values = [(each.unit, row[each.field]) for each in PUBLISHED]
    return [_short(value * 1e3) if unit == "nats" else f"{value:.1%}" for unit, value in values]


def _interval(value: float, ci: Sequence[float] | None, factor: float, form: str) -> str:
    text = format(value * factor, form)
    return text if ci is None else f"{text} [{ci[0] * factor:{form}}, {ci[1] * factor:{form}}]"


def _milli(value: float, ci: Sequence[float] | None) -> str:
    ends = "" if ci is None else f" [{', '.join(_short(end * 1e3) for end in ci)}]"
    return _short(value * 1e3) + ends


def _short(value: float) -> str:
    """Three digits, thousands in full."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{round(100 * value):+d} %"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def main() -> None:
    """Print the tables of the files given."""
    judgements: list[Mapping[str, Any]] = []
    evidences: list[str] = []
    for path in map(Path, sys.argv[1:]):
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("schema") == JUDGE:
            judgements.append(result)
        elif result.get("schema") == TUNE:
            evidences.append(tuned(result))
        elif "rows" in result:
            text = result["text"]
            print(f"### {path.stem}\n\n{result['chunks']} contexts of {result['context']} tokens, {text['name']}\n")
            print(table(result) + "\n")
    if judgements:
        label = labels([row["name"] for result in judgements for row in result["rows"]], LONGEST)
        lines = [judged(result, label) for result in judgements]
        used = {name: letter for name, letter in label.items() if any(f"<br>{letter}, " in line for line in lines)}
        print("\n".join([JUDGED, *lines, *_named(used)]) + "\n")
    if evidences:
        print("\n".join([TUNED, *evidences]) + "\n")


if __name__ == "__main__":
    main()
