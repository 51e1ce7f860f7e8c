"""Charts, and how they look as SVG: colours come from the page's style, so that they follow light and dark.

Systems look as `explore.report.looks` says, by name. Nothing here needs a script.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from explore.report import looks
from explore.report.looks import Look

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 10, 44


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`. `unit` stands behind every number, and `factor` before it. `marks`: where its
    ticks are, if not at round numbers."""

    title: str
    low: float
    high: float
    is_log: bool = False
    factor: float = 1
    unit: str = ""
    marks: tuple[float, ...] = ()

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
        """Its marks, or three to ten round numbers."""
        if self.marks:
            return list(self.marks)
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
    found = [value for value in finer if low <= value <= high]
    return found if len(found) > 2 else _round(low, high)


def _round(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


# ---------------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class Curve:
    """Points joined by lines, None breaks it. `band`: at every y its smallest and largest x; with `rises`, at
    every x its smallest and largest y. Without a `look` it has that of its place; without a label it
    is not in the legend."""

    label: str
    points: Sequence[tuple[float, float] | None]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    look: Look | None = None
    rises: bool = False

    def edges(self) -> list[tuple[float, float]]:
        """Around its band."""
        assert self.band is not None
        low, high = self.band
        known = [point for point in self.points if point is not None]
        if self.rises:
            xs = [x for x, _ in known]
            return [*zip(xs, low, strict=True), *reversed([*zip(xs, high, strict=True)])]
        ys = [y for _, y in known]
        return [*zip(low, ys, strict=True), *reversed([*zip(high, ys, strict=True)])]


@dataclass(frozen=True)
class Point:
    """A mean with its interval on both axes, of a system; a faded one is dominated. `attributes` of its
    element are ours."""

    label: str
    system: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    is_faded: bool = False
    attributes: str = ""


@dataclass(frozen=True)
class Picture:
    """What is drawn, into a page (`svg`) or a file (`explore.report.plot`). `systems`: those that its points
    are of. `equal_within`: also y = x with a band of that share. `limit`: a line across at that y."""

    title: str
    x: Axis
    y: Axis
    curves: Sequence[Curve] = ()
    points: Sequence[Point] = ()
    systems: Sequence[str] = ()
    equal_within: float | None = None
    limit: float | None = None

    def looks(self) -> list[Look]:
        """Of its curves."""
        return [curve.look or looks.nth(i) for i, curve in enumerate(self.curves)]

    def legend(self) -> list[tuple[str, Look, bool]]:
        """What its legend names, and whether that is a marker or a line."""
        lines = [
            (curve.label, look, False)
            for curve, look in zip(self.curves, self.looks(), strict=True)
            if curve.label
        ]
        return lines + [(name, looks.of(name), True) for name in self.systems]


def svg(picture: Picture) -> str:
    """The picture with its legend."""
    x, y, curves = picture.x, picture.y, list(zip(picture.curves, picture.looks(), strict=True))
    parts = [_axes(x, y)]
    if picture.equal_within is not None:
        parts.append(_diagonal(x, y, picture.equal_within))
    parts += [
        f'<path class="band c{look.colour}" d="{_path(x, y, curve.edges())}Z"/>'
        for curve, look in curves
        if curve.band is not None
    ]
    parts += [
        f'<path class="line {_look(look)}" d="{path}"/>'
        for curve, look in curves
        if (path := _path(x, y, curve.points))
    ]
    if picture.limit is not None:
        at = _y(y, picture.limit)
        parts.append(f'<path class="limit" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="limit-name end" x="{_WIDTH - _RIGHT}" y="{at - 5:.1f}">limit</text>'
        )
    parts += [_point(x, y, point) for point in picture.points]
    return frame(picture.title, parts) + legend(picture.legend())


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
    return frame(label, parts, 44 * len(rows) + 4)


def legend(entries: Iterable[tuple[str, Look, bool]]) -> str:
    """What looks how: a label, its look, and whether it is a marker or a line."""
    told = "".join(
        '<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true">'
        + (
            f'<g class="c{look.colour}">{marker(look, 14, 6)}</g>'
            if is_marker
            else f'<path class="line {_look(look)}" d="M0 6H28"/>'
        )
        + f"</svg>{escape(label)}</li>"
        for label, look, is_marker in entries
    )
    return f'<ul class="legend">{told}</ul>' if told else ""


def marker(look: Look, x: float, y: float, kind: str = "dot") -> str:
    """A marker around a place; its colour is that of the element around it."""
    path = looks.MARKER_PATHS[look.marker]
    return f'<path class="{kind}" transform="translate({x:.1f} {y:.1f})" d="{path}"/>'


# ---------------------------------------------------------------------- parts


def frame(label: str, parts: Iterable[str], height: int = _HEIGHT) -> str:
    """An SVG element that says what it shows."""
    return (
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img"'
        f' aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _look(look: Look) -> str:
    return f"c{look.colour} d{look.dash}"


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
    faded, look = " faded" if point.is_faded else "", looks.of(point.system)
    return (
        f'<g class="c{look.colour}{faded}"{point.attributes}><title>{escape(point.label)}'
        f'</title><path class="cross" d="{cross}"/>{marker(look, at_x, at_y)}</g>'
    )
