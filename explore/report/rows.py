"""Dots with intervals, one named row each: who is better by how much, and what adds up to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from explore.report import chart
from explore.report.chart import Axis
from explore.report.looks import Look
from explore.studies.estimates import Ratio

_WIDTH, _ROW, _TOP, _BOTTOM = 480, 21, 8, 40
_RIGHT = 58
#: Width of a letter, the longest label that stands beside its row, and the height of a row below its own.
_LETTER, _LONGEST, _TALL = 6.9, 25, 40


@dataclass(frozen=True)
class Row:
    """One dot, full where it is sure; `value` None: `told` says why. `start`: where its bar begins, of a row
    that stands on the one before."""

    label: str
    look: Look
    value: float | None
    low: float
    high: float
    told: str
    is_sure: bool = False
    start: float | None = None


@dataclass(frozen=True)
class Rows:
    """What is drawn, on an axis with a line at one: no difference."""

    title: str
    x: Axis
    rows: Sequence[Row]


def of_ratio(label: str, look: Look, found: Ratio, told: str, start: float | None = None) -> Row:
    """A ratio, times where its bar begins."""
    base = 1.0 if start is None else start
    if found.value is None:
        return Row(label, look, None, base, base, told, start=start)
    at, factor = base * found.value, found.factor or 1.0
    return Row(label, look, at, at / factor, at * factor, told, found.is_sure, start)


def axis(title: str, rows: Iterable[Row]) -> Axis:
    """Logarithmic, around every interval and one; an interval wider than a hundredfold is cut there."""
    known = [row for row in rows if row.value is not None]
    middle = [row.value for row in known if row.value is not None] or [1.0]
    low, high = min(*middle, 1.0), max(*middle, 1.0)
    low = max(min([row.low for row in known] + [low]), low / 10)
    high = min(max([row.high for row in known] + [high]), high * 10)
    if high / low < 2:
        low, high = low / 1.2, high * 1.2
    return Axis(title, low / 1.08, high * 1.08, is_log=True, unit="x")


def svg(picture: Rows) -> str:
    """The picture; every row says itself, so it has no legend."""
    longest = max((len(row.label) for row in picture.rows), default=0)
    is_above = longest > _LONGEST
    left = 12 if is_above else 12 + _LETTER * longest
    height = _TALL if is_above else _ROW
    bottom = _TOP + height * len(picture.rows)
    right = _WIDTH - _RIGHT

    def across(value: float) -> float:
        return left + picture.x.place(value) * (right - left)

    parts = [f'<path class="axis" d="M{left:.1f} {bottom}H{right}"/>']
    for value in picture.x.ticks():
        at = across(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        text = escape(picture.x.text(value))
        parts.append(f'<text class="mid" x="{at:.1f}" y="{bottom + 15}">{text}</text>')
    at = across(1.0)
    parts.append(f'<path class="one" d="M{at:.1f} {_TOP - 4}V{bottom}"/>')
    middle = (left + right) / 2
    parts.append(
        f'<text class="mid" x="{middle:.1f}" y="{bottom + 33}">{escape(picture.x.title)}</text>'
    )
    for i, row in enumerate(picture.rows):
        y = _TOP + height * (i + (0.72 if is_above else 0.5))
        at_label = f'x="12" y="{y - 14:.1f}"' if is_above else f'x="{left - 8:.1f}" y="{y + 4:.1f}"'
        label = f'<text class="{"" if is_above else "end"}" {at_label}>{escape(row.label)}</text>'
        parts.append(_row(row, label, y, left, across))
    return chart.frame(picture.title, parts, bottom + _BOTTOM)


def _row(row: Row, label: str, y: float, left: float, across: Callable[[float], float]) -> str:
    text = y + 4
    title = f"<title>{escape(f'{row.label}: {row.told}')}</title>"
    if row.value is None:
        told = f'<text class="dim" x="{left + 6:.1f}" y="{text:.1f}">{escape(row.told)}</text>'
        return f"<g>{title}{label}{told}</g>"
    bar = ""
    if row.start is not None:
        begin, end = sorted((across(row.start), across(row.value)))
        bar = f'<path class="bar" d="M{begin:.1f} {y - 6:.1f}H{end:.1f}V{y + 6:.1f}H{begin:.1f}Z"/>'
    cross = f'<path class="cross" d="M{across(row.low):.1f} {y:.1f}H{across(row.high):.1f}"/>'
    dot = chart.marker(row.look, across(row.value), y, "dot" if row.is_sure else "dot hollow")
    own = row.value if row.start is None else row.value / row.start
    value = f'<text x="{_WIDTH - _RIGHT + 8}" y="{text:.1f}">{escape(_short(own))}</text>'
    return f'<g class="c{row.look.colour}">{title}{label}{bar}{cross}{dot}{value}</g>'


def _short(value: float) -> str:
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"
