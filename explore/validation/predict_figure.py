"""Figures of a validation: predicted against measured latencies, and what single steps and copies are
off by against load. Same bytes every time."""

from __future__ import annotations

import matplotlib as mpl

mpl.use("svg")

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from explore.report import looks, plot, validation
from explore.validation.predict import BAR_SHARE, Prediction
from explore.validation.step_replay import KINDS, Compared
from traces.figure_style import SETTINGS

LOADS = {
    "decode": "batch",
    "prefill": "prompt tokens of the step",
    "mixed": "prompt tokens beside decodes",
    "copy": "blocks",
}
_BAND = "0.6"


def scatter(found: Prediction) -> Figure:
    """Predicted against measured, as the page has it."""
    return plot.figure([validation.scatter(found)])


def residuals(found: Prediction) -> Figure:
    """Predicted over measured, less one, of every step and copy alone; a line through the medians."""
    with mpl.rc_context(SETTINGS):
        picture = Figure(figsize=(10, 3.4), layout="constrained")
        for axes, kind in zip(picture.subplots(1, len(KINDS)), KINDS, strict=True):
            axes.axhline(0, color=_BAND, lw=1)
            axes.axhspan(-100 * BAR_SHARE, 100 * BAR_SHARE, color=_BAND, alpha=0.2, lw=0)
            for system, compared in found.compared.items():
                for one in compared:
                    if one.kind == kind:
                        _cloud(axes, one, system, looks.COLOURS[looks.of(system).colour])
            axes.set(title=kind, xlabel=LOADS[kind])
            axes.set_ylim(-100, 150)
        picture.axes[0].set_ylabel("predicted is off by, %")
        handles, names = picture.axes[0].get_legend_handles_labels()
        if handles:
            picture.axes[0].legend(handles, names, fontsize=8, frameon=False)
        return picture


def _cloud(axes: Axes, one: Compared, system: str, colour: str) -> None:
    off = 100 * (one.predicted_ns / one.measured_ns - 1)
    axes.plot(one.load, off, ".", color=colour, alpha=0.15, markersize=3)
    loads = np.unique(one.load)
    medians = [float(np.median(off[one.load == load])) for load in loads]
    axes.plot(loads, medians, color=colour, lw=1.2, marker="o", markersize=2.5, label=system)
