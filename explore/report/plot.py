"""The pictures of pages as files: what `chart.svg` draws, by matplotlib. Same bytes every time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from explore.report.chart import Picture
from traces.figure_style import SETTINGS

#: Okabe and Ito's colours, told apart by most colour-blind readers; line styles repeat the cue.
COLOURS = ("#000000", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#0072b2", "#cc79a7", "#999999")
STYLES = ("-", "--", "-.", ":")
_BAND = "0.6"


def figure(pictures: Sequence[Picture]) -> Figure:
    """Side by side, with one legend."""
    with mpl.rc_context(SETTINGS):
        made = Figure(figsize=(5 * max(1, len(pictures)), 4.2), layout="constrained")
        names: dict[str, Line2D] = {}
        for position, picture in enumerate(pictures):
            axes = made.add_subplot(1, len(pictures), position + 1)
            names |= _draw(axes, picture)
        if names:
            handles = list(names.values())
            made.legend(handles, list(names), loc="outside lower center", ncols=4, frameon=False)
        return made


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
    for index, curve in enumerate(picture.curves):
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        points = [point or (math.nan, math.nan) for point in curve.points]
        heights = [height for _, height in points]
        (named[curve.label],) = axes.plot(
            [at for at, _ in points], heights, style, color=colour, lw=1.4
        )
        if curve.band is not None:
            axes.fill_betweenx(heights, *curve.band, color=colour, alpha=0.15, lw=0)
    return named


def _points(axes: Axes, picture: Picture) -> dict[str, Line2D]:
    for point in picture.points:
        (x, left, right), (y, low, high) = point.x, point.y
        axes.errorbar(
            [x],
            [y],
            [[y - low], [high - y]],
            [[x - left], [right - x]],
            fmt="o",
            color=COLOURS[point.group % len(COLOURS)],
            alpha=0.3 if point.is_faded else 1.0,
            capsize=2,
            markersize=4,
        )
    return {
        name: Line2D([], [], marker="o", ls="", color=COLOURS[index % len(COLOURS)])
        for index, name in enumerate(picture.groups)
    }
