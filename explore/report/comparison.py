"""The report of a comparison: who is better by how much, in words first, then in tables and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from explore import words
from explore.report import chart, document, pareto
from explore.report.chart import Curve, Picture
from explore.report.document import Cell, Row
from explore.studies.comparison import Comparison
from explore.studies.estimates import SPEEDUPS, Estimate, Ratio
from explore.studies.series import TAIL
from explore.studies.warm_up import WarmUp
from explore.studies.worth import worth


def page(comparison: Comparison, command: str) -> str:
    """The page. Every string that comes from outside is escaped."""
    sections = [
        ("", _finding(comparison)),
        *_metric_tables(comparison),
        *_speedup_tables(comparison),
        ("What each mechanism is worth", _worth(comparison)),
        ("Latency against throughput", _frontiers(comparison)),
        *_warm_up(comparison),
        ("Tails", _tails(comparison)),
        ("Memory and link over time", _timelines(comparison)),
        ("Fine print", _fine_print(comparison, command)),
    ]
    return document.document(f"FastSwitch: {comparison.scenario.name}", sections)


def _finding(comparison: Comparison) -> str:
    description = comparison.scenario.description
    return (
        (document.paragraph(description) if description else "")
        + document.paragraph(verdict(comparison), "lead")
        + document.paragraph(words.load(comparison))
        + "".join(document.paragraph(note, "note") for note in comparison.notes)
    )


def verdict(comparison: Comparison) -> str:
    """The finding in one or two sentences."""
    ours = "fastswitch" if "fastswitch" in comparison.results else comparison.systems[-1]
    baselines = [name for name in reversed(comparison.baselines) if name != ours]
    if not baselines:
        return f"{len(comparison.systems)} systems, no baseline among them to compare with."
    baseline = baselines[0]
    parts = []
    for is_better, word in ((True, "surely better"), (False, "surely worse")):
        told = [
            f"{words.HEADINGS[metric][0]} {words.ratio(found)}"
            for metric in HEADLINE
            if (found := comparison.speedup(ours, baseline, metric)).is_sure
            and found.is_better == is_better
        ]
        parts += [f"{word} in {', '.join(told)}"] if told else []
    fixed = ", ".join(words.HEADINGS[metric][0] for metric in HEADLINE)
    if comparison.is_one_run:
        return f"{ours} against {baseline} in {fixed}: without an interval no difference is sure."
    how = f"times better, 95 % intervals, n = {comparison.runs}; looked at: {fixed}"
    return f"{ours} against {baseline}: {'; '.join(parts) or 'no difference is sure'} ({how})."


#: What the first sentence looks at, fixed before any run.
HEADLINE = ("ttft_p95_s", "ttft_p99_s", "tbt_p999_s", "throughput_tok_s")


def _metric_tables(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for title, listed in words.TABLES:
        metrics = words.shown(listed, comparison.all_metrics)
        rows: list[Row] = [
            [name, *(estimate_cell(comparison.estimate(name, m), m) for m in metrics)]
            for name in comparison.systems
        ]
        caption = f"Means of {comparison.runs} runs"
        if comparison.is_one_run:
            caption = "One run, no interval"
        table = document.table(caption, ["system", *map(words.heading, metrics)], rows)
        yield title, table + document.items(words.explained(metrics))


def _speedup_tables(comparison: Comparison) -> Iterator[tuple[str, str]]:
    for baseline in comparison.baselines:
        rows = []
        for name in comparison.systems:
            if name == baseline:
                continue
            cells = [Cell(name)]
            for metric in SPEEDUPS:
                found = comparison.speedup(name, baseline, metric)
                cells.append(ratio_cell(found))
            rows.append(cells)
        if rows:
            header = ["system", *(words.HEADINGS[m][0] for m in SPEEDUPS)]
            caption = f"Above one is better; {words.SURE} and coloured where the difference is sure (Holm)"
            yield f"Times better than {baseline}", document.table(caption, header, rows)


def ratio_cell(found: Ratio) -> Cell:
    """Coloured where it is surely better or worse, or where there is no number."""
    kind = "better" if found.is_better else "worse" if found.is_worse else ""
    return Cell(words.marked(found), kind or ("small" if found.value is None else ""))


def estimate_cell(found: Estimate, metric: str) -> Cell:
    return Cell(words.estimate(found, metric), "small" if found.value is None else "")


def _worth(comparison: Comparison) -> str:
    return document.items(
        f"{item.mechanism} ({item.system} against {item.against}): {item.words}"
        for item in worth(comparison)
    )


def _frontiers(comparison: Comparison) -> str:
    candidates = [
        pareto.Candidate(name, i, {m: comparison.estimate(name, m) for m in pareto.METRICS})
        for i, name in enumerate(comparison.systems)
    ]
    return pareto.figures(candidates, comparison.systems)


def _warm_up(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """What the warm-up of a steady-state study was found from."""
    found = comparison.warm_up
    if found is None:
        return
    asked = ", ".join(f"{name} {trace.cut_s:g} s" for name, trace in found.traces.items())
    caption = (
        f"MSER-5 on the mean over {found.runs} pilot runs, five turns to a point: the first"
        f" {found.cut_s:g} s are cut off every system and run, the latest that any asked for ({asked})."
    )
    yield "Warm-up", document.figure(chart.svg(warm_up(found)), caption)


def warm_up(found: WarmUp) -> Picture:
    """TTFT over time, batch means over all pilot runs, and the cut that holds for all systems."""
    waits = [wait for trace in found.traces.values() for wait in trace.ttft_s]
    x = chart.linear(
        "arrival, seconds", [t for one in found.traces.values() for t in one.arrival_s]
    )
    y = chart.linear("TTFT, seconds", waits)
    curves = [
        Curve(name, list(zip(trace.arrival_s, trace.ttft_s, strict=True)))
        for name, trace in found.traces.items()
    ]
    curves.append(Curve("cut", [(found.cut_s, 0.0), (found.cut_s, max(waits, default=0.0))]))
    return Picture("Warm-up: time to first token over time", x, y, curves)


def _tails(comparison: Comparison) -> str:
    figures = (
        document.figure(
            chart.svg(one),
            f"{one.title}: share that takes longer than x. Lines: mean over runs; bands, for two systems:"
            " smallest to largest run.",
        )
        for one in tails(comparison)
    )
    return f'<div class="pair">{"".join(figures)}</div>'


def tails(comparison: Comparison) -> Iterator[Picture]:
    """Share of turns (TTFT) and of gaps (TBT) that take longer than x; both axes logarithmic."""
    for key, title in (("ttft_s", "Time to first token"), ("tbt_s", "Time between tokens")):
        curves = [_tail(comparison, name, key) for name in comparison.systems]
        values = [x for curve in curves for x, _ in filter(None, curve.points)]
        y = chart.Axis("share that takes longer", 1e-4, 1.0, True, 100, " %")
        yield Picture(title, chart.log("seconds", values), y, curves)


def _tail(comparison: Comparison, name: str, key: str) -> Curve:
    """Mean curve over runs; for two systems also the band from the smallest to the largest run."""
    curves = [result["series"][key] for result in comparison.results[name]]
    length = min(map(len, curves))
    columns = list(zip(*(curve[:length] for curve in curves), strict=True))
    points = [
        (sum(column) / len(column), 1 - share) for column, share in zip(columns, TAIL, strict=False)
    ]
    band = None
    if name in comparison.telling and columns:  # more bands than these hide each other
        band = [min(c) for c in columns], [max(c) for c in columns]
    return Curve(name, points, band)


_LEVELS = (
    ("device", "device pool in use"),
    ("host", "host pool in use"),
    ("h2d", "link busy, to device"),
    ("d2h", "link busy, to host"),
)


def _timelines(comparison: Comparison) -> str:
    figures = [
        document.figure(chart.svg(one), f"{name}, first run.")
        for name, one in timelines(comparison)
    ]
    return f'<div class="pair">{"".join(figures)}</div>' if figures else ""


def timelines(comparison: Comparison) -> Iterator[tuple[str, Picture]]:
    """Pools and link of the first run, for the first and the last interesting system."""
    for name in comparison.telling:
        line = comparison.results[name][0]["series"].get("timeline") or {}
        if not line:
            continue
        hours = [value / 3600 for value in line["time_s"]]
        x = chart.Axis("hours", 0.0, max(hours[-1], 1e-6))
        y = chart.Axis("share", 0.0, 1.0, factor=100, unit=" %")
        curves = [Curve(label, list(zip(hours, line[key], strict=True))) for key, label in _LEVELS]
        yield name, Picture(f"{name} over time", x, y, curves)


def _fine_print(comparison: Comparison, command: str) -> str:
    assumptions = "".join(
        f"<li><code>{escape(name)}</code> = {q['value']:g} {escape(q['unit'])},"
        f" may be {q['low']:g} to {q['high']:g}: {escape(q['source'])}</li>"
        for name, q in comparison.profile_assumptions.items()
    )
    return (
        document.paragraph(
            "Means over runs with their 95 % t interval, made on the logarithm; ratios are geometric means"
            " of ratios paired by run, with theirs. Better or worse is said where a paired t test,"
            " corrected by Holm for all systems of a table, says so at 5 %. Same workload, priority"
            f" trace and random streams for every system. A {comparison.study} study."
        )
        + document.paragraph(words.provenance(comparison))
        + document.paragraph(f"Workload: {words.composition(comparison)}")
        + _origin(comparison.provenance)
        + document.commands([command])
        + (
            f"<details open><summary>Numbers nobody has published (assumptions)</summary>"
            f"<ul>{assumptions}</ul></details>"
            if assumptions
            else ""
        )
        + document.paragraph(
            "Every request of one run, on one time axis with pools and link: fastswitch simulate with"
            " the system's name, then fastswitch report on its folder."
        )
    )


def _origin(provenance: dict[str, Any]) -> str:
    names = ("scenario_hash", "workload_hash", "profile_hash", "machine")
    libraries = ", ".join(f"{n} {v}" for n, v in provenance.get("libraries", {}).items())
    pairs = [(name.replace("_", " "), provenance.get(name)) for name in names]
    return document.facts([*pairs, ("libraries", libraries or None)])
