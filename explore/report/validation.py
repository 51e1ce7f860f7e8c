"""The report of a validation: predicted and measured, and who is responsible for what is off."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from explore import words
from explore.report import chart, document
from explore.report.chart import Picture
from explore.report.document import Cell
from explore.validation.predict import BAR_SHARE, Line, Prediction, Validation
from explore.validation.predict_text import SAYS, measured, number, percent, stories, within

_HEAD = [
    "system",
    "metric",
    "measured",
    "from",
    "to",
    "predicted",
    "from",
    "to",
    "error",
    "bar",
    "",
]
_COSTS = ["system", "kind", "how many", "share of the time", "bias", "off by, P50", "P95"]
#: Latencies share an axis; counts and rates would not.
SHOWN = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tbt_p50_s",
    "tbt_p95_s",
    "tbt_p99_s",
    "tbt_p999_s",
)
#: A picture that is larger is not one of ours.
MAX_PICTURE = 4 << 20
_PNG = b"\x89PNG\r\n\x1a\n"


def file_of(what: str, found: Prediction) -> str:
    """The name of a picture beside the page."""
    name = re.sub(r"[^\w.+-]", "_", found.scenario)
    return f"{what}-{name}.png"


def pictures(found: Validation, folder: Path) -> dict[str, bytes]:
    """PNGs of single steps by their names, of which nothing else is kept; nothing where there is none."""
    read = {}
    for name in (file_of("residuals", one) for one in found.predictions):
        with suppress(OSError), (folder / name).open("rb") as file:
            content = file.read(MAX_PICTURE + 1)
            if content.startswith(_PNG) and len(content) <= MAX_PICTURE:
                read[name] = content
    return read


def page(found: Validation, command: str, shown: Mapping[str, bytes]) -> str:
    """The page. `shown`: what `pictures` found."""
    opening = (
        document.paragraph(verdict(found), "lead")
        + _scatters(found)
        + document.items(_judged(found))
        + document.paragraph(
            "Measured: mean of the real runs, with the smallest and largest. Predicted: mean of simulations"
            " with all steps as much longer or shorter as the profile's own error leaves open, likewise."
            " Bar: 10 % of what was measured, or one and a half times largest minus smallest where that is"
            " more. The fit never saw these workloads."
        )
        + "".join(document.paragraph(warning, "note") for warning in found.warnings)
    )
    sections = [
        *((one.scenario, "".join(_scenario(one, shown))) for one in found.predictions),
        (
            "Where this comes from",
            document.facts([("profile", found.profile)]) + document.commands([command]),
        ),
    ]
    return document.document(f"Predicted and measured: {found.profile}", sections, opening=opening)


def verdict(found: Validation) -> str:
    """The finding in a sentence."""
    lines = [line for one in found.predictions for line in (*one.lines, *one.ratios)]
    inside = [line.is_within for line in lines]
    text = (
        f"{inside.count(True)} of {inside.count(True) + inside.count(False)} numbers of {found.profile} are"
        " predicted within their bars"
    )
    names = [cause.responsible for one in found.predictions for cause in one.causes]
    if not names:
        return f"{text}."
    counted = ", ".join(f"{name} {names.count(name)}" for name in SAYS if name in names)
    return f"{text}; responsible for those of systems that are not: {counted}."


def _judged(found: Validation) -> Iterator[str]:
    """Pass or fail of every bar, in words: those that fail each with by how much."""
    for one in found.predictions:
        lines = [*one.lines, *one.ratios]
        failed = [
            f"{line.system} {_metric(line)} is predicted {percent(abs(line.error))} too"
            f" {'high' if line.error > 0 else 'low'} (bar {percent(line.bar, 0)})"
            for line in lines
            if line.is_within is False and line.error is not None
        ]
        passed = sum(line.is_within is True for line in lines)
        told = f"{one.scenario}: {passed} pass"
        yield (
            f"{told}, {len(failed)} fail: {'; '.join(failed)}."
            if failed
            else f"{told}, none fails."
        )


def _metric(line: Line) -> str:
    return words.HEADINGS[line.metric][0] if line.metric in words.HEADINGS else line.metric


def _scatters(found: Validation) -> str:
    made = "".join(_scatter(one) for one in found.predictions)
    return f'<div class="pair">{made}</div>' if made else ""


def _scenario(found: Prediction, shown: Mapping[str, bytes]) -> Iterator[str]:
    runs = ", ".join(f"{count} of {name}" for name, count in found.repeats.items())
    yield document.paragraph(f"Runs: {runs}. {within(found)}.")
    twice = document.table(
        "Every number twice", _HEAD, [_row(line) for line in (*found.lines, *found.ratios)]
    )
    yield document.details("Every number twice, with its bar", twice)
    alone = document.table("Steps and copies alone", _COSTS, _cost_rows(found))
    yield document.details("Steps and copies alone", alone)
    png = shown.get(file_of("residuals", found))
    if png is not None:
        yield document.figure(
            document.image(png, "Error of single steps and copies against load"),
            "Every recorded step, and every copy that had the link to itself, through the cost model,"
            " against load; line: medians. What is off here is the cost model; what is off only above is"
            " queueing.",
        )
    told = document.items(stories(found))
    yield f"<h3>Where errors come from</h3>{told}" if told else ""


def _scatter(found: Prediction) -> str:
    picture = scatter(found)
    if not picture.points:
        return ""
    return document.figure(
        chart.svg(picture),
        f"{found.scenario}: latencies predicted and measured; line: equal, band: 10 %; crosses: smallest and largest on"
        " both sides.",
    )


def scatter(found: Prediction) -> Picture:
    """Latencies of every system that have a number on both sides, y = x and a band of 10 %."""
    systems = list(found.repeats)
    points = [
        _point(line)
        for line in found.lines
        if line.metric in SHOWN and line.measured and line.predicted
    ]
    values = [value for point in points for value in (*point.x, *point.y)]
    return Picture(
        f"{found.scenario}: predicted against measured",
        chart.log("measured, s", values),
        chart.log("predicted, s", values),
        points=points,
        systems=systems,
        equal_within=BAR_SHARE,
    )


def _point(line: Line) -> chart.Point:
    assert line.measured is not None
    assert line.predicted is not None
    heading = words.HEADINGS.get(line.metric, (line.metric, "", 1))[0]
    label = f"{line.system}, {heading}: measured {measured(line)} s, predicted {number(line.predicted)} s"
    x = _span(line.measured, line.low, line.high)
    y = _span(line.predicted, line.predicted_low, line.predicted_high)
    return chart.Point(label, line.system, x, y)


def _span(value: float, low: float | None, high: float | None) -> tuple[float, float, float]:
    return value, value if low is None else low, value if high is None else high


def _row(line: Line) -> list[Cell]:
    kind = "worse" if line.is_within is False else ""
    return [
        Cell(line.system),
        Cell(_metric(line)),
        Cell(measured(line), "small" if line.measured is None else ""),
        Cell(number(line.low)),
        Cell(number(line.high)),
        Cell(number(line.predicted)),
        Cell(number(line.predicted_low)),
        Cell(number(line.predicted_high)),
        Cell(percent(line.error), kind),
        Cell(percent(line.bar, 0)),
        Cell({True: "pass", False: "fail", None: "no bar"}[line.is_within], kind),
    ]


def _cost_rows(found: Prediction) -> list[list[str]]:
    return [
        [
            name,
            one.kind,
            str(one.count),
            percent(one.share, 0),
            percent(one.bias),
            percent(one.p50),
            percent(one.p95),
        ]
        for name, costs in found.costs.items()
        for one in costs
    ]
