"""What must stay the same, or may change one way only, when a machine or a mechanism changes."""

from __future__ import annotations

from typing import Any

import pytest

from policy.plan import Direction
from sim.simulate import simulate
from tests.helpers.sweeps import SCENARIO
from tests.unit.test_link import RATE, Bench
from traces.recording import Recording
from traces.scenario import build

#: Copies that take no time: what is left of systems is what they decide.
COSTLESS = {
    "transfer.per_job": 0.0,
    "transfer.per_call": 0.0,
    "transfer.per_descriptor": 0.0,
    "transfer.piece_setup": 0.0,
    "transfer.queue_depth": 1e12,
    "transfer.to_device": 1e30,
    "transfer.to_host": 1e30,
    "transfer.to_device_duplex": 1e30,
    "transfer.to_host_duplex": 1e30,
    "transfer.interference_to_device": 0.0,
    "transfer.interference_to_host": 0.0,
}
KEEP = "vllm-0.3.3-keep"
SYNC = ("+groups", "+reuse", "+batched", "+block-major")


def served(system: str | dict[str, Any], values: dict[str, float], **over: Any) -> Recording:
    data = {**SCENARIO, "system": system, "profile_values": values}
    return simulate(build(data, "metamorphic").with_values(over))


def token_times(recording: Recording) -> tuple[list[tuple[str, int, int]], list[int]]:
    """Who got tokens at the ends of which steps, and when these were."""
    spans = sorted(
        (row["request_id"], row["first_step"], row["last_step"])
        for row in recording.table("spans").to_pylist()
        if row["kind"] == "token"
    )
    return spans, recording.table("steps").column("end_ns").to_pylist()


@pytest.mark.parametrize("system", SYNC)
@pytest.mark.parametrize("pattern", ["markov", "random"])
def test_where_copies_cost_nothing_and_the_host_has_room_mechanisms_change_no_token_time(
    system: str, pattern: str
) -> None:
    room = {"pool.host_blocks": 100_000, "priority.pattern": pattern}
    theirs, ours = (served(name, COSTLESS, **room) for name in (KEEP, system))
    assert theirs.summary["metrics"]["preemptions"] > 10
    assert token_times(ours) == token_times(theirs)


def test_with_costs_the_same_systems_do_differ() -> None:
    room = {"pool.host_blocks": 100_000}
    assert token_times(served("+groups", {}, **room)) != token_times(served(KEEP, {}, **room))


@pytest.mark.parametrize("base", [KEEP, "fastswitch"])
def test_on_a_device_that_holds_everything_nothing_is_preempted_or_moved(base: str) -> None:
    system: dict[str, Any] = {"base": base, "between_turns": "keep_device"}
    if base == KEEP:
        system["fcfs_planner"] = "rules"
    metrics = served(system, {}, **{"pool.device_blocks": 50_000}).summary["metrics"]
    assert (metrics["preemptions"], metrics["copy_jobs"], metrics["rows"]) == (
        0,
        0,
        metrics["finished"],
    )


def test_under_the_same_decisions_reuse_moves_no_more_bytes() -> None:
    """Copies without cost make the same decisions, so that bytes can be compared."""
    room = {"pool.host_blocks": 100_000}
    without, reusing = (served(name, COSTLESS, **room) for name in ("+groups", "+reuse"))
    assert token_times(without) == token_times(reusing)
    more, less = (r.summary["metrics"]["copy_bytes"] for r in (without, reusing))
    assert less < more


COPIES = [
    (0, Direction.TO_HOST, 7),
    (100, Direction.TO_DEVICE, 3),
    (2_500, Direction.TO_DEVICE, 9),
    (2_500, Direction.TO_HOST, 1),
    (9_000, Direction.TO_HOST, 4),
    (20_000, Direction.TO_DEVICE, 2),
]


def ends(rate: float, duplex: float) -> list[int]:
    """When each copy of one plan ends, at this rate alone and this share of it beside the other way."""
    bench = Bench(
        to_device=rate,
        to_host=rate,
        to_device_duplex=rate * duplex,
        to_host_duplex=rate * duplex,
        per_job=50.0,
        per_call=20.0,
    )
    for number, copy in enumerate(COPIES):
        bench.copy(copy[0], number, *copy[1:])
    ended = {line[2]: line[0] for line in bench.run() if line[1] == "end"}
    return [ended[number] for number in range(len(COPIES))]


@pytest.mark.parametrize("duplex", [1.0, 0.5])
def test_twice_the_bandwidth_ends_no_copy_of_the_same_plan_later(duplex: float) -> None:
    slow, fast = ends(RATE, duplex), ends(2 * RATE, duplex)
    assert all(late >= early for late, early in zip(slow, fast, strict=True))
    assert slow != fast
