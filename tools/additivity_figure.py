"""Predicted against measured KLD of the random assignments in evidence files, a panel a file: the figure of docs/results.md.

python tools/additivity_figure.py docs/results/tuned-*.evidence.json -o docs/results/additivity.png
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_MARKS, _LINE, _GRID, _INK = "#0072B2", "#D55E00", "#E3E3E3", "#222222"


def draw(evidences: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG; the same data gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(evidences) // _COLUMNS)
    columns = min(_COLUMNS, len(evidences))
    with mpl.rc_context({**mpl.rcParamsDefault, "font.family": "DejaVu Sans", "font.size": 9}):
        figure = Figure(figsize=(3.2 * columns, 3.4 * rows), dpi=130, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, evidence in zip(panels, evidences, strict=False):
            _panel(axes, evidence)
        for axes in panels[len(evidences) :]:
            axes.set_visible(False)
        figure.supxlabel("predicted KLD, 1e-3 nats, by a fit that has not seen the assignment")
        figure.supylabel("measured KLD, 1e-3 nats, one batch of contexts")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_file(path, buffer.getvalue())


def _panel(axes: Axes, evidence: Mapping[str, Any]) -> None:
    fit = evidence["fidelity"]
    predicted = [1e3 * point["predicted"] for point in fit["points"]]
    measured = [1e3 * point["measured"] for point in fit["points"]]
    low, high = 0.95 * min(predicted + measured), 1.05 * max(predicted + measured)
    axes.plot([low, high], [low, high], color=_LINE, linewidth=1.2)
    axes.plot(predicted, measured, "o", color=_MARKS, markersize=3, alpha=0.6, markeredgewidth=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{evidence['model']['name']}, {evidence['budget']['text']}", color=_INK, fontsize=9)
    told = [f"{len(predicted)} assignments", f"R² {fit['r2']:.2f}, bias {round(100 * fit['bias']):+d} %"]
    told.append(f"gradients alone: R² {fit['gradients']['r2']:.2f}")
    axes.text(0.03, 0.97, "\n".join(told), transform=axes.transAxes, va="top", fontsize=8, color=_INK)


def main() -> None:
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evidence", nargs="+", metavar="NAME.evidence.json")
    parser.add_argument("-o", "--output", required=True, type=Path)
    args = parser.parse_args()
    draw([json.loads(Path(name).read_text(encoding="utf-8")) for name in args.evidence], args.output)


if __name__ == "__main__":
    main()
