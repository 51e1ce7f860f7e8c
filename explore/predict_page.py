"""One page of a validation: the tables, the figures, and who is responsible for what is off."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from explore import figures, html, predict_figure
from explore.predict import Line, Prediction, Validation
from explore.predict_text import SAYS, measured, number, percent, stories, within

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


def page(found: Validation, command: str) -> str:
    """The page. Every string that comes from outside is escaped."""
    title = f"Predicted and measured: {found.profile}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(verdict(found))}</p>',
        "<p>Measured: mean of the real runs, with the smallest and largest. Predicted: mean of simulations with"
        " all steps as much longer or shorter as the profile's own error leaves open, likewise. Bar: 10 % of it, or one and"
        " a half times largest minus smallest where that is more; an error beyond it is marked. The fit"
        " never saw these workloads.</p>",
        *(f'<p class="note">{escape(warning)}</p>' for warning in found.warnings),
        *(part for one in found.predictions for part in _scenario(one)),
        f"<h2>Fine print</h2><p><code>{escape(command)}</code></p>",
    ]
    return html.document(title, body)


def verdict(found: Validation) -> str:
    """The finding in a sentence."""
    lines = [line for one in found.predictions for line in (*one.lines, *one.ratios)]
    inside = [line.is_within for line in lines]
    text = f"{inside.count(True)} of {inside.count(True) + inside.count(False)} numbers are predicted within their bars"
    names = [cause.responsible for one in found.predictions for cause in one.causes]
    if not names:
        return f"{text}."
    counted = ", ".join(f"{name} {names.count(name)}" for name in SAYS if name in names)
    return f"{text}; responsible for those of systems that are not: {counted}."


def _scenario(found: Prediction) -> Iterator[str]:
    yield f"<h2>{escape(found.scenario)}</h2>"
    yield f"<p>{escape(within(found))}.</p>"
    yield html.table(_HEAD, [_row(line) for line in (*found.lines, *found.ratios)])
    yield html.figure(
        figures.as_svg(predict_figure.scatter(found)),
        "Latencies predicted and measured; line: equal, band: 10 %.",
    )
    yield html.table(_COSTS, _cost_rows(found))
    yield html.figure(
        figures.as_svg(predict_figure.residuals(found)),
        "Every recorded step, and every copy that had the link to itself, through the cost model, against"
        " load; line: medians. What is off here is the cost model; what is off only above is queueing.",
    )
    items = "".join(f"<li>{escape(story)}</li>" for story in stories(found))
    yield f"<h3>Where it comes from</h3><ul>{items}</ul>" if items else ""


def _row(line: Line) -> list[tuple[str, str]]:
    outside = line.is_within is False
    return [
        (line.system, ""),
        (line.metric, ""),
        (measured(line), ""),
        (number(line.low), ""),
        (number(line.high), ""),
        (number(line.predicted), ""),
        (number(line.predicted_low), ""),
        (number(line.predicted_high), ""),
        (percent(line.error), "worse" if outside else ""),
        (percent(line.bar, 0), ""),
        ("outside" if outside else "", "worse" if outside else ""),
    ]


def _cost_rows(found: Prediction) -> list[list[tuple[str, str]]]:
    return [
        [
            (name, ""),
            (one.kind, ""),
            (str(one.count), ""),
            (percent(one.share, 0), ""),
            (percent(one.bias), ""),
            (percent(one.p50), ""),
            (percent(one.p95), ""),
        ]
        for name, costs in found.costs.items()
        for one in costs
    ]
