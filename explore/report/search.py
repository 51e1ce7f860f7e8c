"""How the report of a search opens: the winner, the limits as lines, and who missed them by chance alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from explore import words
from explore.report import chart, document, response
from explore.report.response import Answer
from explore.search.recipes import Bound
from explore.studies.estimates import Estimate

#: Most pictures, and most points told.
_PICTURES, _TOLD = 4, 8


class Miss(NamedTuple):
    """A limit that was not kept, though the interval reaches into it: how far beyond, in shares of it."""

    point: Mapping[str, Any]
    metric: str
    beyond: float
    half: float


def opening(data: Mapping[str, Any]) -> str:
    """What search.json says, as the top of a page."""
    found = list(near_misses(data))
    chosen = {point["point"]: point for point in data["points"]}
    beside = [chosen[index] for index in data["beside"]]
    parts = [document.paragraph(verdict(data), "lead"), _pictures(data)]
    if found:
        parts.append(
            document.paragraph("Near misses, which more runs might let in (95 % intervals):")
            + document.items(_missed(one, data) for one in found[:_TOLD])
        )
    if beside:
        parts.append(
            document.paragraph("As good as chance can tell (paired t tests, Holm):")
            + document.items(_place(point) for point in beside[:_TOLD])
        )
    limits = "; ".join(_limit(name, bound) for name, bound in data["limits"].items())
    parts.append(
        document.paragraph(
            f"{data['recipe']} over {len(data['points'])} points ({data['method']}), {data['runs']} runs"
            f" each. Limits: {limits}."
        )
    )
    return "".join(parts)


def verdict(data: Mapping[str, Any]) -> str:
    """The winner in a sentence."""
    points = {point["point"]: point for point in data["points"]}
    feasible = sum(point["is_feasible"] for point in data["points"])
    if not data["chosen"]:
        return f"None of {len(points)} points keeps all limits."
    objectives = data["objectives"]
    if len(objectives) > 1:
        names = ", ".join(_named(one["name"]) for one in objectives)
        return f"{len(data['chosen'])} points are beaten by no other in {names}."
    best = points[data["chosen"][0]]
    (objective,) = objectives
    told = words.in_words(Estimate(**best["objectives"][objective["name"]]))
    what = "" if objective["is_knob"] else f", with {_named(objective['name'])} {told}"
    way = "highest" if objective["way"] == "max" else "lowest"
    sure = (
        f"; {len(data['beside'])} other{'s' if len(data['beside']) > 1 else ''} cannot be told from it"
        if data["beside"]
        else ""
    )
    return (
        f"{_place(best)} has the {way} {_named(objective['name'])} of the {feasible} points that keep all"
        f" limits{what}{sure}."
    )


def near_misses(data: Mapping[str, Any]) -> Iterator[Miss]:
    """Points left out by limits alone, each of which their interval reaches; the nearest first."""
    found = []
    for point in data["points"]:
        if point["is_feasible"]:
            continue
        missed = [
            miss
            for name, values in data["limits"].items()
            if (miss := _miss(point, name, Bound(**values))) is not None
        ]
        told = [
            name for name in data["limits"] if any(p.startswith(name) for p in point["problems"])
        ]
        if missed and len(missed) == len(point["problems"]) == len(told):
            found.append(max(missed, key=lambda one: one.beyond))
    yield from sorted(found, key=lambda one: one.beyond)


def _miss(point: Mapping[str, Any], name: str, bound: Bound) -> Miss | None:
    values = point["limited"].get(name)
    found = Estimate(None) if values is None else Estimate(**values)
    if found.value is None or found.interval is None or found.half is None:
        return None
    size = abs(_edge(bound)) or 1.0
    nearest = found.interval[0] if bound.at_most is not None else found.interval[1]
    beyond = bound.excess(found.value)
    if beyond <= 0 or bound.excess(nearest) > 0:
        return None
    return Miss(point, name, beyond, found.half / size)


def _edge(bound: Bound) -> float:
    edge = bound.at_most if bound.at_most is not None else bound.at_least
    assert edge is not None
    return edge


def _missed(one: Miss, data: Mapping[str, Any]) -> str:
    limit = _limit(one.metric, data["limits"][one.metric])
    return f"{_place(one.point)} missed {limit} by {100 * one.beyond:.1f} % ± {100 * one.half:.1f}"


def _pictures(data: Mapping[str, Any]) -> str:
    """Every limited metric, then every objective, over the first number that was searched."""
    points: Sequence[Mapping[str, Any]] = data["points"]
    knob = response.knob_of([point["values"] for point in points])
    if knob is None:
        return ""
    made, held = [], ""
    limits = {name: _edge(Bound(**values)) for name, values in data["limits"].items()}
    asked = [one["name"] for one in data["objectives"] if not one["is_knob"]]
    for name in dict.fromkeys([*limits, *asked]):
        answers = [Answer(p["values"], p["system"], _estimate(p, name)) for p in points]
        known = [one for one in answers if one.found.value is not None]
        if not known or name == "completion":
            continue
        mine, held = response.along(known, knob)
        picture = response.picture(mine, knob, name, limits.get(name))
        if picture is not None:
            made.append(chart.svg(picture))
    if not made:
        return ""
    caption = "Means over runs with 95 % intervals; the line across is the limit." + (
        f" Where all else is {held}." if held else ""
    )
    return document.side_by_side(made[:_PICTURES], caption)


def _estimate(point: Mapping[str, Any], name: str) -> Estimate:
    found = point["limited"].get(name) or point["objectives"].get(name)
    return Estimate(None) if found is None else Estimate(**found)


def _place(point: Mapping[str, Any]) -> str:
    rest = {k: v for k, v in point["values"].items() if k != "system"}
    told = ", ".join(f"{name}={value}" for name, value in rest.items())
    return f"{point['system']} at {told}" if told else str(point["system"])


def _named(name: str) -> str:
    return words.HEADINGS[name][0] if name in words.HEADINGS else name


def _limit(name: str, values: Mapping[str, Any]) -> str:
    bound = Bound(**values)
    unit = words.HEADINGS[name][1] if name in words.HEADINGS else ""
    factor = words.HEADINGS[name][2] if name in words.HEADINGS else 1.0
    way = "at most" if bound.at_most is not None else "at least"
    return f"{_named(name)} {way} {_edge(bound) * factor:g} {unit}".strip()
