"""Where a real run's decisions and the simulated ones part, and what fell on the other side of a step.

Up to the first line that differs both have numbered the same steps, so every event (a turn's arrival,
the end of a copy, the end of a reply) can be asked in both: before which step was it seen?
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from runs.metrics.columns import columns_of
from runs.recording import Recording


@dataclass(frozen=True)
class Divergence:
    """How far the simulated decisions are the recorded ones, times aside. `first`: the first line
    that is not, with what it holds that the other does not; `event`: what was seen at another step."""

    system: str
    equal_lines: int
    lines: int
    first: str
    event: str


class _Event(NamedTuple):
    """`seen`: the first step that was decided with it known; `at_ns`: when it happened."""

    seen: int
    at_ns: int


def diverges(system: str, recorded: Recording, simulated: Recording) -> Divergence | None:
    """Where the two logs part, if the run has one. Times are left out: they always differ."""
    assert recorded.folder is not None
    if not (recorded.folder / "decisions.jsonl").is_file():
        return None
    left = [json.loads(line) for line in recorded.decision_lines()]
    right = [json.loads(line) for line in simulated.decision_lines()]
    for number, (one, other) in enumerate(zip(left, right, strict=False)):
        names = [name for name in one if name != "now_ns" and one[name] != other.get(name)]
        if names:
            event = _parting_event(recorded, simulated, one["step"])
            return Divergence(system, number, len(left), _parting(names, one, other), event)
    same = min(len(left), len(right))
    first = "" if len(left) == len(right) else "one log ends"
    return Divergence(system, same, len(left), first, "")


def _parting(names: list[str], recorded: dict[str, Any], simulated: dict[str, Any]) -> str:
    """In words: who is in a list of one log and not of the other's."""
    name = names[0]
    one, other = recorded[name], simulated[name]
    if not isinstance(one, list):
        return f"step {recorded['step']}: {name} is {one}, simulated {other}"
    only_real = [item for item in one if item not in other]
    only_simulated = [item for item in other if item not in one]
    return (
        f"step {recorded['step']}: {name}: really {json.dumps(only_real)},"
        f" simulated {json.dumps(only_simulated)}"
    )


def _parting_event(recorded: Recording, simulated: Recording, step: int) -> str:
    """The first event that one machine knew at this step and the other did not, in words."""
    real, foretold = dict(_events(recorded)), dict(_events(simulated))
    begins = {id(one): _begin(one, step) for one in (recorded, simulated)}
    found = []
    for name, here in real.items():
        there = foretold.get(name)
        seen = None if there is None else there.seen
        if (here.seen <= step) == (seen is not None and seen <= step):
            continue
        found.append((here.at_ns, _in_words(name, here, there, begins, recorded, simulated, step)))
    for name, there in foretold.items():
        if name not in real and there.seen <= step:
            late = _against(there.at_ns, begins[id(simulated)])
            found.append((there.at_ns, f"{name}: simulated {late}, really not at all"))
    if not found:
        return _adaptive(recorded, simulated, step)
    return min(found)[1]


def _in_words(
    name: str,
    here: _Event,
    there: _Event | None,
    begins: dict[int, int],
    recorded: Recording,
    simulated: Recording,
    step: int,
) -> str:
    real = _against(here.at_ns, begins[id(recorded)])
    if there is None:
        return f"{name}: really {real} step {step} began, simulated not at all"
    return f"{name}: really {real} step {step} began, simulated {_against(there.at_ns, begins[id(simulated)])}"


def _against(at_ns: int, begin_ns: int) -> str:
    away = abs(begin_ns - at_ns) / 1e6
    return f"{away:.3g} ms {'before' if at_ns <= begin_ns else 'after'}"


def _adaptive(recorded: Recording, simulated: Recording, step: int) -> str:
    """No event: then what policies learnt from times differs, which the adaptive rule weighs."""
    sides = []
    for one in (recorded, simulated):
        steps = columns_of(one, "steps")
        row = int(bisect_left(steps["step"], step))
        if row >= len(steps["step"]) or steps["wait_cost"][row] < 0:
            return "no arrival, copy or reply: the machines saw the same and had learnt other rates"
        sides.append((int(steps["wait_cost"][row]), int(steps["overlap_cost"][row])))
    (wait, overlap), (sim_wait, sim_overlap) = sides
    return (
        "no arrival, copy or reply: the adaptive rule weighed waiting against overlapping as"
        f" {wait / 1e6:.3g} against {overlap / 1e6:.3g}, simulated {sim_wait / 1e6:.3g} against"
        f" {sim_overlap / 1e6:.3g}"
    )


def _events(one: Recording) -> Iterator[tuple[str, _Event]]:
    steps = columns_of(one, "steps")
    begins, numbers = steps["start_ns"], steps["step"]
    requests = columns_of(one, "requests")
    for name, arrival, finish in zip(
        requests["request_id"], requests["arrival_ns"], requests["finish_ns"], strict=True
    ):
        yield f"arrival of {name}", _Event(_first_after(begins, numbers, arrival), int(arrival))
        if finish >= 0:
            seen = _first_after(begins, numbers, finish)
            yield f"end of {name}", _Event(seen, int(finish))
    counts: dict[tuple[str, str], int] = {}
    copies = columns_of(one, "copies")
    for name, way, seen, end in zip(
        copies["request_id"],
        copies["direction"],
        copies["seen_step"],
        copies["end_ns"],
        strict=True,
    ):
        number = counts[name, way] = counts.get((name, way), 0) + 1
        yield f"end of copy {number} {way} of {name}", _Event(int(seen), int(end))


def _first_after(begins: Any, numbers: Any, at_ns: int) -> int:
    """The first step that began at or after a time; one past the last if none did."""
    row = int(bisect_left(begins, at_ns))
    return int(numbers[row]) if row < len(numbers) else int(numbers[-1]) + 1 if len(numbers) else 0


def _begin(one: Recording, step: int) -> int:
    steps = columns_of(one, "steps")
    row = int(bisect_left(steps["step"], step))
    return int(steps["start_ns"][min(row, len(steps["step"]) - 1)])
