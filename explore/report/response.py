"""How a metric answers to a value that was swept: a curve per system with its interval as a band."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from explore import words
from explore.report import chart, looks
from explore.report.chart import Axis, Curve, Picture, Point
from explore.studies.estimates import Estimate

#: Most values that are ticks of their axis.
_MARKS = 7


class Answer(NamedTuple):
    """What one system gave at one point."""

    values: Mapping[str, Any]
    system: str
    found: Estimate


def knob_of(points: Sequence[Mapping[str, Any]]) -> str | None:
    """The first value that is a number and was swept, along which there are curves."""
    for name in points[0] if points else ():
        values = [point.get(name) for point in points]
        numbers = {v for v in values if isinstance(v, int | float) and not isinstance(v, bool)}
        if len(numbers) > 1 and all(
            isinstance(v, int | float) and not isinstance(v, bool) for v in values
        ):
            return name
    return None


def along(answers: Sequence[Answer], knob: str) -> tuple[list[Answer], str]:
    """Those that differ by this value and the system alone: all else is as in the first; in words."""
    held = {k: v for k, v in answers[0].values.items() if k not in (knob, "system")}
    mine = [
        one
        for one in answers
        if {k: v for k, v in one.values.items() if k not in (knob, "system")} == held
    ]
    return mine, ", ".join(f"{name}={_shown(value)}" for name, value in held.items() if value != "")


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def picture(
    answers: Sequence[Answer], knob: str, metric: str, limit: float | None = None
) -> Picture | None:
    """The metric over the knob; None where fewer than two values have a number."""
    title, unit, factor = words.HEADINGS.get(metric, (metric, "", 1.0))
    known = [one for one in answers if one.found.value is not None]
    places = sorted({float(one.values[knob]) for one in known})
    if len(places) < 2:
        return None
    systems = list(dict.fromkeys(one.system for one in known))
    curves, points = [], []
    for system in systems:
        mine = sorted(
            (one for one in known if one.system == system), key=lambda one: float(one.values[knob])
        )
        spots = [_point(one, knob, metric, factor) for one in mine]
        points += spots
        curves.append(_curve(system, spots, has_band=all(one.found.interval for one in mine)))
    line = None if limit is None else limit * factor
    y = _axis(f"{title} {unit}".strip(), points, line)
    return Picture(
        f"{title} over {knob}", _along(knob, places), y, curves, points, systems, None, line
    )


def _point(one: Answer, knob: str, metric: str, factor: float) -> Point:
    x = float(one.values[knob])
    assert one.found.value is not None
    low, high = one.found.interval or (one.found.value, one.found.value)
    told = words.scaled(one.found, factor)
    label = f"{one.system}, {knob}={x:g}: {metric} {told}"
    return Point(
        label, one.system, (x, x, x), (one.found.value * factor, low * factor, high * factor)
    )


def _curve(system: str, spots: Sequence[Point], *, has_band: bool) -> Curve:
    line = [(spot.x[0], spot.y[0]) for spot in spots]
    band = ([spot.y[1] for spot in spots], [spot.y[2] for spot in spots]) if has_band else None
    return Curve("", line, band, looks.of(system), rises=True)


def _along(knob: str, places: Sequence[float]) -> Axis:
    marks = tuple(places) if len(places) <= _MARKS else ()
    if places[0] > 0 and places[-1] / places[0] >= 4:
        return Axis(knob, places[0] / 1.15, places[-1] * 1.15, is_log=True, marks=marks)
    room = (places[-1] - places[0]) * 0.06
    return Axis(knob, places[0] - room, places[-1] + room, marks=marks)


def _axis(title: str, points: Sequence[Point], limit: float | None) -> Axis:
    """Around all means and the limit, and their intervals as far as these are not beyond a tenfold."""
    means = [point.y[0] for point in points] + ([] if limit is None else [limit])
    if min(means) <= 0:
        return chart.linear(title, [*means, *(point.y[2] for point in points)])
    ends = [max(point.y[1], min(means) / 10) for point in points]
    ends += [min(point.y[2], max(means) * 10) for point in points]
    return chart.log(title, [*means, *ends])
