"""One self-contained HTML page of a comparison: no script, no network, readable when printed."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from explore import figures, html, words
from explore.compare import SPEEDUPS, Comparison, worth


def page(comparison: Comparison, command: str) -> str:
    """The page. Every string that comes from outside is escaped."""
    title = f"FastSwitch: {comparison.scenario.name}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(comparison.scenario.description)}</p>"
        if comparison.scenario.description
        else "",
        f'<p class="lead">{escape(verdict(comparison))}</p>',
        f"<p>{escape(words.load(comparison))}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in comparison.notes),
        _warm_up(comparison),
        "<h2>Tails</h2>",
        html.figure(
            figures.as_svg(figures.tails(comparison)),
            "Share of turns and of gaps between tokens that take longer than x. Lines: mean over"
            " runs; bands, for two systems: smallest to largest run.",
        ),
        *_metric_tables(comparison),
        *_speedup_tables(comparison),
        _worth(comparison),
        "<h2>Memory and link over time</h2>",
        html.figure(
            figures.as_svg(figures.timeline(comparison)),
            "First run. Share of blocks in use, and share of time in which a direction of the link"
            " moves bytes.",
        ),
        _fine_print(comparison, command),
    ]
    return html.document(title, body)


def _warm_up(comparison: Comparison) -> str:
    found = comparison.warm_up
    if found is None:
        return ""
    told = "Mean over the pilot runs, five turns to a point. Dotted: the cut that each system asked for."
    drawn = html.figure(figures.as_svg(figures.warm_up(found)), told)
    return f"<h2>Warm-up</h2>{drawn}"


def verdict(comparison: Comparison) -> str:
    """The finding in one or two sentences."""
    ours = "fastswitch" if "fastswitch" in comparison.results else comparison.systems[-1]
    baselines = [name for name in reversed(comparison.baselines) if name != ours]
    if not baselines:
        return f"{len(comparison.systems)} systems, no baseline among them to compare with."
    baseline = baselines[0]
    parts = []
    for metric in ("ttft_p95_s", "ttft_p99_s", "tbt_p999_s", "throughput_tok_s"):
        found = comparison.speedup(ours, baseline, metric)
        if found.value is None:
            continue
        parts.append(f"{words.HEADINGS[metric][0]} {words.ratio(found)}")
    return f"{ours} against {baseline}, times better: " + ", ".join(parts) + "."


def _metric_tables(comparison: Comparison) -> Iterable[str]:
    for title, metrics in words.TABLES:
        rows = [
            [(name, ""), *((words.estimate(comparison.estimate(name, m), m), "") for m in metrics)]
            for name in comparison.systems
        ]
        yield f"<h2>{escape(title)}</h2>" + html.table(
            ["system", *map(words.heading, metrics)], rows
        )


def _speedup_tables(comparison: Comparison) -> Iterable[str]:
    for baseline in comparison.baselines:
        rows = []
        for name in comparison.systems:
            if name == baseline:
                continue
            cells = [(name, "")]
            for metric in SPEEDUPS:
                found = comparison.speedup(name, baseline, metric)
                kind = "better" if found.is_better else "worse" if found.is_worse else ""
                cells.append((words.ratio(found), kind))
            rows.append(cells)
        if rows:
            yield f"<h2>Times better than {escape(baseline)}</h2>" + html.table(
                ["system", *(words.HEADINGS[m][0] for m in SPEEDUPS)], rows
            )


def _worth(comparison: Comparison) -> str:
    items = "".join(
        f"<li><b>{escape(item.mechanism)}</b> ({escape(item.system)} against"
        f" {escape(item.against)}): {escape(item.words)}</li>"
        for item in worth(comparison)
    )
    return f"<h2>What each mechanism is worth</h2><ul>{items}</ul>" if items else ""


def _fine_print(comparison: Comparison, command: str) -> str:
    assumptions = "".join(
        f"<li><code>{escape(name)}</code> = {q['value']:g} {escape(q['unit'])},"
        f" may be {q['low']:g} to {q['high']:g}: {escape(q['source'])}</li>"
        for name, q in comparison.profile_assumptions.items()
    )
    return (
        "<h2>Fine print</h2>"
        "<p>Means over runs, with half of the 95 % t interval; ratios are geometric means of ratios"
        " paired by run, with their interval. Better or worse is said where a paired t test, corrected"
        " by Holm for all systems of a table, says so at 5 %. Same workload, priority trace and random"
        f" streams for every system. A {comparison.study} study.</p>"
        f"<p>{escape(words.provenance(comparison))}</p>"
        f"<p>Workload: {escape(words.composition(comparison))}</p>"
        f"<p><code>{escape(command)}</code></p>"
        + (
            f"<details open><summary>Numbers nobody has published (assumptions)</summary>"
            f"<ul>{assumptions}</ul></details>"
            if assumptions
            else ""
        )
    )
