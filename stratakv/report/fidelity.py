"""The chart of predicted against measured KLD of random assignments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from stratakv.measure.table import milli
from stratakv.report.svg import canvas, line, log_scale, mark, text, tick_text


def fidelity_chart(fidelity: Mapping[str, Any], *, width: float) -> Markup | None:
    """Both axes logarithmic and equal, the diagonal is a perfect prediction. None without positive points."""
    points = [point for point in fidelity["points"] if point["predicted"] > 0 and point["measured"] > 0]
    if not points:
        return None
    size = min(width, 460.0)
    left, top, right, bottom = 52.0, 12.0, size - 14, size - 60
    values = [point[key] for point in points for key in ("predicted", "measured")]
    x, y = log_scale(values, left, right), log_scale(values, bottom, top)
    drawn = []
    for value in x.ticks(4):
        drawn += [
            line(left, y(value), right, y(value), "grid"),
            text(left - 6, y(value) + 4, tick_text(value), anchor="end", css="tick"),
        ]
        drawn += [
            line(x(value), top, x(value), bottom, "grid"),
            text(x(value), bottom + 17, tick_text(value), anchor="middle", css="tick"),
        ]
    drawn.append(line(left, bottom, right, top, "front"))
    for point in points:
        told = f"predicted {milli(point['predicted'])}, measured {milli(point['measured'])} e-3"
        tip = f"{told}, {point['bytes_per_token']:,} bytes a token"
        drawn.append(mark("circle", x(point["predicted"]), y(point["measured"]), 3.4, "uniform", tip))
    drawn += [line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis")]
    drawn.append(text((left + right) / 2, bottom + 40, "predicted KLD, 1e-3 nats (log)", anchor="middle", css="title"))
    drawn.append(
        text(13, (top + bottom) / 2, "measured KLD, 1e-3 nats (log)", anchor="middle", css="title", rotate=True)
    )
    title = f"Measured over predicted KLD of {len(points)} random assignments; on the diagonal they are equal"
    return canvas(size, bottom + 52, title, drawn)
