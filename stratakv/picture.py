"""How all pictures are drawn: the same look, the same bytes for the same data, and no file where drawing fails."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratakv.errors import UserError
from stratakv.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
INK, QUIET, GRID = "#222222", "#555555", "#E3E3E3"


def check_plot_path(path: str | Path) -> str:
    """The format that a file name asks for, 'png' or 'svg'. Raises UserError for another one."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot draw {path}: the name must end in {' or '.join(SUFFIXES)}")
    return suffix[1:]


@contextmanager
def picture(path: str | Path, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure of `size` inches to draw into; the file is written at the end of the block.

    Raises UserError for a file name of another kind or a file that can't be written.
    """
    kind = check_plot_path(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.hashsalt": "stratakv", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    # neither a user's matplotlibrc nor its fonts change the picture
    with mpl.rc_context({**mpl.rcParamsDefault, **style, "font.size": 9}):
        figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    write_file(path, buffer.getvalue())


def quiet_frame(axes: Axes, grid: Any = "both") -> None:
    """A pale grid behind the data along an axis ('x', 'y') or both, grey ticks, pale lines at the top and the right."""
    axes.grid(True, which="major", axis=grid, color=GRID, linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, which="both")
    for side in ("top", "right"):
        axes.spines[side].set_color(GRID)
