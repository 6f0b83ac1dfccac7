"""The picture of generation benchmarks: tokens per second over context, ours and llama.cpp's, made from the JSON data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.errors import UserError
from stratakv.picture import INK, QUIET, check_plot_path, picture, quiet_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

_OURS, _THEIRS = ("#0072B2", "#56B4E9", "#009E73", "#004A73"), ("#9A9A9A", "#6E6E6E", "#C4C4C4")
_MARKS = ("o", "s", "D", "^", "v")


def plot_generate(results: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw one or several "stratakv/bench-generate/1" into a PNG or SVG file, a panel a model.

    Raises UserError for a file name of another kind, and when nothing was measured.
    """
    check_plot_path(path)
    rows = [row for data in results for row in data["rows"]]
    models = list(dict.fromkeys(row["model"] for row in rows))
    if not models:
        raise UserError("nothing to draw: no row was measured")
    looks = _looks(rows)
    columns = min(2, len(models))
    lines = -(-len(models) // columns)
    with picture(path, (5.2 * columns, 3.4 * lines + 0.6)) as figure:
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for panel, model in zip(panels, models, strict=False):
            _panel(panel, [row for row in rows if row["model"] == model], model, looks)
        for panel in panels[len(models) :]:
            panel.set_axis_off()
        lines_of = {line.get_label(): line for panel in panels for line in panel.get_lines()}
        figure.legend(
            handles=[lines_of[look["label"]] for look in looks.values()],
            loc="outside upper center",
            ncols=min(5, len(looks)),
            frameon=False,
            fontsize=8.5,
        )
        machine = results[0]["machine"]
        figure.supxlabel(
            f"{machine['cpu']}, {results[0]['threads']} threads, medians over tokens; more is better",
            fontsize=8,
            color=QUIET,
        )


def _looks(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Colour, line and name of each cache, the same in all panels: ours solid and in colour, others dashed and grey."""
    found: dict[str, dict[str, Any]] = {}
    ours = theirs = 0
    for name, peer in dict.fromkeys((row["cache"], row["peer"]) for row in rows):
        number = theirs if peer else ours
        colors = _THEIRS if peer else _OURS
        found[name] = {
            "color": colors[number % len(colors)],
            "marker": _MARKS[number % len(_MARKS)],
            "linestyle": "--" if peer else "-",
            "label": name if peer else f"stratakv {name}",
        }
        ours, theirs = (ours, theirs + 1) if peer else (ours + 1, theirs)
    return found


def _panel(axes: Axes, rows: Sequence[Row], model: str, looks: Mapping[str, Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(row["cache"] for row in rows):
        points = sorted((row["context"], row["tokens_per_second"]) for row in rows if row["cache"] == name)
        axes.plot(
            *zip(*points, strict=True),
            linewidth=1.3,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            **looks[name],
        )
    axes.set_title(model, fontsize=10, color=INK)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
    axes.set_xticks(sorted({row["context"] for row in rows}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of context", color=INK)
    axes.set_ylabel("tokens per second", color=INK)
    axes.minorticks_off()
    quiet_frame(axes)
