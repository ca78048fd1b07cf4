"""Charts as inline SVG: lines, stacked bars, a roofline. Colours come from the page (classes c0, c1, ...).

Values are there without a mouse too: a chart stands beside a table, and carries a text for screen readers.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, WIDE, HEIGHT = 640, 1000, 250
"""In units of the drawing: of a chart in half a page's width, and in the whole."""
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 40
POINTS = 500
"""Drawn of a line at most; of each stretch its lowest and highest."""

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart."""

    name: str
    points: Sequence[Point]
    colour: int
    """Number of the page's colour."""
    style: str = "line"
    """line, faint (thin), dots, or area."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is along one side."""

    label: str
    """With its unit in brackets."""
    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        if self.logarithmic:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1)]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where values lie in the drawing."""

    x_axis: Axis
    y_axis: Axis
    width: int
    height: int = HEIGHT

    @property
    def right(self) -> int:
        return self.width - RIGHT

    @property
    def floor(self) -> int:
        return self.height - BOTTOM

    def x(self, value: float) -> float:
        return LEFT + self.x_axis.share(value) * (self.right - LEFT)

    def y(self, value: float) -> float:
        return self.floor - self.y_axis.share(value) * (self.floor - TOP)

    def points(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def axis(label: str, values: Sequence[float], *, from_zero: bool = False) -> Axis:
    """An axis around finite values."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    low = min(0.0, low) if from_zero else low
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return Axis(label=label, low=low if from_zero else low - margin, high=high + margin)


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, *, from_zero: bool = False, width: int = WIDTH,
               marks: Sequence[Point] = ()) -> str:  # fmt: skip
    """`marks`: vertical lines at (x, number), a step's beginning."""
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    if not xs:
        return ""
    x_axis = Axis(label=x_label, low=min(xs), high=max(xs) if max(xs) > min(xs) else min(xs) + 1)
    y_axis = axis(y_label, [y for line in lines for _, y in line.points], from_zero=from_zero)
    frame = Frame(x_axis=x_axis, y_axis=y_axis, width=width)
    parts = [_grid(frame)]
    for x, number in marks:
        at = frame.x(x)
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{frame.floor}"/>')
        parts.append(f'<text class="tick" x="{at + 4:.1f}" y="{TOP + 9}">step {number:.0f}</text>')
    parts += [_line(line, frame) for line in lines]
    said = "; ".join(f"{line.name} from {short(line.points[0][1])} to {short(line.points[-1][1])}" for line in lines)
    return _figure(parts, frame, f"{y_label} over {x_label}: {said}", hover=_hover(lines, frame), legend=lines)


def stacked_bars(rows: Sequence[tuple[str, Sequence[tuple[str, float, int]]]], x_label: str) -> str:
    """Horizontal bars over the whole width: (label, [(part, value, colour)]), on one scale."""
    most = max((sum(value for _, value, _ in parts) for _, parts in rows), default=0.0)
    if not most:
        return ""
    bar, gap = 24, 10
    x_axis = Axis(label=x_label, low=0.0, high=most * 1.01)
    frame = Frame(x_axis=x_axis, y_axis=x_axis, width=WIDE, height=TOP + len(rows) * (bar + gap) + BOTTOM)
    parts = []
    for tick in x_axis.ticks():
        at = frame.x(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{frame.floor}"/>')
        parts.append(f'<text class="tick middle" x="{at:.1f}" y="{frame.floor + 15}">{short(tick)}</text>')
    for number, (label, pieces) in enumerate(rows):
        y, begin = TOP + number * (bar + gap), 0.0
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + bar / 2 + 4}">{escape(label)}</text>')
        for name, value, colour in pieces:
            x, width = frame.x(begin), frame.x(begin + value) - frame.x(begin)
            begin += value
            parts.append(
                f'<rect class="fill c{colour}" x="{x:.1f}" y="{y}" width="{max(width - 0.6, 0):.1f}" height="{bar}">'
                f"<title>{escape(f'{name}: {short(value)}')}</title></rect>"
            )
    parts.append(_label_below(frame))
    used = {name for _, pieces in rows for name, value, _ in pieces if value > most / 1000}
    keys = [Line(name=name, points=(), colour=colour, style="area") for name, _, colour in rows[0][1] if name in used]
    return _figure(parts, frame, f"{x_label}, by part", legend=keys)


