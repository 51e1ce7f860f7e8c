"""Figures of a comparison: tails of TTFT and TBT, pools and link over time. Same bytes every time."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from explore.studies.compare import Comparison
from explore.studies.series import TAIL
from explore.studies.warm_up import WarmUp
from traces.figure_style import SETTINGS

#: Okabe and Ito's colours, told apart by most colour-blind readers; line styles repeat the cue.
COLOURS = ("#000000", "#56b4e9", "#009e73", "#e69f00", "#d55e00", "#0072b2", "#cc79a7", "#999999")
STYLES = ("-", "--", "-.", ":")


def tails(comparison: Comparison) -> Figure:
    """Share of turns (TTFT) and of gaps (TBT) that take longer than x; both axes logarithmic."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, key, title in (
            (left, "ttft_s", "Time to first token"),
            (right, "tbt_s", "Time between tokens"),
        ):
            for index, name in enumerate(comparison.systems):
                _tail(axes, comparison, name, key, index)
            axes.set(xscale="log", yscale="log", xlabel="seconds", title=title)
            axes.set_ylabel("share that takes longer")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y * 100:g} %"))
            axes.grid(visible=True, which="major", alpha=0.25)
        figure.legend(
            *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
        return figure


def _tail(axes: Axes, comparison: Comparison, name: str, key: str, index: int) -> None:
    """Mean curve over runs; for two systems also the band from the smallest to the largest run."""
    curves = [result["series"][key] for result in comparison.results[name]]
    length = min(map(len, curves))
    if not length:
        return
    columns = list(zip(*(curve[:length] for curve in curves), strict=True))
    left = [1 - share for share in TAIL[:length]]
    colour = COLOURS[index % len(COLOURS)]
    mean = [sum(column) / len(column) for column in columns]
    axes.plot(mean, left, color=colour, linestyle=STYLES[index % len(STYLES)], label=name, lw=1.6)
    if name in comparison.telling:  # more bands than these hide each other
        low, high = [min(c) for c in columns], [max(c) for c in columns]
        axes.fill_betweenx(left, low, high, color=colour, alpha=0.15, lw=0)


def timeline(comparison: Comparison) -> Figure:
    """Pools, link and batch of the first run, for the first and the last interesting system."""
    names = comparison.telling
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10, 2.6 * len(names)), layout="constrained")
        grid = figure.subplots(len(names), 1, sharex=True, squeeze=False)
        for row, name in enumerate(names):
            axes = grid[row][0]
            line = comparison.results[name][0]["series"].get("timeline") or {}
            if not line:
                continue
            hours = [value / 3600 for value in line["time_s"]]
            for index, (key, label) in enumerate(
                (
                    ("device", "device pool in use"),
                    ("host", "host pool in use"),
                    ("h2d", "link busy, to device"),
                    ("d2h", "link busy, to host"),
                )
            ):
                percent = [value * 100 for value in line[key]]
                style = "--" if key == "d2h" else "-"  # both directions of a copy often coincide
                axes.plot(hours, percent, style, color=COLOURS[index + 1], lw=1.2, label=label)
            axes.set(title=name, ylabel="percent", ylim=(0, 101))
            axes.grid(visible=True, alpha=0.25)
        grid[-1][0].set_xlabel("hours")
        figure.legend(
            *grid[0][0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
        return figure


def warm_up(found: WarmUp) -> Figure:
    """What the warm-up was found from: TTFT over time, batch means over all pilot runs, and the cut
    that holds for all systems; dotted, what each system asked for."""
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        axes = figure.subplots()
        for index, (name, trace) in enumerate(found.traces.items()):
            colour = COLOURS[index % len(COLOURS)]
            style = STYLES[index % len(STYLES)]
            axes.plot(trace.arrival_s, trace.ttft_s, style, color=colour, lw=1, label=name)
            axes.axvline(trace.cut_s, color=colour, linestyle=":", lw=1)
        axes.axvline(found.cut_s, color="#000000", lw=1.6, label=f"cut at {found.cut_s:g} s")
        axes.set(xlabel="arrival, seconds", ylabel="TTFT, seconds")
        axes.set_title(f"Warm-up (MSER-5, mean of {found.runs} runs)")
        axes.grid(visible=True, alpha=0.25)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return figure
