"""Charts, and how they look as SVG: colours come from the page's style, so that they follow light and dark.

Curves are told apart by dashes as well as colours. Nothing here needs a script.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

#: Colours and dash patterns that the style knows.
COLOURS, DASHES = 8, 4
_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 10, 44


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`. `unit` stands behind every number, and `factor` before it."""

    title: str
    low: float
    high: float
    is_log: bool = False
    factor: float = 1
    unit: str = ""

    def place(self, value: float) -> float:
        """Where on the axis, 0 to 1; beyond an end is at that end."""
        if not self.is_log:
            share = (value - self.low) / (self.high - self.low)
        elif value <= self.low:
            share = 0.0
        else:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(max(share, 0.0), 1.0)

    def ticks(self) -> list[float]:
        """Three to ten round numbers."""
        return _decades(self.low, self.high) if self.is_log else _round(self.low, self.high)

    def text(self, value: float) -> str:
        return f"{value * self.factor:.6g}{self.unit}"


def linear(title: str, values: Iterable[float], *, factor: float = 1, unit: str = "") -> Axis:
    """From zero to a little beyond the largest."""
    high = max(values, default=0.0)
    return Axis(title, 0.0, high * 1.06 if high > 0 else 1.0, factor=factor, unit=unit)


def log(title: str, values: Iterable[float], *, factor: float = 1, unit: str = "") -> Axis:
    """Around all positive values, at least one decade."""
    found = [value for value in values if value > 0]
    low, high = (min(found), max(found)) if found else (1.0, 10.0)
    if high / low < 10:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(10), middle * math.sqrt(10)
    return Axis(title, low / 1.1, high * 1.1, True, factor, unit)


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    step = max(1, math.ceil((last - first) / 7))
    whole = [10.0**power for power in range(first, last + 1, step)]
    if len(whole) > 2:
        return whole
    powers = range(first - 1, last + 2)
    finer = (digit * 10.0**power for power in powers for digit in (1, 2, 5))
    return [value for value in finer if low <= value <= high]


def _round(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


# ---------------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class Curve:
    """Points joined by lines, None breaks it; `band`: its smallest and largest x at every y."""

    label: str
    points: Sequence[tuple[float, float] | None]
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class Point:
    """A mean with its interval on both axes. `group` gives the colour; a faded one is dominated.
    `attributes` of its element are ours."""

    label: str
    group: int
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    is_faded: bool = False
    attributes: str = ""


@dataclass(frozen=True)
class Picture:
    """What is drawn, into a page (`svg`) or a file (`explore.report.plot`). `groups`: what the colours of
    points mean. `equal_within`: also y = x with a band of that share."""

    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve] = ()
    points: Sequence[Point] = ()
    groups: Sequence[str] = ()
    equal_within: float | None = None


def svg(picture: Picture) -> str:
    """The picture with its legend."""
    x, y, curves = picture.x, picture.y, picture.curves
    parts = [_axes(x, y)]
    if picture.equal_within is not None:
        parts.append(_diagonal(x, y, picture.equal_within))
    parts += [_band(x, y, curve, i) for i, curve in enumerate(curves) if curve.band is not None]
    parts += [
        f'<path class="line {_look(i)}" d="{path}"/>'
        for i, curve in enumerate(curves)
        if (path := _path(x, y, curve.points))
    ]
    parts += [_point(x, y, point) for point in picture.points]
    labels = [curve.label for curve in curves] or picture.groups
    return _svg(picture.title, parts) + legend(labels, dots=not curves)


def stacked(label: str, rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> str:
    """Horizontal bars of (class, share) parts; shares of a row add up to one."""
    parts = []
    for i, (name, shares) in enumerate(rows):
        top = 4 + 44 * i
        parts.append(f'<text x="2" y="{top + 12}">{escape(name)}</text>')
        left = 0.0
        for kind, share in shares:
            width = share * _WIDTH
            parts.append(
                f'<rect class="s-{kind}" x="{left:.2f}" y="{top + 17}" width="{width:.2f}"'
                f' height="18"><title>{escape(f"{kind} {share:.1%}")}</title></rect>'
            )
            left += width
    return _svg(label, parts, 44 * len(rows) + 4)


def legend(labels: Sequence[str], *, dots: bool = False) -> str:
    mark = '<circle class="dot c{0}" cx="14" cy="6" r="4"/>' if dots else ""
    entries = "".join(
        '<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true">'
        + (mark.format(i % COLOURS) or f'<path class="line {_look(i)}" d="M0 6H28"/>')
        + f"</svg>{escape(label)}</li>"
        for i, label in enumerate(labels)
    )
    return f'<ul class="legend">{entries}</ul>' if labels else ""


# ---------------------------------------------------------------------- parts


def _svg(label: str, parts: Iterable[str], height: int = _HEIGHT) -> str:
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _look(i: int) -> str:
    return f"c{i % COLOURS} d{i % DASHES}"


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _axes(x: Axis, y: Axis) -> str:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    for value in x.ticks():
        at = _x(x, value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(
            f'<text class="mid" x="{at:.1f}" y="{bottom + 16}">{escape(x.text(value))}</text>'
        )
    for value in y.ticks():
        at = _y(y, value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(
            f'<text class="end" x="{_LEFT - 5}" y="{at + 4:.1f}">{escape(y.text(value))}</text>'
        )
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="mid" x="{middle}" y="{_HEIGHT - 8}">{escape(x.title)}</text>')
    parts.append(
        f'<text class="mid" transform="translate(13 {(_TOP + bottom) / 2}) rotate(-90)">'
        f"{escape(y.title)}</text>"
    )
    return "".join(parts)


def _path(x: Axis, y: Axis, points: Iterable[tuple[float, float] | None]) -> str:
    text, is_open = [], False
    for point in points:
        if point is not None:
            text.append(f"{'L' if is_open else 'M'}{_x(x, point[0]):.1f} {_y(y, point[1]):.1f}")
        is_open = point is not None
    return "".join(text)


def _band(x: Axis, y: Axis, curve: Curve, i: int) -> str:
    assert curve.band is not None
    heights = [point[1] for point in curve.points if point is not None]
    low, high = curve.band
    around = [*zip(low, heights, strict=True), *reversed([*zip(high, heights, strict=True)])]
    return f'<path class="band c{i % COLOURS}" d="{_path(x, y, around)}Z"/>'


def _diagonal(x: Axis, y: Axis, within: float) -> str:
    low, high = max(x.low, y.low), min(x.high, y.high)
    edges = [(low, low * (1 - within)), (high, high * (1 - within))]
    edges += [(high, high * (1 + within)), (low, low * (1 + within))]
    return (
        f'<path class="band c7" d="{_path(x, y, edges)}Z"/>'
        f'<path class="line c7 d1" d="{_path(x, y, [(low, low), (high, high)])}"/>'
    )


def _point(x: Axis, y: Axis, point: Point) -> str:
    at_x, at_y = _x(x, point.x[0]), _y(y, point.y[0])
    cross = (
        f"M{_x(x, point.x[1]):.1f} {at_y:.1f}H{_x(x, point.x[2]):.1f}"
        f"M{at_x:.1f} {_y(y, point.y[1]):.1f}V{_y(y, point.y[2]):.1f}"
    )
    faded = " faded" if point.is_faded else ""
    return (
        f'<g class="c{point.group % COLOURS}{faded}"{point.attributes}><title>{escape(point.label)}'
        f'</title><path class="cross" d="{cross}"/>'
        f'<circle class="dot" cx="{at_x:.1f}" cy="{at_y:.1f}" r="4"/></g>'
    )
