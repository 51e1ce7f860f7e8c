"""A validation as a table for people and as data for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from explore.validation.blame import Cause
from explore.validation.divergence import Divergence
from explore.validation.predict import Line, Prediction, Validation
from explore.validation.step_replay import CostErrors

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
    return {
        "scenario": found.scenario,
        "repeats": found.repeats,
        "lines": [_line(line) for line in found.lines],
        "ratios": [_line(line) for line in found.ratios],
        "divergences": [asdict(one) for one in found.divergences],
        "replays": found.replays,
        "costs": {name: [asdict(one) for one in costs] for name, costs in found.costs.items()},
        "causes": [asdict(one) for one in found.causes],
    }


def _line(line: Line) -> dict[str, Any]:
    derived = ("spread", "error", "bar", "is_within")
    return {**asdict(line), **{name: getattr(line, name) for name in derived}}


def from_json(data: dict[str, Any]) -> Validation:
    """What `as_json` was given, without single steps. Raises KeyError, TypeError or ValueError for
    other data."""
    if data["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; validate again")
    predictions = tuple(_read(one) for one in data["predictions"])
    return Validation(data["profile"], predictions, tuple(data["warnings"]))


def _read(data: dict[str, Any]) -> Prediction:
    return Prediction(
        data["scenario"],
        data["repeats"],
        tuple(_read_line(line) for line in data["lines"]),
        tuple(_read_line(line) for line in data["ratios"]),
        tuple(Divergence(**one) for one in data["divergences"]),
        data["replays"],
        {name: tuple(CostErrors(**one) for one in costs) for name, costs in data["costs"].items()},
        tuple(Cause(**one) for one in data["causes"]),
        {},
    )


def _read_line(data: dict[str, Any]) -> Line:
    return Line(**{name: data[name] for name in Line.__dataclass_fields__})


def as_text(found: Validation) -> str:
    """Tables for people."""
    text = [f"profile {found.profile}"]
    for one in found.predictions:
        text += ["", *_table(one), "", *_story(one)]
    return "\n".join([*text, *(f"warning: {warning}" for warning in found.warnings)])


def _table(found: Prediction) -> Iterator[str]:
    head = (
        f"{'system':34} {'metric':26} {'measured':>11} {'from':>9} {'to':>9} {'predicted':>11}"
        f" {'from':>9} {'to':>9} {'error':>8} {'bar':>7}"
    )
    runs = ", ".join(f"{count} of {name}" for name, count in found.repeats.items())
    yield from (f"{found.scenario}: runs: {runs}", head, "-" * len(head))
    for line in (*found.lines, *found.ratios):
        yield (
            f"{line.system:34} {line.metric:26} {measured(line):>11} {number(line.low):>9}"
            f" {number(line.high):>9} {number(line.predicted):>11} {number(line.predicted_low):>9}"
            f" {number(line.predicted_high):>9} {percent(line.error):>8} {percent(line.bar, 0):>7} {'outside' if line.is_within is False else ''}".rstrip()
        )


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
