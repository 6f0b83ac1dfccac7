"""The picture of a comparison: KL divergence (log) over bytes a token, of all and of far predictions, made from the JSON data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratakv.errors import UserError
from stratakv.measure.intervals import Floats
from stratakv.measure.table import labels, legend
from stratakv.picture import GRID, INK, QUIET, check_plot_path, picture, quiet_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Row = Mapping[str, Any]

# Okabe and Ito's palette, told apart by colour-blind readers; markers differ too
_FRONT, _OTHER, _REFERENCE = "#0072B2", "#6B6B6B", "#D55E00"
_FLOOR = 0.2  # of the lowest mean: how far down an interval is drawn that reaches 0 or below
_LINE_STEPS = 40  # how finely the front is told to the labels
# Where a label may sit, in points from its marker, best first
_NEAR = [(8, 6), (8, -12), (-8, 6), (-8, -12), (0, 11), (0, -17), (16, 18), (16, -24), (-16, 18), (-16, -24)]
_FAR = [(26, 32), (26, -38), (36, 46), (36, -52), (46, 60), (46, -66), (70, 25), (70, -30), (60, 80), (60, -86)]
_PLACES = _NEAR + [(sign * dx, dy) for dx, dy in _FAR for sign in (1, -1)]


def plot_comparison(data: Mapping[str, Any], path: str | Path) -> None:
    """Draw a "stratakv/compare/1" into a PNG or SVG file; the same data gives the same bytes.

    Far predictions have a frame of their own beside the one of all, with the same scale. Rows with KLD 0 have no place on a log
    axis, the caption names them. Raises UserError for a file name of another kind or a file that can't be written, and when no
    row is left to draw.
    """
    check_plot_path(path)
    every = {"all predictions": data["rows"]}
    if far := [{**row, **row["far"]} for row in data["rows"] if row.get("far")]:
        every[f"far predictions: {data['far']['chunks']} x {data['far']['context']} tokens"] = far
    drawn = {name: found for name, rows in every.items() if (found := [row for row in rows if row["kld_mean"] > 0])}
    shown = list(drawn.values())
    if not shown:
        raise UserError("nothing to draw: no profile has a KLD above 0, add one that quantizes")
    with picture(path, (9.0 if len(shown) == 1 else 15.0, 6.2)) as figure:
        frames = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        called = labels([row["name"] for row in data["rows"]])
        marked = [_draw(axes, data, rows, called) for axes, rows in zip(frames, shown, strict=True)]
        for axes, rows in zip(frames, shown, strict=True):
            _explain(axes, rows)
        for axes, name in zip(frames, drawn if far else (), strict=False):
            axes.set_title(name, fontsize=10, color=INK)
        frames[0].set_ylabel("mean KL divergence from the f16 cache, nats", color=INK)
        _title(figure, data, shown, legend({row["name"]: called[row["name"]] for rows in shown for row in rows}))
        figure.canvas.draw()
        figure.set_layout_engine("none")  # the frame stays where the labels are placed against it
        for axes, found, rows in zip(frames, marked, shown, strict=True):
            _place(figure, axes, found, rows)


def _draw(axes: Axes, data: Mapping[str, Any], shown: Sequence[Row], called: Mapping[str, str]) -> list[Annotation]:
    """called: what each row's name is written as."""
    floor = _FLOOR * min(row["kld_mean"] for row in shown)
    front = sorted((row["bytes_per_token"], row["kld_mean"]) for row in shown if row["pareto"])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=_FRONT, linewidth=1.1, alpha=0.55, zorder=1, label="Pareto front")
    found = []
    groups = {"reference": ("D", _REFERENCE), "on the front": ("o", _FRONT), "not on the front": ("s", _OTHER)}
    for row in shown:
        group = _group(row)
        marker, color = groups[group]
        x, y = row["bytes_per_token"], row["kld_mean"]
        if row["kld_mean_ci95"] is not None:
            low, high = (max(end, floor) for end in row["kld_mean_ci95"])
            axes.vlines(x, low, high, color=color, linewidth=1.2, zorder=2)
            for end in (low, high):
                axes.plot([x], [end], marker="_", color=color, markersize=5, zorder=2)
        axes.plot([x], [y], marker, color=color, markersize=6.5, markeredgecolor="white", markeredgewidth=0.8, zorder=3)
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        name = called[row["name"]]
        found.append(
            axes.annotate(name, (x, y), (8, 6), textcoords="offset points", color=INK, zorder=4, arrowprops=arrow)
        )
    for group, (marker, color) in groups.items():
        if any(_group(row) == group for row in shown):
            text = f"reference ({called.get(data['reference'], data['reference'])})" if group == "reference" else group
            axes.plot([], [], marker, color=color, markersize=6.5, markeredgecolor="white", label=text)
    axes.set_yscale("log")
    axes.margins(x=0.12, y=0.1)
    return found


