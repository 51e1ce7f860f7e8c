"""A validation as a table for people and as data for machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from pydantic import TypeAdapter

from explore.studies.tables import text_table
from explore.validation.predict import Line, Prediction, Validation

WHAT = {
    "decode": "decode steps",
    "prefill": "prefill steps",
    "mixed": "mixed steps",
    "copy": "copies",
}
SAYS = {
    "replay": "the replay differs: look there first, nothing after it can be right",
    "steps": "the cost of steps: gone or halved with the bias of step times taken out",
    "copies": "the cost of copies: gone or halved with the bias of copy times taken out",
    "queueing": "queueing: it stays with unbiased costs; decisions fell otherwise, noise included",
}


FORMAT = "fastswitch-validation/1"


def as_json(found: Validation) -> dict[str, Any]:
    """Everything but single steps, with each line's spread, error and bar."""
    return {
        "format": FORMAT,
        "profile": found.profile,
        "predictions": [_prediction(one) for one in found.predictions],
        "warnings": list(found.warnings),
    }


def _prediction(found: Prediction) -> dict[str, Any]:
    data = asdict(replace(found, compared={}))
    del data["compared"]
    return {
        **data,
        "lines": _lines(found.lines),
        "ratios": _lines(found.ratios),
        "divergences": list(data["divergences"]),
        "costs": {name: list(costs) for name, costs in data["costs"].items()},
        "causes": list(data["causes"]),
    }


def _lines(lines: Sequence[Line]) -> list[dict[str, Any]]:
    derived = ("spread", "error", "bar", "is_within")
    return [{**asdict(line), **{name: getattr(line, name) for name in derived}} for line in lines]


def from_json(data: dict[str, Any]) -> Validation:
    """What `as_json` was given, without single steps. Raises KeyError, TypeError or ValueError for
    other data."""
    if data["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; validate again")
    return TypeAdapter(Validation).validate_python(data)


def as_text(found: Validation) -> str:
    """Tables for people."""
    text = [f"profile {found.profile}"]
    for one in found.predictions:
        text += ["", *_table(one), "", *_story(one)]
    return "\n".join([*text, *(f"warning: {warning}" for warning in found.warnings)])


_COLUMNS = ("metric", "measured", "from", "to", "predicted", "from", "to", "error", "bar", "")


def _table(found: Prediction) -> Iterator[str]:
    runs = ", ".join(f"{count} of {name}" for name, count in found.repeats.items())
    rows = [
        (
            *(line.system, line.metric, measured(line), number(line.low), number(line.high)),
            *(number(one) for one in (line.predicted, line.predicted_low, line.predicted_high)),
            *(percent(line.error), percent(line.bar, 0)),
            "outside" if line.is_within is False else "",
        )
        for line in (*found.lines, *found.ratios)
    ]
    yield f"{found.scenario}: runs: {runs}"
    yield text_table(["system", *_COLUMNS], rows)


def _story(found: Prediction) -> Iterator[str]:
    yield within(found)
    for name, costs in found.costs.items():
        for one in costs:
            yield (
                f"{name}: {one.count} {WHAT[one.kind]} ({percent(one.share, 0)} of the time), each alone:"
                f" bias {percent(one.bias)}, off by {percent(one.p50)} at P50, {percent(one.p95)} at P95"
            )
    yield from stories(found)


def within(found: Prediction) -> str:
    """How many errors are within their bars."""
    inside = [line.is_within for line in (*found.lines, *found.ratios)]
    return f"{inside.count(True)} within their bars, {inside.count(False)} outside"


def stories(found: Prediction) -> Iterator[str]:
    """Replays, where decisions part, and who is responsible for each error outside its bar."""
    for name, exact in found.replays.items():
        if exact is not None:
            yield f"{name}: replay of the recorded times {'is exact' if exact else 'DIFFERS'}"
    for one in found.divergences:
        head = f"{one.system}: {one.equal_lines} of {one.lines} decisions foreseen"
        yield f"{head}; {one.first}; {one.event}" if one.first else f"{head}: all"
    for cause in found.causes:
        yield f"{cause.system}: {cause.metric} is off by {percent(cause.error)}: {SAYS[cause.responsible]}"


def number(value: float | None) -> str:
    """Four digits."""
    return "-" if value is None else f"{value:.4g}"


def measured(line: Line) -> str:
    """A mean of runs that each had enough samples."""
    return "n too small" if line.measured is None else number(line.measured)


def percent(value: float | None, digits: int = 1) -> str:
    """A share."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"
