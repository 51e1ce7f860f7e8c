"""The report of a comparison: the finding in a sentence and a picture, what it hangs on, and all numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from explore import words
from explore.report import chart, document, figures, rows
from explore.report.chart import Picture
from explore.report.document import Cell, Head, Row
from explore.report.figures import HEADLINE
from explore.studies.comparison import Comparison
from explore.studies.estimates import SPEEDUPS, Estimate, Ratio
from explore.studies.worth import worth


def page(comparison: Comparison, command: str) -> str:
    """The page. Every string that comes from outside is escaped."""
    sections = [
        ("Latency against throughput", _frontiers(comparison)),
        ("Tails", _pair(figures.tails(comparison), _TAILS)),
        ("What each mechanism is worth", _worth(comparison)),
        ("Memory and link over time", _pair(figures.timeline(comparison), "First run.")),
        ("Warm-up", _warm_up(comparison)),
        ("All numbers", "".join((*_speedup_tables(comparison), *_metric_tables(comparison)))),
        ("Fine print", _fine_print(comparison, command)),
    ]
    title = f"FastSwitch: {comparison.scenario.name}"
    return document.document(title, sections, opening=_opening(comparison))


def _opening(comparison: Comparison) -> str:
    """The finding, its picture, and what it hangs on."""
    description = comparison.scenario.description
    return (
        document.paragraph(verdict(comparison), "lead")
        + _speedups(comparison)
        + document.paragraph(f"{_machine(comparison)} {words.load(comparison)}")
        + (document.paragraph(description) if description else "")
        + "".join(document.paragraph(note, "note") for note in comparison.notes)
    )


def _machine(comparison: Comparison) -> str:
    """What the numbers hang on most."""
    first = comparison.results[comparison.systems[0]][0]
    assumed = len(comparison.profile_assumptions)
    told = (
        f"; {assumed} of its numbers are assumptions, listed in the fine print" if assumed else ""
    )
    return (
        f"{first['workload']['rows']} turns a run under {first['order']}, on a {first['profile_kind']} profile"
        f" of {first['profile']}{told}."
    )


def _speedups(comparison: Comparison) -> str:
    made = figures.speedups(comparison)
    if not made:
        return ""
    others = len(comparison.systems) - 1 - len(made[0].rows)
    caption = (
        "Times better; bars: 95 % intervals over"
        f" {comparison.runs} {'run' if comparison.runs == 1 else 'paired runs'}. Full: the difference is"
        " sure (paired t test, Holm); hollow: it is not. Line: no difference. A row's number is its mean."
        + (f" {others} more in the tables." if others else "")
    )
    return document.side_by_side([rows.svg(one) for one in made], caption)


def verdict(comparison: Comparison) -> str:
    """The finding as somebody would say it."""
    pair = figures.headline_pair(comparison)
    if pair is None:
        return f"{len(comparison.systems)} systems, no baseline among them to compare with."
    ours, baseline = pair
    fixed = _listed([words.HEADINGS[metric][0] for metric in HEADLINE])
    if comparison.is_one_run:
        return f"One run of {ours} and {baseline}: without an interval no difference in {fixed} is sure."
    found = {metric: comparison.speedup(ours, baseline, metric) for metric in HEADLINE}
    better = [_times(m, ratio) for m, ratio in found.items() if ratio.is_better]
    worse = [_times(m, ratio) for m, ratio in found.items() if ratio.is_worse]
    unsure = [words.HEADINGS[m][0] for m, ratio in found.items() if not ratio.is_sure]
    if not better and not worse:
        return f"No difference between {ours} and {baseline} is sure in {fixed}."
    told = f"{ours} is surely {'better' if better else 'worse'} than {baseline} in"
    told += f" {_listed(better or worse)}"
    if better and worse:
        told += f", and surely worse in {_listed(worse)}"
    return f"{told}; in {_listed(unsure)} no difference is sure." if unsure else f"{told}."


def _times(metric: str, found: Ratio) -> str:
    return f"{words.HEADINGS[metric][0]} ({words.ratio(found)})"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _metric_tables(comparison: Comparison) -> Iterator[str]:
    for title, listed in words.TABLES:
        metrics = words.shown(listed, comparison.all_metrics)
        cells: list[Row] = [
            [name, *(estimate_cell(comparison.estimate(name, m), m) for m in metrics)]
            for name in comparison.systems
        ]
        caption = f"Means of {comparison.runs} runs"
        if comparison.is_one_run:
            caption = "One run, no interval"
        table = document.table(caption, ["system", *map(document.metric, metrics)], cells)
        yield document.details(title, table + document.items(words.explained(metrics)))


def _speedup_tables(comparison: Comparison) -> Iterator[str]:
    for baseline in comparison.baselines:
        lines: list[Row] = []
        for name in comparison.systems:
            if name == baseline:
                continue
            cells = [Cell(name)]
            for metric in SPEEDUPS:
                found = comparison.speedup(name, baseline, metric)
                cells.append(ratio_cell(found))
            lines.append(cells)
        if lines:
            header = [Head("system"), *(document.metric(m, unit=False) for m in SPEEDUPS)]
            caption = f"Above one is better; {words.SURE} and coloured where the difference is sure (Holm)"
            table = document.table(caption, header, lines)
            yield document.details(f"Times better than {baseline}", table)


def ratio_cell(found: Ratio) -> Cell:
    """Coloured where it is surely better or worse, or where there is no number."""
    kind = "better" if found.is_better else "worse" if found.is_worse else ""
    return Cell(words.marked(found), kind or ("small" if found.value is None else ""))


def estimate_cell(found: Estimate, metric: str) -> Cell:
    return Cell(words.estimate(found, metric), "small" if found.value is None else "")


def _worth(comparison: Comparison) -> str:
    made = figures.mechanisms(comparison)
    told = document.items(
        f"{item.mechanism} ({item.system} against {item.against}): {item.words}"
        for item in worth(comparison)
    )
    caption = (
        "One metric; a bar begins where the one above ends, so the first ones add up to the whole; the others"
        " begin at one. The number is a bar's own worth, the line its 95 % interval; full: it is sure."
    )
    drawn = "".join(document.figure(rows.svg(one), caption) for one in made)
    return drawn + (document.details("In every metric", told) if told else "")


def _frontiers(comparison: Comparison) -> str:
    made = (
        document.figure(chart.svg(picture), caption)
        for picture, caption in figures.frontiers(comparison)
    )
    inside = "".join(made)
    return f'<div class="pair">{inside}</div>' if inside else ""


_TAILS = "Share that takes longer than x. Lines: mean over runs; bands, for two systems: smallest to largest run."


def _pair(pictures: Sequence[Picture], caption: str) -> str:
    made = (document.figure(chart.svg(one), f"{one.title}. {caption}") for one in pictures)
    inside = "".join(made)
    return f'<div class="pair">{inside}</div>' if inside else ""


def _warm_up(comparison: Comparison) -> str:
    """What the warm-up of a steady-state study was found from."""
    found = comparison.warm_up
    if found is None:
        return ""
    asked = ", ".join(f"{name} {trace.cut_s:g} s" for name, trace in found.traces.items())
    caption = (
        f"MSER-5 on the mean over {found.runs} pilot runs, five turns to a point: the first"
        f" {found.cut_s:g} s are cut off every system and run, the latest that any asked for ({asked})."
    )
    (made,) = figures.warm_up(comparison)
    return document.figure(chart.svg(made), caption)


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
            f"<details><summary>Numbers nobody has published (assumptions)</summary>"
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
