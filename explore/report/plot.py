"""The pictures of pages as files: what `chart.svg` draws, by matplotlib. Same bytes every time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from explore.report import looks
from explore.report.chart import Picture
from explore.report.looks import COLOURS, DASHES, MARKERS
from explore.report.rows import Rows
from policy.errors import ConfigError
from traces.figure_style import SETTINGS

#: Inches, and pictures side by side: of a paper's column, of its page, of a page's own figures.
WIDTHS = {"single": (3.35, 1), "double": (7.0, 2)}
_BAND, _EDGE = "0.6", "white"


def figure(pictures: Sequence[Picture | Rows], width: str = "double") -> Figure:
    """On a grid as wide as a column or a page of a paper, with one legend. Raises ConfigError for
    another width."""
    if width not in WIDTHS:
        raise ConfigError(f"width: {str(width)[:40]!r} is not one of {', '.join(WIDTHS)}")
    inches, most = WIDTHS[width]
    columns = min(most, max(1, len(pictures)))
    rows = -(-max(1, len(pictures)) // columns)
    tall = max(map(_height, pictures), default=2.6)
    with mpl.rc_context(SETTINGS):
        made = Figure(figsize=(inches, tall * rows + 0.35), layout="constrained")
        names: dict[str, Line2D] = {}
        for position, picture in enumerate(pictures):
            axes = made.add_subplot(rows, columns, position + 1)
            names |= _rows(axes, picture) if isinstance(picture, Rows) else _draw(axes, picture)
        if names:
            handles = list(names.values())
            made.legend(
                handles, list(names), loc="outside lower center", ncols=2 * columns, frameon=False
            )
        return made


def _height(picture: Picture | Rows) -> float:
    return 0.8 + 0.24 * len(picture.rows) if isinstance(picture, Rows) else 2.6


def _rows(axes: Axes, picture: Rows) -> dict[str, Line2D]:
    """Dots with intervals, named on the left; one that is not sure is hollow."""
    x, count = picture.x, len(picture.rows)
    axes.set(title=picture.title, xlabel=x.title, xscale="log" if x.is_log else "linear")
    axes.set(xlim=(x.low, x.high), ylim=(count - 0.4, -0.6))
    axes.set_xticks(x.ticks(), [x.text(value) for value in x.ticks()])
    axes.set_yticks(range(count), [textwrap.fill(row.label, 26) for row in picture.rows])
    axes.minorticks_off()
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x", alpha=0.25)
    axes.axvline(1, color=_BAND, lw=1)
    for at, row in enumerate(picture.rows):
        if row.value is None:
            axes.text(x.low, at, f" {row.told}", va="center", color=_BAND)
            continue
        colour = COLOURS[row.look.colour]
        if row.start is not None:
            axes.plot(
                [row.start, row.value],
                [at, at],
                color=colour,
                lw=6,
                alpha=0.3,
                solid_capstyle="butt",
            )
        axes.errorbar(
            [row.value],
            [at],
            xerr=[[row.value - row.low], [row.high - row.value]],
            fmt=MARKERS[row.look.marker],
            color=colour,
            markerfacecolor=colour if row.is_sure else _EDGE,
            markersize=4.5,
            capsize=2,
            lw=1.2,
        )
    return {}


def _draw(axes: Axes, picture: Picture) -> dict[str, Line2D]:
    """One picture; what its legend names."""
    x, y = picture.x, picture.y
    axes.set(title=picture.title, xlabel=x.title, ylabel=y.title)
    axes.set(xscale="log" if x.is_log else "linear", yscale="log" if y.is_log else "linear")
    axes.set(xlim=(x.low, x.high), ylim=(y.low, y.high))
    axes.set_xticks(x.ticks(), [x.text(value) for value in x.ticks()])
    axes.set_yticks(y.ticks(), [y.text(value) for value in y.ticks()])
    axes.minorticks_off()
    axes.grid(visible=True, alpha=0.25)
    if picture.equal_within is not None:
        low, high = max(x.low, y.low), min(x.high, y.high)
        axes.plot([low, high], [low, high], color=_BAND, lw=1)
        below, above = ([low * share, high * share] for share in _around(picture.equal_within))
        axes.fill_between([low, high], below, above, color=_BAND, alpha=0.2, lw=0)
    return _curves(axes, picture) | _points(axes, picture)


def _around(share: float) -> tuple[float, float]:
    return 1 - share, 1 + share


def _curves(axes: Axes, picture: Picture) -> dict[str, Line2D]:
    named = {}
    for curve, look in zip(picture.curves, picture.looks(), strict=True):
        colour, style = COLOURS[look.colour], DASHES[look.dash]
        points = [point or (math.nan, math.nan) for point in curve.points]
        heights = [height for _, height in points]
        (line,) = axes.plot([at for at, _ in points], heights, style, color=colour, lw=1.4)
        if curve.label:
            named[curve.label] = line
        if curve.band is not None:
            axes.fill(*zip(*curve.edges(), strict=True), color=colour, alpha=0.15, lw=0)
    if picture.limit is not None:
        axes.axhline(picture.limit, color=COLOURS[0], lw=1.2, ls=(0, (6, 4)))
    return named


def _points(axes: Axes, picture: Picture) -> dict[str, Line2D]:
    for point in picture.points:
        (x, left, right), (y, low, high) = point.x, point.y
        look = looks.of(point.system)
        axes.errorbar(
            [x],
            [y],
            [[y - low], [high - y]],
            [[x - left], [right - x]],
            fmt=MARKERS[look.marker],
            color=COLOURS[look.colour],
            alpha=0.3 if point.is_faded else 1.0,
            capsize=2,
            markersize=4.5,
        )
    return {
        name: Line2D([], [], marker=MARKERS[look.marker], ls="", color=COLOURS[look.colour])
        for name, look, is_marker in picture.legend()
        if is_marker
    }
