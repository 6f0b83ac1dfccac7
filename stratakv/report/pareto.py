"""The chart of KL divergence over bytes: the tuned front, and every baseline with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from stratakv.measure.table import milli, short_name
from stratakv.report.svg import Scale, bar, canvas, line, log_scale, mark, path, place_labels, text, tick_text

Row = Mapping[str, Any]

# family -> (shape, class); told apart by shape as well as by colour
STYLES = {
    "tuned": ("diamond", "tuned"),
    "uniform": ("circle", "uniform"),
    "mode": ("square", "mode"),
    "rule": ("triangle", "rule"),
    "permutation": ("cross", "permutation"),
    "bare": ("diamond", "uniform"),
}


_SAME_BYTES = 0.02


def pareto_chart(
    rows: Sequence[Row],
    front: Sequence[Row],
    reference: str,
    called: Mapping[str, str],
    *,
    width: float,
    title: str,
    limit: float,
) -> Markup:
    """KLD (log) over bytes a token.

    rows: with family, name, bytes_per_token, bpv, kld_mean, kld_mean_ci95; those with KLD 0 have no place on a log axis and are
    left out. front: the tuner's (bytes_per_token, predicted_kld, kld, kld_ci95), drawn as a line where predicted and as
    diamonds where measured. called: what each row's name is written as; its tooltip has the whole. limit: bytes a token beyond
    which nothing is drawn.
    """
    shown = [row for row in rows if drawable(row, limit)]
    points = [point for point in front if point["predicted_kld"] > 0 and (point["bytes_per_token"] <= limit)]
    line_points = _undominated(points)
    height = min(460.0, 0.62 * width + 90)
    frame = (52.0, 14.0, width - 14, height - 58)
    sizes = [each["bytes_per_token"] for each in (*shown, *points)]
    klds = [row["kld_mean"] for row in shown] + [point["predicted_kld"] for point in points]
    klds += [end for row in shown for end in (row["kld_mean_ci95"] or ()) if end > 0]
    room = 0.04 * (max(sizes) - min(sizes)) or 1.0
    x = Scale(min(sizes) - room, max(sizes) + room, frame[0], frame[2])
    y = log_scale(klds, frame[3], frame[1])
    per_bit = shown[0]["bytes_per_token"] / shown[0]["bpv"]
    drawn = _axes(x, y, frame, per_bit, width)
    if len(line_points) > 1:
        drawn.append(path([(x(each["bytes_per_token"]), y(each["predicted_kld"])) for each in line_points], "front"))
    taken = [(x(each["bytes_per_token"]), y(each["predicted_kld"])) for each in line_points]
    for point in points:
        if point["kld"]:
            taken.append(_point(drawn, x, y, point, "tuned", f"tuned, {_words(point, point['kld'])}"))
    order = sorted(shown, key=lambda row: (row["family"] == "tuned", row["family"] != "permutation"))
    labels = []
    for row in order:
        at = _point(drawn, x, y, row, row["family"], f"{row['name']}: {_words(row, row['kld_mean'])}")
        taken.append(at)
        if _labelled(row, shown, reference, width):
            labels.append((*at, short_name(called[row["name"]], 20 if width > 500 else 14)))
    labels.sort(key=lambda label: label[1])
    return canvas(width, height, title, [*drawn, *place_labels(labels, taken, frame)])


def _undominated(points: Sequence[Row]) -> list[Row]:
    """Those with less KLD than any of fewer bytes a token: a front for a memory at a context is one over other bytes."""
    kept: list[Row] = []
    for point in sorted(points, key=lambda each: (each["bytes_per_token"], each["predicted_kld"])):
        if not kept or point["predicted_kld"] < kept[-1]["predicted_kld"]:
            kept.append(point)
    return kept


def drawable(row: Row, limit: float) -> bool:
    """Whether a row has a place on the chart."""
    return bool(row["kld_mean"] > 0 and row["bytes_per_token"] <= limit)


def legend_styles(rows: Sequence[Row]) -> list[str]:
    """The families that occur, in the order of STYLES."""
    there = {row["family"] for row in rows}
    return [family for family in STYLES if family in there]


def legend_mark(family: str) -> Markup:
    """A family's mark, for the legend beside a chart."""
    shape, css = STYLES[family]
    return Markup('<svg viewBox="0 0 16 16" class="key" aria-hidden="true">{}</svg>').format(
        mark(shape, 8, 8, 4.2, css)
    )


def _labelled(row: Row, shown: Sequence[Row], reference: str, width: float) -> bool:
    """Of a family's rows at nearly the same bytes only the best has room for its name; marks tell theirs when pointed at."""
    if row["family"] == "permutation":
        return False
    if row["family"] in ("tuned", "mode") or row["name"] == reference:
        return True
    beside = [
        each
        for each in shown
        if each["family"] == row["family"]
        and abs(each["bytes_per_token"] - row["bytes_per_token"]) <= _SAME_BYTES * row["bytes_per_token"]
    ]
    return width > 500 and row["kld_mean"] <= min(each["kld_mean"] for each in beside)


def _point(drawn: list[Markup], x: Scale, y: Scale, row: Row, family: str, tip: str) -> tuple[float, float]:
    shape, css = STYLES[family]
    value = row["kld_mean"] if "kld_mean" in row else row["kld"]
    interval = row["kld_mean_ci95"] if "kld_mean" in row else row["kld_ci95"]
    at = x(row["bytes_per_token"]), y(value)
    if interval:
        drawn.append(bar(at[0], y(interval[0]), y(interval[1]), f"bar {css}"))
    drawn.append(mark(shape, *at, 3.4 if family == "permutation" else 5.0, css, tip))
    return at


def _words(row: Row, kld: float) -> str:
    interval = row.get("kld_mean_ci95", row.get("kld_ci95"))
    ends = f" [{milli(interval[0])}, {milli(interval[1])}]" if interval else ""
    return f"{row['bytes_per_token']:,} bytes a token, {row['bpv']:.3f} bpv, KLD {milli(kld)}{ends} e-3"


def _axes(x: Scale, y: Scale, frame: tuple[float, float, float, float], per_bit: float, width: float) -> list[Markup]:
    left, top, right, bottom = frame
    drawn = []
    for value in y.ticks():
        drawn += [
            line(left, y(value), right, y(value), "grid"),
            text(left - 6, y(value) + 4, tick_text(value), anchor="end", css="tick"),
        ]
    first, last = int(x.low / per_bit) + 1, int(x.high / per_bit)
    step = 1 if width > 500 or last - first < 5 else 2
    for bits in range(first, last + 1, step):
        at = x(bits * per_bit)
        drawn += [
            line(at, bottom, at, bottom + 4, "axis"),
            text(at, bottom + 17, f"{bits} bpv", anchor="middle", css="tick"),
        ]
        drawn.append(text(at, bottom + 31, f"{bits * per_bit:,.0f}", anchor="middle", css="tick quiet"))
    drawn.append(line(left, bottom, right, bottom, "axis"))
    drawn.append(
        text((left + right) / 2, bottom + 50, "bits per value, and bytes a token below", anchor="middle", css="title")
    )
    drawn.append(text(13, (top + bottom) / 2, "KLD, 1e-3 nats (log)", anchor="middle", css="title", rotate=True))
    return drawn
