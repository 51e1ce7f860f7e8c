"""Figures of a reproduction: gains along every axis with intervals, and where swapping meets recompute."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from explore.report import looks
from explore.report.looks import COLOURS, DASHES
from explore.reproduce import crossover
from explore.reproduce.study import Found, Place
from explore.studies.estimates import speedup_of
from explore.words import HEADINGS
from traces.figure_style import SETTINGS

OURS, THEIRS = "fastswitch", "paged-keep"
METRICS = ("ttft_p95_s", "ttft_p99_s", "tbt_p999_s")
MARKS = ("o", "s", "^")
#: Groups, the first of which that was run is shown, and what their axis is called.
AXES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("dispatch",), "price of a copy call"),
    (("load",), "load, of the baseline's capacity"),
    (("frequency, more", "frequency"), "priority updates per step"),
    (("host memory, more", "host memory"), "host memory"),
    (("initial group, more", "initial group"), "initial group, blocks"),
    (("think time",), "mean think time"),
)
SETUPS = ("8b-markov", "8b-random")


def sensitivity(found: Found) -> Figure:
    """How many times better fastswitch is than the baseline that keeps KV, along every axis."""
    groups = [(name, words) for names, words in AXES if (name := _first(names, found)) is not None]
    columns = min(3, max(1, len(groups)))
    rows = -(-max(1, len(groups)) // columns)
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(3.6 * columns, 2.9 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(groups) :]:
            axes.set_visible(False)
        for axes, (group, words) in zip(grid.flat, groups, strict=False):
            for row, setup in enumerate(SETUPS):
                for index, metric in enumerate(METRICS):
                    _line(axes, found, group, setup, metric, index, row)
            axes.axhline(1, color="0.6", lw=1)
            axes.set(yscale="log", xlabel=words)
            names = [variant.name for variant in found.variants[group]]
            axes.set_xticks(range(len(names)), names, fontsize=7)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(visible=True, alpha=0.25)
        grid[0][0].set_ylabel(f"times better than {THEIRS}")
        handles, names = grid[0][0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        return figure


def _first(names: Sequence[str], found: Found) -> str | None:
    """The first group that has a pair to show."""
    for name in names:
        for place in found.places(name):
            if found.of(place, OURS) and found.of(place, THEIRS):
                return name
    return None


def _line(
    axes: Axes, found: Found, group: str, setup: str, metric: str, index: int, row: int
) -> None:
    """A metric over the variants, a little beside the others so that intervals can be told apart."""
    xs, ys, below, above = [], [], [], []
    for position, variant in enumerate(found.variants[group]):
        place = Place(group, setup, variant.name)
        ours, theirs = found.of(place, OURS), found.of(place, THEIRS)
        if ours is None or theirs is None:
            continue
        ratio = speedup_of(ours, theirs, metric)
        if ratio.value is None or ratio.factor is None:
            continue
        xs.append(position + 0.07 * (index + len(METRICS) * row - len(METRICS) + 0.5))
        ys.append(ratio.value)
        below.append(ratio.value - ratio.value / ratio.factor)
        above.append(ratio.value * ratio.factor - ratio.value)
    if xs:
        axes.errorbar(
            xs,
            ys,
            yerr=[below, above],
            fmt=MARKS[index] + DASHES[row],
            color=COLOURS[(index * 2 + 1) % len(COLOURS)],
            capsize=2,
            markersize=4,
            lw=1.2,
            label=f"{HEADINGS[metric][0]}, {setup}",
        )


def swap_or_recompute() -> Figure:
    """Times faster to swap than to recompute, by context length, for every machine and price of a call;
    crosses are simulations of one preemption."""
    lines, checks = list(crossover.lines()), list(crossover.checks())
    with mpl.rc_context(SETTINGS):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        panels = figure.subplots(1, len(crossover.MACHINES), sharey=True)
        for axes, machine in zip(panels, crossover.MACHINES, strict=True):
            for index, line in enumerate(one for one in lines if one.machine == machine):
                per_block = line.system == THEIRS
                label = f"per block, {line.per_call_us:g} us" if per_block else line.system
                axes.plot(
                    line.lengths,
                    line.cheaper,
                    DASHES[index % len(DASHES)]
                    if per_block
                    else DASHES[looks.of(line.system).dash],
                    color=COLOURS[looks.of(line.system).colour],
                    lw=1.4,
                    label=label,
                )
            for one in (check for check in checks if check.machine == machine):
                axes.plot([one.length], [one.recompute_ns / one.swap_ns], "x", color="0", ms=7)
            axes.axhline(1, color="0.6", lw=1)
            axes.set(xscale="log", yscale="log", title=machine, xlabel="tokens of context")
            axes.grid(visible=True, alpha=0.25)
        panels[0].set_ylabel("times faster to swap than to recompute")
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
        )
        return figure
