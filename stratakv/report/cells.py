"""Small charts of what one changed cell costs: KLD by layer, K and V, one chart a type, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from stratakv.measure.table import milli
from stratakv.report.svg import Scale, bar, canvas, line, log_scale, mark, text, text_width, tick_text

HEIGHT = 220.0
MANY = 40  # layers from which on marks need a wider chart to stand apart
_GAP = 5.0  # between the numbers of two layers
_SIDES = {"k": ("circle", "side-k", -1), "v": ("square", "side-v", 1)}

Cell = Mapping[str, Any]


def cell_charts(sensitivity: Mapping[str, Any], bits: Mapping[str, float]) -> list[dict[str, Any]]:
    """One {"type", "sign", "charts"} a type that was tried, coarsest first. sign: "added" or "saved", what most cells do.

    charts: "wide" and "narrow", the same one up to MANY layers. bits: per value, by type.
    """
    cells = [cell for cell in sensitivity["cells"] if value_of(cell) is not None]
    names = sorted({cell["type"] for cell in cells}, key=lambda name: (bits[name], name))
    charts = []
    for name in names:
        own = [cell for cell in cells if cell["type"] == name]
        saves = sum(value_of(cell) or 0.0 for cell in own) < 0
        if any(value_of(cell) for cell in own):
            word = "saved" if saves else "added"
            narrow = _chart(own, -1 if saves else 1, name, word, 300.0)
            many = max(cell["ordinal"] for cell in own) >= MANY
            wide = _chart(own, -1 if saves else 1, name, word, 480.0) if many else narrow
            charts.append({"type": name, "sign": word, "charts": {"wide": wide, "narrow": narrow}})
    return charts


def value_of(cell: Cell) -> float | None:
    """The measured KLD that a cell adds; what its gradient predicts where it was not measured; None where neither is known."""
    found = cell["gradient"] if cell["kld"] is None else cell["kld"]
    return None if found is None else float(found)


def _chart(cells: Sequence[Cell], sign: int, name: str, word: str, width: float) -> Markup:
    left, top, right, bottom = 58.0, 12.0, width - 8, HEIGHT - 40
    values = [sign * (value_of(cell) or 0.0) for cell in cells]
    highest = max(values)
    lowest = max(min(value for value in values if value > 0), highest / 3000)
    ends_above = [high for cell in cells if (ends := _ends(cell, sign)) and (high := ends[1]) > 0]
    y = log_scale([lowest / 2, highest, *ends_above], bottom, top)
    layers = max(cell["ordinal"] for cell in cells) + 1
    x = Scale(-0.6, layers - 0.4, left, right)
    drawn = []
    for value in y.ticks(4):
        drawn += [
            line(left, y(value), right, y(value), "grid"),
            text(left - 5, y(value) + 4, tick_text(value), anchor="end", css="tick"),
        ]
    for ordinal in _layer_ticks(layers, right - left):
        drawn.append(text(x(ordinal), bottom + 15, str(ordinal), anchor="middle", css="tick"))
    shift = min(5.0, (right - left) / layers / 4.5)
    for cell, value in zip(cells, values, strict=True):
        shape, css, way = _SIDES[cell["side"]]
        at, predicted = x(cell["ordinal"]) + way * shift, cell["kld"] is None
        ends = _ends(cell, sign)
        told = f" [{milli(ends[0])}, {milli(ends[1])}]" if ends else ""
        told += " e-3, predicted" if predicted else " e-3"
        tip = f"layer {cell['ordinal']}, {cell['side'].upper()} {name}: KLD {word} {milli(value)}{told}"
        if ends:
            drawn.append(bar(at, y(max(ends[0], y.low)), y(max(ends[1], y.low)), f"bar {css}", cap=2))
        drawn.append(
            mark(
                shape,
                at,
                y(max(value, y.low)),
                3.4 if layers <= MANY else 2.2,
                f"{css} hollow" if predicted else css,
                tip,
            )
        )
    drawn.append(line(left, bottom, right, bottom, "axis"))
    drawn.append(text((left + right) / 2, HEIGHT - 6, "KV layer", anchor="middle", css="title"))
    drawn.append(text(12, (top + bottom) / 2, f"KLD {word}, 1e-3 (log)", anchor="middle", css="title", rotate=True))
    return canvas(width, HEIGHT, f"KLD {word} when one layer's K or V alone is {name}, by layer", drawn)


def _ends(cell: Cell, sign: int) -> tuple[float, float] | None:
    if not cell["ci95"]:
        return None
    low, high = sorted(sign * end for end in cell["ci95"])
    return low, high


def _layer_ticks(layers: int, width: float) -> range:
    """Every layer, or every second, fourth ... one, so that their numbers stand apart."""
    each = text_width(str(layers - 1)) + _GAP
    return range(0, layers, next(step for step in (1, 2, 4, 8, 16, 32) if -(-layers // step) * each <= width))


def side_mark(side: str) -> Markup:
    """A side's mark, for the legend."""
    shape, css, _ = _SIDES[side]
    return Markup('<svg viewBox="0 0 16 16" class="key" aria-hidden="true">{}</svg>').format(
        mark(shape, 8, 8, 4.2, css)
    )