def roofline(marks: Sequence[tuple[str, float, float, int]], copy_gbs: float, tflops: float) -> str:
    """Marks (name, operations a byte, TFLOP/s, colour) under what the device can do."""
    if not marks:
        return ""
    intensities, rates = [mark[1] for mark in marks], [mark[2] for mark in marks]
    ridge = 1e3 * tflops / copy_gbs
    x_axis = Axis(label="operations a byte", low=_decade_below(min(*intensities, ridge)),
                  high=_decade_above(max(*intensities, ridge)), logarithmic=True)  # fmt: skip
    y_axis = Axis(label="TFLOP/s", low=_decade_below(min(rates)), high=_decade_above(max(*rates, tflops)),
                  logarithmic=True)  # fmt: skip
    frame = Frame(x_axis=x_axis, y_axis=y_axis, width=WIDE)
    edge = max(x_axis.low, y_axis.low * 1e3 / copy_gbs)
    corners = [(edge, edge * copy_gbs / 1e3), (ridge, tflops), (x_axis.high, tflops)]
    parts = [_grid(frame), f'<polyline class="roof" points="{frame.points(corners)}"/>']
    for name, intensity, rate, colour in marks:
        title = escape(f"{name}: {short(rate)} TFLOP/s at {short(intensity)} operations a byte")
        at = f'cx="{frame.x(intensity):.1f}" cy="{frame.y(rate):.1f}"'
        parts.append(f'<circle class="dot c{colour}" {at} r="5"><title>{title}</title></circle>')
    legend = {name: colour for name, _, _, colour in marks}
    keys = [Line(name=name, points=(), colour=colour, style="dots") for name, colour in legend.items()]
    return _figure(parts, frame, "operations under the roofline", legend=keys)


def short(value: float | None) -> str:
    """Three or four figures, with thousands apart."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if 15 > size >= 3:
        return f"{value:,.0f}"
    if -4 <= size < 3:
        text = f"{value:.{max(0, 2 - size)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2e}"


def _line(line: Line, frame: Frame) -> str:
    points = [point for point in thinned(line.points) if math.isfinite(point[1])]
    if line.style == "dots":
        circles = "".join(
            f'<circle class="dot c{line.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5"/>'
            for x, y in points
        )
        return f'<polyline class="faint c{line.colour}" points="{frame.points(points)}"/>{circles}'
    style = "line" if line.style == "area" else line.style
    drawn = f'<polyline class="{style} c{line.colour}" points="{frame.points(points)}"/>'
    if line.style != "area" or not points:
        return drawn
    floor = [(points[-1][0], frame.y_axis.low), (points[0][0], frame.y_axis.low)]
    return f'<polygon class="below c{line.colour}" points="{frame.points([*points, *floor])}"/>{drawn}'


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS of them, no peak and no valley lost."""
    if len(points) <= POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / POINTS)
    kept = []
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        lowest, highest = (choose(stretch, key=lambda point: point[1]) for choose in (min, max))
        kept += sorted({lowest, highest})
    return kept


def _grid(frame: Frame) -> str:
    parts = []
    for tick in frame.y_axis.ticks():
        y = frame.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{short(tick)}</text>')
    for tick in frame.x_axis.ticks():
        parts.append(f'<text class="tick middle" x="{frame.x(tick):.1f}" y="{frame.floor + 16}">{short(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{frame.right}" y1="{frame.floor}" y2="{frame.floor}"/>')
    turned = f'transform="translate(13 {(TOP + frame.floor) / 2}) rotate(-90)"'
    parts.append(f'<text class="label middle" {turned}>{escape(frame.y_axis.label)}</text>')
    return "".join(parts) + _label_below(frame)


def _label_below(frame: Frame) -> str:
    middle = (LEFT + frame.right) / 2
    return f'<text class="label middle" x="{middle}" y="{frame.height - 6}">{escape(frame.x_axis.label)}</text>'


def _figure(parts: Sequence[str], frame: Frame, said: str, *, hover: str = "", legend: Sequence[Line] = ()) -> str:
    keys = "".join(f'<span><i class="key {key.style} c{key.colour}"></i>{escape(key.name)}</span>' for key in legend)
    shown = f'<div class="legend">{keys}</div>' if len(legend) > 1 else ""
    drawing = f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(said)}">'
    return f'<figure class="chart"{hover}>{drawing}{"".join(parts)}</svg>{shown}</figure>'


def _hover(lines: Sequence[Line], frame: Frame) -> str:
    """What the page's script shows beside the pointer."""
    told = {
        "box": [LEFT, TOP, frame.right, frame.floor, frame.width],
        "x": [frame.x_axis.label, frame.x_axis.low, frame.x_axis.high],
        "lines": [[line.name, [[round(x, 6), short(y)] for x, y in thinned(line.points)]] for line in lines],
    }
    return f' data-values="{escape(json.dumps(told), quote=True)}"'


def _round_step(step: float) -> float:
    """The next of 1, 2, 5, 10, ... times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(each * power for each in (1, 2, 5, 10) if each * power >= step * (1 - 1e-9))


def _decade_below(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value))


def _decade_above(value: float) -> float:
    return 10.0 ** math.ceil(math.log10(value))
