"""The answer of a search: one point or a front, what stands beside it, and how sure that is.

search.json   the answer and every point (`fastswitch-search/1`)
search.csv    a row per point
search.txt    the answer in words
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from explore.search.points import Point, as_good, best_of, front_of, near_front, violation_of
from explore.search.recipes import Bound
from explore.search.spec import Search
from explore.studies.estimates import Estimate
from explore.studies.store import Store
from explore.studies.sweep_tables import cell, csv_text
from explore.studies.tables import text_table
from explore.words import HEADINGS, in_words

FORMAT = "fastswitch-search/1"
ANSWER, POINTS, WORDS = "search.json", "search.csv", "search.txt"
#: Rows of the table in words.
SHOWN = 12


@dataclass(frozen=True)
class Answer:
    """`chosen`: the best point, or the front in order of points. `beside`: points that chance alone
    may have kept out of it. Both empty if no point keeps the limits."""

    search: Search
    points: list[Point]
    chosen: list[Point]
    beside: list[Point]
    limits: dict[str, Bound]

    @property
    def is_front(self) -> bool:
        """Whether the recipe asks for a front."""
        return len(self.search.objectives) > 1

    @property
    def best(self) -> dict[str, Any] | None:
        """Values of the best point; None for a front, or if there is none."""
        return dict(self.chosen[0].values) if self.chosen and not self.is_front else None

    @property
    def front(self) -> list[dict[str, Any]]:
        """Values of the points of the front."""
        return [dict(point.values) for point in self.chosen] if self.is_front else []


def answer(search: Search, points: list[Point], limits: Mapping[str, Bound]) -> Answer:
    """What the points say. Two that are the same run once and are told once."""
    seen: dict[str, Point] = {}
    for point in points:
        seen.setdefault(json.dumps([point.values, point.system], sort_keys=True), point)
    different = list(seen.values())
    objectives = search.objectives
    if len(objectives) > 1:
        chosen = front_of(different, objectives)
        beside = near_front(different, chosen, objectives)
    else:
        best = best_of(different, objectives[0])
        chosen = [] if best is None else [best]
        beside = [] if best is None else as_good(different, best)
    return Answer(search, points, chosen, beside, dict(limits))


def write(found: Answer, store: Store) -> None:
    """All files of an answer. Raises FaultError."""
    store.write_table(ANSWER, json.dumps(as_json(found), indent=1) + "\n")
    store.write_table(POINTS, as_csv(found))
    store.write_table(WORDS, as_text(found) + "\n")


def as_json(found: Answer) -> dict[str, Any]:
    """search.json."""
    spec = found.search.spec
    return {
        "format": FORMAT,
        "name": spec.name,
        "recipe": spec.recipe,
        "method": spec.how,
        "runs": spec.runs,
        "objectives": [asdict(one) for one in found.search.objectives],
        "limits": {
            name: bound.model_dump(mode="json", exclude_none=True)
            for name, bound in found.limits.items()
        },
        "chosen": [point.index for point in found.chosen],
        "beside": [point.index for point in found.beside],
        "points": [_point(found, point) for point in found.points],
    }


def _point(found: Answer, point: Point) -> dict[str, Any]:
    return {
        "point": point.index,
        "values": point.values,
        "system": point.system,
        "objectives": {
            one.name: asdict(point.estimate(which))
            for which, one in enumerate(found.search.objectives)
        },
        "limited": {name: asdict(estimate) for name, estimate in point.limited.items()},
        "is_feasible": point.is_feasible,
        "problems": list(point.problems),
        "unsure": list(point.unsure),
    }


def as_csv(found: Answer) -> str:
    """search.csv: `place` is `chosen`, `beside` or empty."""
    names = [one.name for one in found.search.objectives]
    knobs = [path for path in found.search.spec.space if path != "system"]
    told = [column for name in names for column in (f"mean {name}", f"half {name}")]
    places = {point.index: "beside" for point in found.beside}
    places |= {point.index: "chosen" for point in found.chosen}
    rows: list[list[Any]] = [
        ["point", *knobs, "system", *told, "feasible", "place", "problems", "unsure"]
    ]
    for point in found.points:
        estimates = [point.estimate(which) for which in range(len(names))]
        rows.append(
            [
                point.index,
                *(cell(point.values[path]) for path in knobs),
                point.system,
                *(number for one in estimates for number in (one.value, one.half)),
                "yes" if point.is_feasible else "no",
                places.get(point.index, ""),
                "; ".join(point.problems),
                "; ".join(point.unsure),
            ]
        )
    return csv_text(rows)


# ---------------------------------------------------------------------- words


def as_text(found: Answer) -> str:
    """search.txt: the answer, the points it is among, and what is not sure."""
    spec = found.search.spec
    feasible = sum(point.is_feasible for point in found.points)
    lines = [
        f"{spec.name}: {spec.recipe}, {len(found.points)} points ({spec.how}), {spec.runs} runs each,"
        f" {feasible} keep all limits",
        f"  limits: {', '.join(_limit(name, bound) for name, bound in found.limits.items())}",
    ]
    if not found.chosen:
        return "\n".join([*lines, *_why_none(found)])
    lines.append(_verdict(found))
    if spec.runs == 1:
        lines.append("One run each, so no interval: how sure this is cannot be said.")
    elif found.beside:
        what = "front" if found.is_front else "best"
        lines.append(
            f"With these runs {_count(found.beside)} cannot be told from the {what} (paired t tests):"
            f" {', '.join(str(p.index) for p in found.beside[:SHOWN])}"
            + (" ..." if len(found.beside) > SHOWN else "")
        )
    unsure = sorted({name for point in found.chosen for name in point.unsure})
    if unsure and spec.runs > 1:
        lines.append(f"Kept by the mean and not by its whole interval: {', '.join(unsure)}")
    return "\n".join([*lines, "", _table(found)])


def _verdict(found: Answer) -> str:
    if found.is_front:
        return f"Front: {_count(found.chosen)} that no other beats in everything."
    (best,) = found.chosen
    told = _place(best)
    (objective,) = found.search.objectives
    kept = ", ".join(f"{name} {_number(found)}" for name, found in best.limited.items())
    what = "" if objective.is_knob else f"{objective.name} {_number(best.estimate(0))}; "
    return f"Best: point {best.index}, {told}: {what}{kept}"


def _why_none(found: Answer) -> list[str]:
    if not found.points:
        return ["No point was tried."]
    nearest = min(found.points, key=lambda point: (violation_of(point), point.index))
    told = _place(nearest)
    return [
        "No point keeps all limits.",
        f"Nearest: point {nearest.index}, {told}: {'; '.join(nearest.problems)}",
    ]


def _place(point: Point) -> str:
    """What was tried, the system included where it was not searched."""
    return ", ".join(
        f"{path}={value}" for path, value in {**point.values, "system": point.system}.items()
    )


def _limit(name: str, bound: Bound) -> str:
    if bound.at_most is not None:
        return f"{name} at most {bound.at_most:g}"
    return f"{name} at least {bound.at_least:g}"


def _count(points: Sequence[Point]) -> str:
    return f"{len(points)} point{'s' if len(points) != 1 else ''}"


def _number(estimate: Estimate) -> str:
    return in_words(estimate)


def _table(found: Answer) -> str:
    objectives = found.search.objectives
    knobs = list(found.search.spec.space)
    first = objectives[0]
    shown = [*found.chosen, *found.beside]
    rest = [p for p in found.points if p.is_feasible and p not in shown]
    rest.sort(key=lambda p: (-(p.estimate(0).value or 0) * first.sign, -p.slack, p.index))
    rows = [
        [
            "*" if point in found.chosen else "~" if point in found.beside else "",
            str(point.index),
            *(str(point.values[path]) for path in knobs),
            *(_number(point.estimate(i)) for i, one in enumerate(objectives) if not one.is_knob),
            *(_number(point.limited[name]) for name in found.limits),
        ]
        for point in [*shown, *rest][:SHOWN]
    ]
    shown_metrics = [*(one.name for one in objectives if not one.is_knob), *found.limits]
    names = [HEADINGS[name][0] if name in HEADINGS else name for name in shown_metrics]
    return text_table(["", "point", *knobs, *names], rows)
