"""The pictures of a comparison, by name: the same in its page, in files and in notebooks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from explore import words
from explore.report import chart, looks, pareto, rows
from explore.report.chart import Curve, Picture
from explore.report.rows import Row, Rows
from explore.studies.series import TAIL
from explore.studies.worth import Worth, worth
from policy.errors import ConfigError

if TYPE_CHECKING:
    from explore.studies.comparison import Comparison

#: What the first sentence and the first picture look at, fixed before any run.
HEADLINE = ("ttft_p95_s", "ttft_p99_s", "tbt_p999_s", "throughput_tok_s")
#: By this one the systems are sorted, and mechanisms are added up in it; the next where it is not known.
LEADING = ("ttft_p99_s", "ttft_p95_s", "ttft_p50_s")
#: Most systems of the first picture; tables have all.
MOST = 12


def headline_pair(comparison: Comparison) -> tuple[str, str] | None:
    """The system that the page is about, and the baseline it is held against."""
    ours = "fastswitch" if "fastswitch" in comparison.results else comparison.systems[-1]
    baselines = [name for name in reversed(comparison.baselines) if name != ours]
    return (ours, baselines[0]) if baselines else None


def speedups(comparison: Comparison) -> list[Rows]:
    """Times better than the baseline: a picture a metric, the systems in one order, the best first."""
    pair = headline_pair(comparison)
    if pair is None:
        return []
    baseline = pair[1]
    leading = _leading(comparison, baseline)
    others = [name for name in comparison.systems if name != baseline]
    ranked = sorted(
        others, key=lambda name: -(comparison.speedup(name, baseline, leading).value or 0.0)
    )
    kept = [name for i, name in enumerate(ranked) if i < MOST or name == pair[0]]
    made = []
    for metric in HEADLINE:
        mine = []
        for name in kept:
            found = comparison.speedup(name, baseline, metric)
            mine.append(rows.of_ratio(name, looks.of(name), found, words.ratio(found)))
        title = words.HEADINGS[metric][0]
        made.append(Rows(title, rows.axis(f"{title}: times better than {baseline}", mine), mine))
    return made


def _leading(comparison: Comparison, baseline: str) -> str:
    others = [name for name in comparison.systems if name != baseline]
    for metric in LEADING:
        if all(comparison.speedup(name, baseline, metric).value is not None for name in others):
            return metric
    return LEADING[-1]


def mechanisms(comparison: Comparison) -> list[Rows]:
    """What each mechanism is worth in one metric: those that stand on each other as steps from the
    baseline, then what they come to, then others alone."""
    found = worth(comparison)
    if not found:
        return []
    metric = next(
        (m for m in LEADING if all(one.ratios[m].value is not None for one in found)), LEADING[-1]
    )
    steps = _steps(found)
    mine: list[Row] = []
    start = 1.0
    for one in steps:
        ratio = one.ratios[metric]
        label = f"+ {one.mechanism}"
        mine.append(rows.of_ratio(label, looks.of(one.system), ratio, _told(one, metric), start))
        start *= ratio.value or 1.0
    if len(steps) > 1:
        last, first = steps[-1].system, steps[0].against
        ratio = comparison.speedup(last, first, metric)
        told = f"{last} against {first}: {words.ratio(ratio)}"
        mine.append(rows.of_ratio(f"= {last}", looks.of(last), ratio, told, 1.0))
    told_already = {one.mechanism for one in steps}
    for one in found[len(steps) :]:
        label = (
            f"{one.mechanism}, in {one.system}" if one.mechanism in told_already else one.mechanism
        )
        ratio = one.ratios[metric]
        mine.append(rows.of_ratio(label, looks.of(one.system), ratio, _told(one, metric), 1.0))
    title = f"{words.HEADINGS[metric][0]}: what each mechanism is worth"
    x = rows.axis(f"{words.HEADINGS[metric][0]}: times better", mine)
    return [Rows(title, x, mine)]


def _steps(found: Sequence[Worth]) -> list[Worth]:
    """The first ones, as far as each has what the one before has."""
    steps: list[Worth] = []
    for one in found:
        if steps and one.against != steps[-1].system:
            break
        steps.append(one)
    return steps


def _told(one: Worth, metric: str) -> str:
    return f"{one.system} against {one.against}: {words.ratio(one.ratios[metric])}"


def frontiers(comparison: Comparison) -> list[tuple[Picture, str]]:
    """Latency against throughput, and the pace of a user against that of the machine, with captions."""
    metrics = (*pareto.METRICS, pareto.PACE)
    systems = comparison.systems
    candidates = [
        pareto.Candidate(name, name, {m: comparison.estimate(name, m) for m in metrics})
        for name in systems
    ]
    paces = pareto.paces(candidates, systems)
    return [*pareto.pictures(candidates, systems), *([] if paces is None else [paces])]


def frontier(comparison: Comparison) -> list[Picture]:
    """Those pictures alone."""
    return [picture for picture, _ in frontiers(comparison)]


def tails(comparison: Comparison) -> list[Picture]:
    """Share of turns (TTFT) and of gaps (TBT) that take longer than x; both axes logarithmic."""
    made = []
    for key, title in (("ttft_s", "Time to first token"), ("tbt_s", "Time between tokens")):
        curves = [_tail(comparison, name, key) for name in comparison.systems]
        values = [x for curve in curves for x, _ in filter(None, curve.points)]
        y = chart.Axis("share that takes longer", 1e-4, 1.0, True, 100, " %")
        made.append(Picture(title, chart.log("seconds", values), y, curves))
    return made


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
    return Curve(name, points, band, looks.of(name))


_LEVELS = (
    ("device", "device pool in use"),
    ("host", "host pool in use"),
    ("h2d", "link busy, to device"),
    ("d2h", "link busy, to host"),
)


def timeline(comparison: Comparison) -> list[Picture]:
    """Pools and link of the first run, for the first and the last interesting system."""
    made = []
    for name in comparison.telling:
        line = comparison.results[name][0]["series"].get("timeline") or {}
        if not line:
            continue
        hours = [value / 3600 for value in line["time_s"]]
        x = chart.Axis("hours", 0.0, max(hours[-1], 1e-6))
        y = chart.Axis("share", 0.0, 1.0, factor=100, unit=" %")
        curves = [Curve(label, list(zip(hours, line[key], strict=True))) for key, label in _LEVELS]
        made.append(Picture(f"{name} over time", x, y, curves))
    return made


def warm_up(comparison: Comparison) -> list[Picture]:
    """TTFT over time, batch means over all pilot runs, and the cut that holds for all systems."""
    found = comparison.warm_up
    if found is None:
        return []
    waits = [wait for trace in found.traces.values() for wait in trace.ttft_s]
    x = chart.linear(
        "arrival, seconds", [t for one in found.traces.values() for t in one.arrival_s]
    )
    y = chart.linear("TTFT, seconds", waits)
    curves = [
        Curve(name, list(zip(trace.arrival_s, trace.ttft_s, strict=True)), look=looks.of(name))
        for name, trace in found.traces.items()
    ]
    curves.append(Curve("cut", [(found.cut_s, 0.0), (found.cut_s, max(waits, default=0.0))]))
    return [Picture("Warm-up: time to first token over time", x, y, curves)]


#: Every figure of a comparison: the first opens its page.
FIGURES: dict[str, Callable[[Comparison], Sequence[Picture | Rows]]] = {
    "speedups": speedups,
    "mechanisms": mechanisms,
    "frontier": frontier,
    "tails": tails,
    "timeline": timeline,
    "warm_up": warm_up,
}


def pictures(comparison: Comparison, name: str) -> Sequence[Picture | Rows]:
    """What a figure is made of. Raises ConfigError for one that there is not."""
    if name not in FIGURES:
        raise ConfigError(f"figure: {str(name)[:40]!r} is not one of {', '.join(FIGURES)}")
    made = FIGURES[name](comparison)
    if not made:
        raise ConfigError(f"figure {name}: this comparison has nothing to show in it")
    return made


def drawn(comparison: Comparison) -> Iterator[tuple[str, Sequence[Picture | Rows]]]:
    """Every figure that has something to show."""
    for name, make in FIGURES.items():
        if made := make(comparison):
            yield name, made


_HEADER = ["picture", "series", "x", "y", "x_low", "x_high", "y_low", "y_high", "sure"]


def as_csv(made: Sequence[Picture | Rows]) -> str:
    """The numbers behind a figure, a line per point; empty where there is none."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_HEADER)
    for picture in made:
        lines = _of_rows(picture) if isinstance(picture, Rows) else _of_picture(picture)
        writer.writerows([picture.title, *line] for line in lines)
    return out.getvalue()


def _of_rows(picture: Rows) -> Iterator[list[object]]:
    for row in picture.rows:
        known = row.value is not None
        low, high = (row.low, row.high) if known else ("", "")
        value = row.value if known else ""
        yield [row.label, value, "", low, high, "", "", "yes" if row.is_sure else "no"]


def _of_picture(picture: Picture) -> Iterator[list[object]]:
    for curve in picture.curves:
        low, high = curve.band or ((), ())
        known = [point for point in curve.points if point is not None]
        for i, (x, y) in enumerate(known):
            ends: list[object] = [low[i], high[i]] if curve.band is not None else ["", ""]
            both = ["", "", *ends] if curve.rises else [*ends, "", ""]
            yield [curve.label, x, y, *both, ""]
    for point in picture.points:
        yield [point.system, point.x[0], point.y[0], *point.x[1:], *point.y[1:], ""]
