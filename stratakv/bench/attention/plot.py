"""The picture of an attention benchmark: time of a decode step by what is read, made from the JSON data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.errors import UserError
from stratakv.picture import GRID, INK, QUIET, check_plot_path, picture, quiet_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]

_GROUPS = 4
_OURS, _PEER, _FLOOR = "#0072B2", "#9A9A9A", "#D55E00"
_MARKS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")


def plot_attention(data: Mapping[str, Any], path: str | Path) -> None:
    """Draw a "stratakv/bench-attention/1" into a PNG or SVG file: left, a step at one context (32k, or the longest below),
    right, over the contexts. Raises UserError for a file name of another kind, and when no decode step was measured."""
    check_plot_path(path)
    groups = _GROUPS if any(_groups(row) == _GROUPS for row in data["rows"]) else None
    rows = [row for row in data["rows"] if groups is None or _groups(row) == groups]
    if not rows:
        raise UserError("nothing to draw: no decode step was measured, leave 'decode' among the parts")
    contexts = sorted({row["context"] for row in rows})
    shown = max((context for context in contexts if context <= 32768), default=contexts[0])
    with picture(path, (12.6, 5.2)) as figure:
        bars, lines = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _bars(bars, [row for row in rows if row["context"] == shown], shown)
        _lines(lines, rows)
        first = rows[0]
        figure.suptitle(
            f"Decode attention, {first['q_heads']} query heads, {first['kv_heads']} kv heads, head_dim {first['head_dim']}, "
            f"{data['threads']} threads",
            fontsize=11,
            color=INK,
        )
        figure.supxlabel(
            f"{data['machine']['cpu']}, kernel {data['kernel']}, torch {data['machine']['torch']}. Medians; less is better.",
            fontsize=8,
            color=QUIET,
        )


def _groups(row: Row) -> int:
    return int(row["q_heads"] // row["kv_heads"])


def _bars(axes: Axes, rows: Sequence[Row], context: int) -> None:
    """One bar a row, with a mark where reading its bytes at the measured bandwidth alone would end."""
    ordered = sorted(rows, key=lambda row: row["ms"], reverse=True)
    least = min(row["ms"] * min(1.0, row["share_of_read_bandwidth"]) for row in ordered)
    for place, row in enumerate(ordered):
        axes.barh(place, row["ms"], color=_PEER if row["peer"] else _OURS, height=0.7, zorder=2)
        floor = row["ms"] * row["share_of_read_bandwidth"]
        axes.plot([floor, floor], [place - 0.42, place + 0.42], color=_FLOOR, linewidth=1.4, zorder=3)
        axes.text(row["ms"] * 1.06, place, f"{row['ms']:.3g} ms", va="center", color=INK, fontsize=8)
    axes.plot([], [], color=_FLOOR, linewidth=1.4, label="reading its bytes at full bandwidth")
    axes.set_yticks(range(len(ordered)), [row["name"] for row in ordered])
    axes.set_xscale("log")
    axes.set_xlim(least * 0.6, ordered[0]["ms"] * 3)
    axes.set_xlabel(f"ms a layer and token at {context:,} tokens", color=INK)
    axes.legend(loc="upper right", frameon=True, framealpha=0.9, edgecolor=GRID, fontsize=8)
    quiet_frame(axes, "x")


def _lines(axes: Axes, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(row["name"] for row in rows))
    for index, name in enumerate(names):
        points = sorted((row["context"], row["ms"]) for row in rows if row["name"] == name)
        peer = any(row["peer"] for row in rows if row["name"] == name)
        axes.plot(
            *zip(*points, strict=True),
            color=_PEER if peer else _OURS,
            marker=_MARKS[index % len(_MARKS)],
            linestyle="--" if peer else "-",
            linewidth=1.1,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({row["context"] for row in rows}))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel("tokens of context", color=INK)
    axes.set_ylabel("ms a layer and token", color=INK)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=7)
    quiet_frame(axes)
