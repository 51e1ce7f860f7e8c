"""Figures of a reproduction: gains along every axis with intervals, and where swapping meets recompute."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from explore.compare import speedup_of
from explore.figures import COLOURS, SETTINGS, STYLES
from explore.reproduce import crossover
from explore.reproduce.study import Found
from explore.words import HEADINGS

OURS, THEIRS = "fastswitch", "vllm-0.3.3-keep"
METRICS = ("ttft_p95_s", "ttft_p99_s", "tbt_p999_s")
MARKS = ("o", "s", "^")
#: Group, and what its axis is called; the first of a pair that was run is shown.
AXES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("dispatch",), "us for a copy call"),
    (("load",), "load, % of the baseline's capacity"),
    (("frequency, more", "frequency"), "priority updates per step"),
    (("host memory, more", "host memory"), "host memory, GiB"),
    (("initial group, more", "initial group"), "initial group, blocks"),
    (("think time",), "mean think time, s"),
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
            for style, setup in zip(STYLES, SETUPS, strict=False):
                for index, metric in enumerate(METRICS):
                    _line(axes, found, group, setup, metric, index, style)
            axes.axhline(1, color="0.6", lw=1)
            axes.set(yscale="log", xlabel=words)
            if group != "load":
                axes.set_xscale("symlog" if group == "think time" else "log")
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
    axes: Axes, found: Found, group: str, setup: str, metric: str, index: int, style: str
) -> None:
    xs, ys, below, above = [], [], [], []
    for variant in found.variants[group]:
        places = [p for p in found.places(group) if (p.setup, p.variant) == (setup, variant.name)]
        if variant.x is None or not places:
            continue
        ours, theirs = found.of(places[0], OURS), found.of(places[0], THEIRS)
        if ours is None or theirs is None:
            continue
        ratio = speedup_of(ours, theirs, metric)
        if ratio.value is None or ratio.factor is None:
            continue
        xs.append(variant.x)
        ys.append(ratio.value)
        below.append(ratio.value - ratio.value / ratio.factor)
        above.append(ratio.value * ratio.factor - ratio.value)
    if xs:
        axes.errorbar(
            xs,
            ys,
            yerr=[below, above],
            fmt=MARKS[index] + style,
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
                    "-" if per_block else "--",
                    color=COLOURS[index % len(COLOURS)],
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
