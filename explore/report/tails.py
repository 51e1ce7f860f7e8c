"""What the slow ones are made of, and how latency is spread: sections of a run's report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from explore import words
from explore.report import chart, document
from explore.report.anatomy import Gaps, Parts, Slow, means_of
from explore.report.clients import Clients, Exact, Spread
from explore.report.document import Cell, Row
from explore.report.lanes import STATES

#: Rows of requests that the lanes have; a press on another one's name would lead nowhere.
Shown = npt.NDArray[np.bool_]


def _columns(first: Parts, whole: Parts, gaps: Gaps) -> list[tuple[str, list[float]]]:
    """Mean nanoseconds in every state: of all and of the slowest, until the first token and the end."""
    slow_first, slow_whole = first.slowest(), whole.slowest()
    columns = [
        (f"to first token, all {first.count}", first.means()),
        (f"to first token, slowest {len(slow_first)}", means_of(slow_first)),
        (f"to the end, all {whole.count}", whole.means()),
        (f"to the end, slowest {len(slow_whole)}", means_of(slow_whole)),
    ]
    if gaps.count:
        columns.append(
            (f"gaps beyond P99, {gaps.count}", [value / gaps.count for value in gaps.states])
        )
    return columns


def shares(first: Parts, whole: Parts, gaps: Gaps) -> str:
    """What the mean time of all and of the slowest is made of, as a picture."""
    if not first.count:
        return ""
    bars = [(name, _shares(means)) for name, means in _columns(first, whole, gaps)]
    return document.figure(
        chart.stacked("Shares of time by state", bars) + legend(dict.fromkeys(STATES, "")),
        "What the mean time is made of. A request's own copy comes first, then the stall of its"
        " step, then what it was doing.",
    )


def anatomy(first: Parts, whole: Parts, gaps: Gaps, shown: Shown) -> str:
    """Who the slowest are, until the first token and until the end, and what they waited for."""
    if not first.count:
        return document.paragraph("No turn finished.")
    columns = _columns(first, whole, gaps)
    rows = [[state, *(plain(means[i]) for _, means in columns)] for i, state in enumerate(STATES)]
    rows.append(["all", *(plain(sum(means)) for _, means in columns)])
    means = document.table(
        "Mean seconds in each state", ["state", *(name for name, _ in columns)], rows
    )
    return (
        _slow_table("Slowest to the first token", "TTFT s", first.slowest(), shown)
        + document.details(
            "Slowest to the end", _slow_table("To the end", "E2E s", whole.slowest(), shown)
        )
        + document.details("Longest gaps between tokens", _late_table(gaps, shown))
        + document.details("Mean seconds in each state", means)
    )


def _slow_table(caption: str, name: str, slowest: Sequence[Slow], shown: Shown) -> str:
    rows: list[Row] = [
        [_link(one.number, one.request_id, shown), plain(one.total), _made_of(one.states)]
        for one in slowest[:10]
    ]
    header = ["request", name, "made of"]
    return document.table(f"{caption} (press one to see it)", header, rows)


def _late_table(gaps: Gaps, shown: Shown) -> str:
    rows: list[Row] = [
        [
            _link(late.number, late.request_id, shown),
            plain(late.begin),
            plain(late.gap),
            _made_of(late.states),
        ]
        for late in gaps.longest()
    ]
    if not rows:
        return document.paragraph("Too few gaps between tokens to name the longest 1 %.")
    header = ["request", "after s", "gap s", "made of"]
    return document.table("Why was this token late? The longest gaps", header, rows)


def _link(number: int, request_id: str, shown: Shown) -> Cell:
    return Cell(request_id, "", number if shown[number] else -1)


def plain(nanoseconds: float) -> str:
    """Seconds, without the unit."""
    return words.significant(nanoseconds / 1e9)


def _shares(means: Sequence[float]) -> list[tuple[str, float]]:
    total = sum(means) or 1.0
    return [(state, mean / total) for state, mean in zip(STATES, means, strict=True) if mean]


def _made_of(states: Sequence[int]) -> Cell:
    """The three states that take most."""
    ranked = sorted(range(len(STATES)), key=lambda i: -states[i])[:3]
    told = ", ".join(f"{STATES[i]} {plain(states[i])} s" for i in ranked if states[i])
    return Cell(told, "told")


def legend(told: dict[str, str]) -> str:
    """The colour of every state, with what is told about it. Both are ours."""
    entries = "".join(
        f'<li><svg class="key" viewBox="0 0 28 12" aria-hidden="true"><rect class="s-{state}"'
        f' width="28" height="12"/></svg>{state}{f": {meaning}" if meaning else ""}</li>'
        for state, meaning in told.items()
    )
    return f'<ul class="legend">{entries}</ul>'


# ---------------------------------------------------------------------- how it is spread


def latency(clients: Clients) -> str:
    """Curves and percentiles of TTFT and of gaps between tokens, client by client."""
    parts = [
        _curves("Time to first token", "turns", clients.ttft),
        _curves("Time between tokens", "gaps", clients.tbt),
    ]
    told = (
        f"{clients.num_clients} clients; those with most requests are shown."
        if clients.is_named
        else "The workload names no clients."
    )
    columns = (
        ("TTFT", clients.ttft, (50.0, 95.0, 99.0, 99.9)),
        ("TBT", clients.tbt, (50.0, 99.0, 99.9)),
    )
    header = ["client", "turns", *(f"{name} P{q:g} s" for name, _, qs in columns for q in qs)]
    rows: list[Row] = [
        [
            name,
            str(clients.ttft[name].count),
            *(_percentile(spreads[name], q) for _, spreads, qs in columns for q in qs),
        ]
        for name in clients.ttft
    ]
    return (
        document.paragraph(told)
        + f'<div class="pair">{"".join(parts)}</div>'
        + document.table("Latency of turns that were not rejected", header, rows)
    )


def _curves(title: str, what: str, spreads: dict[str, Exact] | dict[str, Spread]) -> str:
    curves = [chart.Curve(name, spread.tail()) for name, spread in spreads.items()]
    values = [x for curve in curves for x, _ in filter(None, curve.points)]
    y = chart.Axis("share that takes longer", 1e-4, 1.0, True, 100, " %")
    return document.figure(
        chart.svg(chart.Picture(title, chart.log("seconds", values), y, curves)),
        f"{title}: share of {what} that takes longer than x (one less the CDF), as far as the samples"
        " tell; gaps within 0.1 %.",
    )


def _percentile(spread: Exact | Spread, q: float) -> Cell:
    value, above = spread.percentile(q)
    if value is not None:
        return Cell(words.significant(value))
    return Cell(words.TOO_SMALL if above is None else f"> {words.significant(above)}", "small")
