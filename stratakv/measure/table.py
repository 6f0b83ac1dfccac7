"""Results as text for a terminal of 120 columns, made from the JSON data alone."""

from __future__ import annotations

import itertools
import math
import string
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stratakv.measure.metrics import METRICS
from stratakv.measure.verdicts import far_in_words

WIDTH = 120
_NAME = 20
_SHORTEST_NAME = 10
_SHOWN = [metric for metric in METRICS if metric.heading]


def format_comparison(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/compare/1": conditions, numbers of all and of far predictions, verdicts, warnings."""
    rows = data["rows"]
    label = labels([row["name"] for row in rows])
    cells = [["profile", "bpv", "bytes/token", "PPL", "PPL - f16 [95 %]", "KLD [95 %]"]]
    cells[0] += [metric.heading or "" for metric in _SHOWN]
    for row in rows:
        cells.append(
            [
                label[row["name"]],
                f"{row['bpv']:.3f}",
                f"{row['bytes_per_token']:,}",
                significant(row["ppl"], 4),
                _signed(row["ppl_diff"]) + _signed_interval(row["ppl_diff_ci95"]),
                milli(row["kld_mean"]) + _milli_interval(row["kld_mean_ci95"]),
                *_metrics(row),
            ]
        )
    lines = [*conditions(data), "KLD in 1e-3 nats against an f16 cache of the same weights; PPL is a side note", ""]
    lines += _fit(cells, left=(4, 5))
    if any(any(row.get("spans") or ()) for row in rows):
        lines.append(
            f"bpv and bytes/token of profiles with spans count these as they are at {data['context']:,} tokens"
        )
    over = max(row["allocated_bytes"] / row["context_bytes"] - 1 for row in rows)
    lines.append(f"allocated for a context, pages included: at most {over:.1%} above bytes/token x tokens kept")
    lines += _far(data, label)
    reference = label.get(data["reference"], data["reference"])
    lines += ["", f"against {reference} (* no row is as good or better in both KLD and bytes):"]
    width = max(len(label[row["name"]]) for row in rows)
    base: Mapping[str, Any] = next((row for row in rows if row["verdict_kind"] == "reference"), {})
    for row in rows:
        verdict = "; ".join(filter(None, (row["verdict"], far_in_words(row, base))))
        text = f"{'*' if row['pareto'] else ' '} {label[row['name']]:<{width}}  {verdict}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * (width + 4)) if len(text) > WIDTH else [text]
    lines += legend(label)
    warnings = [*data["warnings"]]
    warnings += [_named(row["name"], label[row["name"]], warning) for row in rows for warning in row["warnings"]]
    return "\n".join([*lines, *format_warnings(warnings)])


def _far(data: Mapping[str, Any], label: Mapping[str, str]) -> list[str]:
    """Far predictions beside all, or why there are none; nothing for a result from before they were measured."""
    if "far" not in data:
        return []
    lines = ["", *textwrap.wrap(data["far"]["words"], WIDTH)]
    if not data["far"]["chunks"]:
        return lines
    cells = [["profile", "KLD [95 %]", "far KLD [95 %]", *(f"far {metric.heading}" for metric in _SHOWN)]]
    for row in data["rows"]:
        klds = [milli(each["kld_mean"]) + _milli_interval(each["kld_mean_ci95"]) for each in (row, row["far"])]
        cells.append([label[row["name"]], *klds, *_metrics(row["far"])])
    return [*lines, *_fit(cells, left=(1, 2))]


def _metrics(numbers: Mapping[str, Any]) -> list[str]:
    return [milli(numbers[each.field]) if each.unit == "nats" else f"{numbers[each.field]:.1%}" for each in _SHOWN]


def labels(names: Sequence[str], longest: int = _NAME) -> dict[str, str]:
    """What tables call each profile: its name, or a letter where that is a rule line too long for a column."""
    letters = (letter for letter in _letters() if letter not in names)
    return {name: name if len(name) <= longest else next(letters) for name in dict.fromkeys(names)}


def _letters() -> Iterator[str]:
    """A, B, ..., Z, AA, AB, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_uppercase, repeat=length))


def legend(label: Mapping[str, str]) -> list[str]:
    """Each name that a letter stands for, once, folded to the width."""
    lines = []
    for name, letter in label.items():
        if letter != name:
            lines += textwrap.wrap(f"{letter} = {name}", WIDTH, subsequent_indent="    ")
    return ["", *lines] if lines else []


def format_perplexity(data: Mapping[str, Any]) -> str:
    """The whole of a "stratakv/perplexity/1", without its warnings: they were shown before the run."""
    (row,) = data["rows"]
    lines = [*conditions(data), ""]
    over = f"over {data['chunks']} contexts"
    if row["ppl_se_over"] == "tokens":
        over = f"over {data['text']['tokens_scored']} tokens counted as independent, so too small"
    lines.append(f"PPL = {row['ppl']:.4f} +/- {row['ppl_se']:.4f} (standard error {over})")
    if "kld_mean" in row:
        lines += [
            f"PPL - PPL of f16 = {row['ppl_diff']:+.4f}{_interval(row['ppl_diff_ci95'], '+.4f')}",
            f"KLD mean = {row['kld_mean']:.6g}{_interval(row['kld_mean_ci95'], '.6g')} nats against an f16 cache",
            f"KLD median = {row['kld_median']:.6g}, p99 = {row['kld_p99']:.6g}, max = {row['kld_max']:.6g}, "
            f"above 1e-3 in {row['kld_share_above_1e-3']:.2%} of the predictions",
            f"same most likely token in {row['top1']:.2%}",
        ]
        if row["kld_mean_ci95"] is None:
            lines.append("no intervals: they need 4 contexts")
    lines.append(f"cache after a context: {row['allocated_bytes']:,} bytes; {row['seconds']:.1f} s")
    return "\n".join(lines)


def conditions(data: Mapping[str, Any]) -> list[str]:
    """Model, text and how it was cut, in one or two lines."""
    text = data["text"]
    line = (
        f"{data['model']['name']} on {text['name']}: {data['chunks']} contexts of {data['context']} tokens, second halves scored "
        f"({text['tokens_scored']:,} predictions), {data['chunk']} tokens a forward call, {data['compute_dtype']}"
    )
    return textwrap.wrap(line, WIDTH)


def format_warnings(warnings: Sequence[str]) -> list[str]:
    """Each different warning once, folded to the width."""
    lines = []
    for warning in dict.fromkeys(warnings):
        lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    return lines


def significant(value: float, digits: int = 3) -> str:
    """Digits that mean something: 0.0123, 2.98, 41.9, 1,234; exactly 0 is '0', and only that."""
    if value == 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    if decimals > 6:
        return f"{value:.1e}"
    return f"{value:,.{max(0, decimals)}f}"


def milli(value: float) -> str:
    """A KLD in 1e-3 nats."""
    return significant(1e3 * value)


def short_name(name: str, width: int = 20) -> str:
    """A name cut in its middle to at most `width` characters, 8 or more; verdicts have the whole."""
    tail = (width - 1) * 2 // 5
    return name if len(name) <= width else f"{name[: width - 1 - tail]}…{name[-tail:]}"


def _named(name: str, label: str, warning: str) -> str:
    return label + warning.removeprefix(name) if warning.startswith(name) else f"{label}: {warning}"


def _signed(value: float) -> str:
    return f"{value:+.2f}" if abs(value) < 100 else f"{value:+,.0f}"


def _signed_interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{_signed(interval[0])}, {_signed(interval[1])}]"


def _milli_interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{milli(interval[0])}, {milli(interval[1])}]"


def _interval(interval: Sequence[float] | None, form: str) -> str:
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def _fit(cells: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Aligned lines, columns `left` and names to the left; names, the first column, give way where numbers need the width."""
    rest = max(map(len, align([["", *row[1:]] for row in cells], left)))
    width = min(_NAME, max(_SHORTEST_NAME, WIDTH - rest))
    return align([[short_name(row[0], width), *row[1:]] for row in cells], left)


def align(cells: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines of a table, two spaces between its columns: the first and those in `left` to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index in (0, *left) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
