"""Figures of a validation: predicted against measured latencies, and what single steps and copies are
off by against load. Same bytes every time."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("svg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from explore.studies.figures import COLOURS
from explore.validation.predict import BAR_SHARE, Line, Prediction
from explore.validation.step_replay import KINDS, Compared
from traces.figure_style import SETTINGS

#: Latencies share an axis; counts and rates would not.
SHOWN = ("ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "tbt_p50_s", "tbt_p95_s", "tbt_p99_s")
MARKS = ("o", "s", "^", "D", "v", "P")
LOADS = {
    "decode": "batch",
    "prefill": "prompt tokens of the step",
    "mixed": "prompt tokens beside decodes",
    "copy": "blocks",
}
_BAND = "0.6"


def scatter(found: Prediction) -> Figure:
    """Latencies of every system that have a number on both sides, y = x and a band of 10 %."""
    with mpl.rc_context(SETTINGS):
        picture = Figure(figsize=(8.4, 5.0), layout="constrained")
        axes = picture.subplots()
        shown = [line for line in found.lines if line.metric in SHOWN and _is_there(line)]
        _band(axes, shown)
        for index, system in enumerate(found.repeats):
            for metric, mark in zip(SHOWN, MARKS, strict=True):
                lines = [line for line in shown if (line.metric, line.system) == (metric, system)]
                for line in lines:
                    _dot(axes, line, mark, COLOURS[index % len(COLOURS)])
        axes.set(xscale="log", yscale="log", ylabel="predicted, s", title=found.scenario)
        axes.set_xlabel("measured, s (bar: smallest to largest of the repeats)")
        if shown:
            axes.legend(fontsize=7, frameon=False, ncols=2)
        return picture


def residuals(found: Prediction) -> Figure:
    """Predicted over measured, less one, of every step and copy alone; a line through the medians."""
    with mpl.rc_context(SETTINGS):
        picture = Figure(figsize=(10, 3.4), layout="constrained")
        for axes, kind in zip(picture.subplots(1, len(KINDS)), KINDS, strict=True):
            axes.axhline(0, color=_BAND, lw=1)
            axes.axhspan(-100 * BAR_SHARE, 100 * BAR_SHARE, color=_BAND, alpha=0.2, lw=0)
            for index, (system, compared) in enumerate(found.compared.items()):
                for one in compared:
                    if one.kind == kind:
                        _cloud(axes, one, system, COLOURS[index % len(COLOURS)])
            axes.set(title=kind, xlabel=LOADS[kind])
            axes.set_ylim(-100, 150)
        picture.axes[0].set_ylabel("predicted is off by, %")
        handles, names = picture.axes[0].get_legend_handles_labels()
        if handles:
            picture.axes[0].legend(handles, names, fontsize=8, frameon=False)
        return picture


def _dot(axes: Axes, line: Line, mark: str, colour: str) -> None:
    measured = line.measured or 0.0
    below = measured - (line.low if line.low is not None else measured)
    above = (line.high if line.high is not None else measured) - measured
    axes.errorbar(
        [measured],
        [line.predicted or 0.0],
        xerr=[[below], [above]],
        fmt=mark,
        color=colour,
        capsize=2,
        markersize=5,
        label=f"{line.system} {line.metric.removesuffix('_s').replace('_', ' ').upper()}",
    )


def _is_there(line: Line) -> bool:
    return bool(line.measured and line.predicted)


def _band(axes: Axes, lines: list[Line]) -> None:
    values = [value for line in lines for value in (line.measured, line.predicted) if value]
    if not values:
        return
    low, high = min(values) / 1.5, max(values) * 1.5
    axes.plot([low, high], [low, high], color=_BAND, linewidth=1)
    for_band = ([low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high])
    axes.fill_between(*for_band, color=_BAND, alpha=0.2, lw=0)


def _cloud(axes: Axes, one: Compared, system: str, colour: str) -> None:
    off = 100 * (one.predicted_ns / one.measured_ns - 1)
    axes.plot(one.load, off, ".", color=colour, alpha=0.15, markersize=3)
    loads = np.unique(one.load)
    medians = [float(np.median(off[one.load == load])) for load in loads]
    axes.plot(loads, medians, color=colour, lw=1.2, marker="o", markersize=2.5, label=system)
