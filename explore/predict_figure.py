"""Predicted against measured, one point for each latency of each system, with the 10 % band."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from explore.predict import Line, Prediction

#: Latencies share an axis; counts and rates would not.
SHOWN = ("ttft_p50_s", "ttft_p95_s", "ttft_p99_s", "tbt_p50_s", "tbt_p95_s", "tbt_p99_s")
MARKS = ("o", "s", "^", "D", "v", "P")


def figure(found: Prediction) -> Figure:
    """Latencies of every system that have a number on both sides."""
    picture = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = picture.subplots()
    shown = [line for line in found.lines if line.metric in SHOWN and _is_there(line)]
    _band(axes, shown)
    for metric, mark in zip(SHOWN, MARKS, strict=True):
        lines = [line for line in shown if line.metric == metric]
        if lines:
            axes.errorbar(
                [line.measured or 0.0 for line in lines],
                [line.predicted or 0.0 for line in lines],
                xerr=[(line.spread or 0.0) / 2 for line in lines],
                fmt=mark,
                label=metric.removesuffix("_s").replace("_", " ").upper(),
                capsize=2,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("measured, s (bar: spread of the repeats)")
    axes.set_ylabel("predicted, s")
    axes.set_title(f"Predicted by {found.profile}")
    axes.legend(fontsize=8)
    return picture


def _is_there(line: Line) -> bool:
    return bool(line.measured and line.predicted)


def _band(axes: Axes, lines: list[Line]) -> None:
    values = [value for line in lines for value in (line.measured, line.predicted) if value]
    if not values:
        return
    low, high = min(values) / 1.5, max(values) * 1.5
    axes.plot([low, high], [low, high], color="0.3", linewidth=1)
    axes.fill_between(
        [low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color="0.85", zorder=0
    )
