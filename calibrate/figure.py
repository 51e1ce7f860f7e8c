"""The fit beside its points: predicted against measured, and what is left over. Same bytes each time."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from calibrate.profile import HeldOut, MeasuredPoint, Profile
from policy.errors import ConfigError
from traces.figure_style import SETTINGS

BAND = 0.10
#: Okabe and Ito's colours and a shape for each kind of point; held-out ones are filled.
_LOOKS = {
    "decode": ("#0072b2", "o"),
    "prefill": ("#d55e00", "^"),
    "prompts": ("#e69f00", "P"),
    "mixed": ("#009e73", "D"),
    "copy": ("#000000", "s"),
    "submit": ("#cc79a7", "v"),
}


def fit_figure(profile: Profile) -> Figure:
    """Above: predicted against measured, y = x and a band of 10 %. Below: predicted / measured - 1
    against measured. Left steps, right copies. Raises ConfigError without points to show."""
    if profile.fit is None or not profile.points:
        raise ConfigError(f"profile {profile.name}: holds no points to show")
    sides: tuple[tuple[str, set[str], HeldOut], ...] = (
        ("Steps", {"decode", "prefill", "prompts", "mixed"}, profile.fit.steps),
        ("Copies", {"copy", "submit"}, profile.fit.copies),
    )
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10, 6.6), layout="constrained")
        grid = figure.subplots(2, 2, sharex="col", height_ratios=(2, 1))
        figure.suptitle(f"{profile.name}: {profile.machine}, {profile.model.name}, {profile.date}")
        for column, (title, kinds, errors) in enumerate(sides):
            points = [point for point in profile.points if point.kind in kinds]
            _scatter(grid[0][column], points)
            _residuals(grid[1][column], points)
            grid[0][column].set_title(
                f"{title}: {errors.points} held-out points off by {100 * errors.mean:.1f} %"
                f" (P95 {100 * errors.p95:.1f} %)"
            )
        return figure


def _scatter(axes: Axes, points: list[MeasuredPoint]) -> None:
    measured = np.array([point.centre_ns for point in points]) / 1e6
    ends = np.array([measured.min() * 0.8, measured.max() * 1.25])
    axes.plot(ends, ends, color="#999999", lw=1, label="y = x, ±10 %")
    axes.fill_between(ends, ends * (1 - BAND), ends * (1 + BAND), color="#999999", alpha=0.2, lw=0)
    _dots(axes, points, [point.predicted_ns or 0.0 for point in points], 1e6)
    axes.set(xscale="log", yscale="log", ylabel="predicted, ms")
    axes.set_ylim(ends[0] * 0.7, ends[1] * 1.4)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8)


def _residuals(axes: Axes, points: list[MeasuredPoint]) -> None:
    axes.axhline(0, color="#999999", lw=1)
    axes.axhspan(-100 * BAND, 100 * BAND, color="#999999", alpha=0.2, lw=0)
    off = [100 * ((point.predicted_ns or 0.0) / point.centre_ns - 1) for point in points]
    _dots(axes, points, off, 1.0)
    axes.set(xlabel="measured, ms", ylabel="predicted is off by, %")


def _dots(axes: Axes, points: list[MeasuredPoint], values: list[float], unit: float) -> None:
    for kind, (colour, shape) in _LOOKS.items():
        for held_out in (False, True):
            chosen = [i for i, p in enumerate(points) if p.kind == kind and p.held_out == held_out]
            if chosen:
                axes.scatter(
                    [points[i].centre_ns / 1e6 for i in chosen],
                    [values[i] / unit for i in chosen],
                    s=16,
                    marker=shape,
                    edgecolors=colour,
                    facecolors=colour if held_out else "none",
                    linewidths=0.8,
                    label=f"{kind}, {'held out' if held_out else 'fitted'}",
                )
