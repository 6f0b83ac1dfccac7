"""The few pieces of SVG that the report's charts are made of. Colours and fonts are the page's: classes, no styles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_DIGIT = 0.58  # width of a character over the font size, generous
FONT = 12.0


@dataclass(frozen=True)
class Scale:
    """Data to pixels: linear, or logarithmic where `log` is set and both ends are above 0."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies; beyond the ends it is held at the end."""
        low, high, at = (
            (math.log(each) for each in (self.low, self.high, max(value, 1e-300)))
            if self.log
            else (
                self.low,
                self.high,
                value,
            )
        )
        share = (min(max(at, low), high) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round values inside the scale, about as many as wanted."""
        return _log_ticks(self.low, self.high, wanted) if self.log else _linear_ticks(self.low, self.high, wanted)


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale with some room around positive values."""
    low, high = min(values), max(values)
    return Scale(low / 1.35, high * 1.35, start, end, log=True)


def _linear_ticks(low: float, high: float, wanted: int) -> list[float]:
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, wanted: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(found) >= min(wanted, 4):
            break
    if len(found) < 2:
        return _linear_ticks(low, high, wanted)
    return found[:: math.ceil(len(found) / (wanted + 2))]


def tick_text(kld: float) -> str:
    """A KLD in nats as the label of a tick, in 1e-3: '0.003', '10', '2,000'."""
    return f"{1e3 * kld:,.0f}" if kld >= 0.1 else f"{1e3 * kld:.3g}"


def text(x: float, y: float, content: str, *, anchor: str = "start", css: str = "", rotate: bool = False) -> Markup:
    """A line of text; `rotate` turns it a quarter left."""
    turn = Markup(' transform="rotate(-90 {x:.1f} {y:.1f})"').format(x=x, y=y) if rotate else ""
    shape = Markup('<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{css}"{turn}>{content}</text>')
    return shape.format(x=x, y=y, anchor=anchor, css=css, turn=turn, content=content)


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """A straight line."""
    shape = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>')
    return shape.format(x1, y1, x2, y2, css)


def path(points: Sequence[tuple[float, float]], css: str) -> Markup:
    """A line through points."""
    steps = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return Markup('<path d="{}" class="{}"/>').format(steps, css)


def mark(shape: str, x: float, y: float, size: float, css: str, tip: str = "") -> Markup:
    """A point: circle, square, diamond, triangle or cross, with a tooltip. Shapes differ where colours do."""
    wide = 1.4 * size
    corners = {
        "square": [(-size, -size), (size, -size), (size, size), (-size, size)],
        "diamond": [(0, -wide), (wide, 0), (0, wide), (-wide, 0)],
        "triangle": [(0, -1.2 * size), (1.2 * size, 0.9 * size), (-1.2 * size, 0.9 * size)],
    }
    title = Markup("<title>{}</title>").format(tip) if tip else Markup("")
    if shape == "circle":
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}" class="{}">{}</circle>').format(
            x, y, size, css, title
        )
    if shape == "cross":
        steps = f"M{x - size:.1f} {y - size:.1f}l{2 * size:.1f} {2 * size:.1f}m0 {-2 * size:.1f}l{-2 * size:.1f} {2 * size:.1f}"
    else:
        steps = "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners[shape]) + "z"
    return Markup('<path d="{}" class="{}">{}</path>').format(steps, css, title)


def bar(x: float, low: float, high: float, css: str, *, cap: float = 3.0) -> Markup:
    """An upright error bar with caps; low and high are pixels."""
    ends = line(x - cap, low, x + cap, low, css) + line(x - cap, high, x + cap, high, css)
    return line(x, low, x, high, css) + ends


def canvas(width: float, height: float, title: str, content: Sequence[Markup], css: str = "") -> Markup:
    """The whole picture; `title` is what a screen reader says."""
    shape = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" class="chart {}" role="img" aria-label="{}">{}</svg>')
    return shape.format(width, height, css, title, Markup("").join(content))


def text_width(content: str, size: float = FONT) -> float:
    """About how wide a text is, in pixels."""
    return _DIGIT * size * len(content)


def place_labels(
    points: Sequence[tuple[float, float, str]], taken: Sequence[tuple[float, float]], frame: tuple[float, ...]
) -> list[Markup]:
    """A label near each point (x, y, words), where it covers the fewest marks, labels and edges.

    taken: centres of everything drawn. frame: left, top, right, bottom. A label that ends far from its point gets a line.
    """
    boxes: list[tuple[float, float, float, float]] = []
    drawn = []
    for x, y, words in points:
        best: tuple[float, float, float, str, float] | None = None
        for rank, (dx, dy) in enumerate(_PLACES):
            anchor = "start" if dx > 0 else "end" if dx < 0 else "middle"
            width = text_width(words)
            left = x + dx - (0 if dx > 0 else width if dx < 0 else width / 2)
            box = (left, y + dy - 9, left + width, y + dy + 3)
            cost = rank + sum(30 for px, py in taken if box[0] - 4 < px < box[2] + 4 and box[1] - 4 < py < box[3] + 4)
            cost += sum(120 for other in boxes if _meet(box, other))
            outside = box[0] < frame[0] or box[2] > frame[2] or box[1] < frame[1] or box[3] > frame[3]
            cost += 400 if outside else 0
            if best is None or cost < best[0]:
                best = (cost, x + dx, y + dy, anchor, left)
        assert best is not None
        _, at, base, anchor, left = best
        boxes.append((left, base - 9, left + text_width(words), base + 3))
        if abs(base - y) > 18 or abs(at - x) > 18:
            drawn.append(line(x, y, at, base - 4 if base < y else base - 8, "leader"))
        drawn.append(text(at, base, words, anchor=anchor, css="label"))
    return drawn


_NEAR = [(9, 4), (-9, 4), (9, -7), (-9, -7), (9, 15), (-9, 15), (0, -11), (0, 19)]
_FAR = [
    (sx * dx, sy * dy)
    for dx, dy in ((20, 24), (14, 38), (34, 14), (34, 34), (20, 54))
    for sy in (-1, 1)
    for sx in (1, -1)
]
_PLACES = _NEAR + _FAR


def _meet(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
