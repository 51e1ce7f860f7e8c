"""What is in one workload or two, as a figure. Same bytes every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from traces.describing.columns import NONE, NS, Columns, Floats
from traces.figure_style import SETTINGS

_COLOURS = ("#0072b2", "#d55e00")
_STYLES = ("-", "--", ":", "-.")
#: Points of a curve; the figure of a million requests is no larger than that of a thousand.
_POINTS = 400


def figure(columns: Sequence[Columns], names: Sequence[str]) -> Figure:
    """Six panels: prompts, replies and turns, gaps by how the reply ended, arrivals, clients. Each
    workload has its colour."""
    with mpl.rc_context(SETTINGS):
        drawn = Figure(figsize=(11, 6.4), layout="constrained")
        panels = drawn.subplots(2, 3).ravel()
        for index, (one, name) in enumerate(zip(columns, names, strict=True)):
            colour = _COLOURS[index]
            _lengths(panels[0], one, name, colour)
            _curve(panels[1], one.outputs, name, colour, "-")
            _curve(panels[2], one.turns, name, colour, "-")
            _gaps(panels[3], one, name, colour)
            _arrivals(panels[4], one, name, colour)
            _clients(panels[5], one, name, colour)
        titles = (
            ("Prompts", "tokens", "share up to x"),
            ("Replies", "tokens", "share up to x"),
            ("Turns of a session", "turns", "share up to x"),
            ("Gaps before later turns", "seconds", "share up to x"),
            (f"Arrivals, {_arrival_words(columns)}", "minutes", "per second, by the minute"),
            ("Clients", "rank", "share of requests"),
        )
        for panel, (title, x, y) in zip(panels, titles, strict=True):
            panel.set(title=title, xlabel=x, ylabel=y)
            panel.grid(visible=True, alpha=0.25)
            if panel.lines:
                panel.legend(fontsize=7, framealpha=0.8, edgecolor="none")
            else:
                panel.set(xticks=[], yticks=[])
                panel.text(0.5, 0.5, "not known", ha="center", transform=panel.transAxes)
        return drawn


def _arrival_words(columns: Sequence[Columns]) -> str:
    timed = [one for one in columns if one.arrivals.size > 1] or columns
    kinds = {"requests" if one.header.timing == "open" else "sessions" for one in timed}
    return " and ".join(sorted(kinds))


def _curve(axes: Axes, values: Any, name: str, colour: str, style: str) -> None:
    """The share of values up to x, x logarithmic; zeros are drawn at half of the least."""
    kept: Floats = np.sort(np.asarray(values, dtype=np.float64))
    if not kept.size:
        return
    positive = kept[kept > 0]
    least = float(positive[0]) / 2 if positive.size else 0.5
    shares = (np.arange(kept.size) + 1) / kept.size
    at = np.unique(np.linspace(0, kept.size - 1, _POINTS).astype(int))
    axes.step(
        np.maximum(kept[at], least), shares[at], style, where="post", color=colour, label=name
    )
    axes.set_xscale("log")


def _lengths(axes: Axes, one: Columns, name: str, colour: str) -> None:
    _curve(axes, one.inputs, f"{name}: whole", colour, "-")
    if one.children.size:
        _curve(axes, one.added, f"{name}: new in it", colour, "--")


def _gaps(axes: Axes, one: Columns, name: str, colour: str) -> None:
    parts = one.gaps_by_stop()
    for index, (stop, values) in enumerate(parts.items()):
        label = name if stop is None and len(parts) == 1 else f"{name}: {stop or 'not said'}"
        _curve(axes, values / NS, label, colour, _STYLES[index % len(_STYLES)])


def _arrivals(axes: Axes, one: Columns, name: str, colour: str) -> None:
    times = one.arrivals
    if times.size < 2:
        return
    minutes = max(1, int((times[-1] - times[0]) // (60 * NS)))
    width = -(-minutes // _POINTS)
    counts = np.histogram((times - times[0]) / (60 * NS * width), np.arange(minutes // width + 1))[
        0
    ]
    if counts.size:
        at = np.arange(counts.size) * width
        axes.step(at, counts / (60 * width), where="post", color=colour, label=name)


def _clients(axes: Axes, one: Columns, name: str, colour: str) -> None:
    codes = one.arrays["client"]
    known = codes[codes != NONE]
    if not known.size:
        return
    counts = np.sort(np.bincount(known))[::-1]
    axes.loglog(np.arange(counts.size) + 1, counts / known.size, ".-", color=colour, label=name)