def _group(row: Row) -> str:
    if row["verdict_kind"] == "reference":
        return "reference"
    return "on the front" if row["pareto"] else "not on the front"


def _explain(axes: Axes, shown: Sequence[Row]) -> None:
    """Axes and legend."""
    per_bit = shown[0]["bytes_per_token"] / shown[0]["bpv"]
    axes.set_xlabel("bytes a token, all layers", color=INK)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    above = axes.secondary_xaxis("top", functions=(lambda x: x / per_bit, lambda x: x * per_bit))
    above.set_xlabel("bits per value", color=QUIET)
    above.tick_params(colors=QUIET, which="both")
    quiet_frame(axes)
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor=GRID)


def _title(figure: Figure, data: Mapping[str, Any], shown: Sequence[Sequence[Row]], letters: Sequence[str]) -> None:
    """Title and caption of the whole. letters: lines that say what those in the frames stand for."""
    figure.suptitle(
        f"{data['model']['name']} on {data['text']['name']}: {data['chunks']} contexts of {data['context']} tokens",
        fontsize=11,
        color=INK,
    )
    intervals = any(row["kld_mean_ci95"] for rows in shown for row in rows)
    bars = (
        "Bars: 95 % interval over contexts, where it is larger than the mark."
        if intervals
        else "Too few contexts for intervals."
    )
    zero = [f"{row['name']} ({row['bytes_per_token']:,} bytes)" for row in data["rows"] if row["kld_mean"] == 0]
    caption = f"{bars} Lower left is better." + (f" Not shown, KLD exactly 0: {', '.join(zero)}." if zero else "")
    figure.supxlabel("\n".join([caption, *filter(None, letters)]), fontsize=8, color=QUIET, multialignment="left")


def _place(figure: Figure, axes: Axes, labels: Sequence[Annotation], rows: Sequence[Row]) -> None:
    """Give every label the first place where it hides no marker, bar, line or other label and stays in the frame."""
    from matplotlib.text import Text

    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    taken, placed = _occupied(axes, rows, renderer), np.empty((0, 4))
    frame = np.array([axes.bbox.extents])
    for label in labels:
        best, least = (_PLACES[0], np.empty(4)), np.inf
        for rank, place in enumerate(_PLACES):
            _move(label, place)
            box = np.array(Text.get_window_extent(label, renderer).extents)  # an Annotation's holds its line too
            outside = (box[2] - box[0]) * (box[3] - box[1]) - _shared(box, frame)
            cost = _shared(box, taken) + 4 * (_shared(box, placed) + outside) + rank
            if cost < least:
                best, least = (place, box), cost
        _move(label, best[0])
        if max(map(abs, best[0])) < 18 and label.arrow_patch is not None:
            label.arrow_patch.set_visible(False)
        placed = np.vstack([placed, best[1]])


def _move(label: Annotation, place: tuple[int, int]) -> None:
    label.set_position(place)
    label.set_horizontalalignment("left" if place[0] > 0 else "right" if place[0] < 0 else "center")


def _occupied(axes: Axes, rows: Sequence[Row], renderer: Any) -> Floats:
    """Boxes [n, 4] (x0, y0, x1, y1 in pixels) of the legend, the marks with their bars, and points along the front."""
    boxes = [box.get_window_extent(renderer).extents] if (box := axes.get_legend()) else []
    for row in rows:
        x, y = axes.transData.transform((row["bytes_per_token"], row["kld_mean"]))
        low, high = y - 9, y + 9
        if row["kld_mean_ci95"] is not None:
            ends = [axes.transData.transform((0, max(end, 1e-300)))[1] for end in row["kld_mean_ci95"]]
            low, high = min(low, max(ends[0], axes.bbox.y0)), max(high, ends[1])
        boxes.append((x - 9, low, x + 9, high))
    for line in axes.get_lines():
        corners = axes.transData.transform(line.get_xydata())
        for (x0, y0), (x1, y1) in pairwise(corners):
            for step in range(_LINE_STEPS):
                x, y = x0 + (x1 - x0) * step / _LINE_STEPS, y0 + (y1 - y0) * step / _LINE_STEPS
                boxes.append((x - 3, y - 3, x + 3, y + 3))
    return np.array(boxes)


def _shared(box: Floats, boxes: Floats) -> float:
    """The area that a box [4] has in common with boxes [n, 4], in square pixels."""
    size = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    return float(size.clip(min=0).prod(axis=1).sum())
