"""The loop: what happens first at one instant, what a run writes down, and when it ends."""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any

import pytest

from policy.errors import ProgressError
from policy.orders.base import Order
from policy.plan import Plan
from runs.recording import Recording
from tests.helpers.bench import US, Bench, turn
from tests.helpers.inside import memory_of
from traces.workload import Turn

KINDS = ("finish", "copy", "arrival", "update", "plan")
Log = list[tuple[int, str]]


def rows(recording: Recording, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = recording.table(table).to_pylist()
    return found


def requests(recording: Recording) -> dict[str, dict[str, Any]]:
    return {row["request_id"]: row for row in rows(recording, "requests")}


def starts(recording: Recording) -> list[int]:
    return [row["start_ns"] for row in rows(recording, "steps")]


# ---------------------------------------------------------------------- one instant


class Logged(Order):
    """Shuffles priorities at every update, and writes down when."""

    name = "logged"
    refreshes = True

    def __init__(self) -> None:
        self.log: Log = []
        self.index = 0

    def update(self, index: int, now_ns: int) -> None:
        self.log.append((now_ns, "update"))
        self.index = index

    def key(self, request: Any, now_ns: int) -> tuple[int, ...]:
        return (random.Random(f"{request.session_id} {self.index}").randrange(3),)


def watched(bench: Bench, log: Log) -> None:
    """Write every entry of the scheduler's state down as it happens."""
    scheduler, env = bench.scheduler, bench.engine.env
    entries = (
        (scheduler.engine, "leave", "finish"),
        (memory_of(scheduler), "complete", "copy"),
        (scheduler, "add", "arrival"),
        (scheduler, "schedule", "plan"),
    )
    for owner, method, kind in entries:
        proper = getattr(owner, method)

        def called(*given: Any, _proper: Any = proper, _kind: str = kind, **more: Any) -> Any:
            if _kind != "plan":
                log.append((env.now, _kind))
            result = _proper(*given, **more)
            if _kind == "plan":
                log.append((env.now, _kind))
            return result

        setattr(owner, method, called)


@pytest.mark.parametrize("system", ["fastswitch", "vllm-0.3.3-keep"])
def test_at_one_instant_come_finish_copies_arrivals_update_and_plan_in_this_order(
    system: str,
) -> None:
    """Everything lasts whole microseconds here, so that instants are crowded."""
    rng = random.Random(5)
    turns = [
        turn(f"r{i:03}", 4 * i * US, rng.randrange(1, 250), rng.randrange(1, 40))
        for i in range(150)
    ]
    order = Logged()
    bench = Bench(turns, order, system=system, **{"priority.frequency": 0.25})
    watched(bench, order.log)
    bench.run()
    rounds: list[Log] = [[]]
    for entry in order.log:
        rounds[-1].append(entry)
        if entry[1] == "plan":
            rounds.append([])
    kinds = [[kind for _, kind in entries] for entries in rounds]
    assert all(found == sorted(found, key=KINDS.index) for found in kinds)
    assert all(found.count("update") <= 1 for found in kinds)
    assert all(len({now for now, kind in entries if kind != "plan"}) <= 1 for entries in rounds)
    for pair in combinations(KINDS, 2):
        assert any(set(pair) <= set(found) for found in kinds), f"never met: {pair}"


@pytest.mark.parametrize(("at", "first_token"), [(3 * US, 4 * US), (3 * US + 1, 5 * US)])
def test_who_arrives_as_a_step_ends_is_in_the_next_one_and_who_comes_later_waits_for_it(
    at: int, first_token: int
) -> None:
    found = requests(Bench([turn("a", 0, reply=20), turn("b", at)]).run())
    assert found["b"]["first_token_ns"] == first_token


def test_arrivals_of_one_instant_enter_by_time_and_then_by_id() -> None:
    turns = [turn("z", 0, reply=3), turn("c", 500), turn("b", 900), turn("a", 900)]
    bench = Bench(turns, Order(), system="+groups")
    entered: list[str] = []
    add = bench.scheduler.add

    def watch(request: Any, now_ns: int) -> None:
        entered.append(request.request_id)
        add(request, now_ns)

    bench.scheduler.add = watch  # type: ignore[method-assign]
    bench.run()
    assert entered == ["z", "c", "a", "b"]


# ---------------------------------------------------------------------- what is written down


def test_a_turn_alone_has_its_first_token_after_a_step_and_one_more_with_each() -> None:
    found = requests(Bench([turn("a", 7 * US, reply=5)]).run())["a"]
    assert (found["arrival_ns"], found["first_token_ns"], found["finish_ns"]) == (
        7 * US,
        8 * US,
        12 * US,
    )
    assert (found["output_tokens"], found["status"], found["reason"]) == (5, "finished", "")


def test_steps_follow_each_other_without_a_gap_while_there_is_work_and_stop_while_there_is_none() -> (
    None
):
    recording = Bench([turn("a", 0, reply=3), turn("b", 50 * US, reply=2)], system="+groups").run()
    steps = rows(recording, "steps")
    computing = [step for step in steps if step["end_ns"] > step["start_ns"] + step["stall_ns"]]
    assert [step["start_ns"] for step in computing] == [0, US, 2 * US, 50 * US, 51 * US]
    assert [step["step"] for step in steps] == list(range(len(steps)))


def squeezed(system: str) -> Recording:
    """The urgent one takes the room of the long one, which comes back when it is done."""
    turns = [
        turn("leader", 0, 60, 30, priority=-2),
        turn("long", 0, 300, 12, priority=1),
        turn("urgent", 4 * US, 300, 6, priority=0),
    ]
    return Bench(turns, system=system, **{"pool.device_blocks": 10}).run()


def test_a_step_that_waits_for_copies_says_how_long() -> None:
    recording = squeezed("+groups")
    copies = rows(recording, "copies")
    out, back = [copy for copy in copies if copy["request_id"] == "long"][:2]
    assert (out["direction"], out["blocks"], back["direction"]) == ("d2h", 5, "h2d")
    stalls = {row["start_ns"]: row["stall_ns"] for row in rows(recording, "steps")}
    assert stalls[out["submit_ns"]] == 5 * US
    assert sum(stalls.values()) == sum(copy["end_ns"] - copy["submit_ns"] for copy in copies)


def test_a_step_that_does_not_wait_has_no_stall_and_the_leader_never_pauses() -> None:
    recording = squeezed("fastswitch")
    assert not rows(recording, "copies")[0]["waited_for"]
    leader = requests(recording)["leader"]
    long_alone = requests(squeezed("+groups"))["leader"]
    assert leader["finish_ns"] < long_alone["finish_ns"]
    assert leader["finish_ns"] - leader["first_token_ns"] >= 29 * US


def test_a_preemption_is_written_down_with_the_step_that_decided_it() -> None:
    recording = squeezed("+groups")
    (preemption,) = rows(recording, "preemptions")
    store = rows(recording, "copies")[0]
    steps = {row["step"]: row for row in rows(recording, "steps")}
    assert (preemption["request_id"], preemption["mode"]) == ("long", "swap")
    assert steps[preemption["step"]]["start_ns"] == store["submit_ns"]


def test_progress_is_told_each_time_a_turn_has_ended() -> None:
    seen: list[int] = []
    turns = [turn("a", 0), turn("none", 0, prompt=0), turn("b", 0, reply=2), turn("c", 9)]
    Bench(turns, progress=seen.append).run()
    assert seen == [1, 2, 3, 4]


# ---------------------------------------------------------------------- turns that end otherwise


@pytest.mark.parametrize(
    ("prompt", "reply", "reason"),
    [(0, 5, "empty prompt"), (5, 0, "no output tokens in the source")],
)
def test_a_row_that_cannot_be_served_is_rejected_and_its_next_turn_still_comes(
    prompt: int, reply: int, reason: str
) -> None:
    turns = [
        turn("first", 0, prompt, reply, session="s"),
        Turn("second", "s", 2, 20, 3, think_ns=10 * US),
    ]
    found = requests(Bench(turns, timing="closed").run())
    assert found["first"]["status"] == "rejected"
    assert found["first"]["reason"].startswith(reason)
    assert found["first"]["finish_ns"] is None
    assert (found["second"]["status"], found["second"]["arrival_ns"]) == ("finished", 10 * US)


def test_a_prompt_that_no_device_holds_is_rejected_with_the_reason() -> None:
    found = requests(Bench([turn("huge", 0, 64 * 11), turn("a", 0)]).run())
    assert found["huge"]["status"] == "rejected"
    assert "the device has 10" in found["huge"]["reason"]
    assert found["a"]["status"] == "finished"


def test_a_reply_stops_one_past_the_longest_context_and_says_why() -> None:
    bench = Bench([turn("a", 0, 90, 50), turn("b", 0, 10, 50)], **{"limits.max_model_len": 100})
    found = requests(bench.run())
    assert (found["a"]["output_tokens"], found["a"]["reason"]) == (11, "length cap")
    assert (found["b"]["output_tokens"], found["b"]["reason"]) == (50, "")


def test_a_client_who_leaves_gets_the_tokens_made_until_then() -> None:
    """It arrives at 2 us, has its first token at 3 us and leaves at 7.5 us: noticed at 8 us."""
    left = turn("left", 2 * US, reply=50, cancel_ns=5 * US + 500)
    found = requests(Bench([left]).run())["left"]
    assert (found["status"], found["reason"]) == ("cancelled", "client left")
    assert (found["cancel_ns"], found["output_tokens"], found["finish_ns"]) == (
        7 * US + 500,
        6,
        None,
    )
    assert found["cancel_seen_step"] == 6


def test_a_client_who_leaves_after_the_last_token_has_not_left() -> None:
    found = requests(Bench([turn("a", 0, reply=3, cancel_ns=3 * US)]).run())["a"]
    assert (found["status"], found["cancel_ns"]) == ("finished", None)


def test_a_client_who_leaves_an_idle_machine_wakes_it() -> None:
    """Its prompt waits for a seat that is taken; nobody else ever comes."""
    turns = [turn("a", 0, reply=200), turn("b", 0, reply=5, cancel_ns=10 * US)]
    found = requests(Bench(turns, **{"limits.max_num_seqs": 1}).run())["b"]
    assert (found["status"], found["output_tokens"], found["first_token_ns"]) == (
        "cancelled",
        0,
        None,
    )


# ---------------------------------------------------------------------- the end


def test_a_run_ends_when_the_last_turn_has_and_its_copies_too() -> None:
    """Its KV is kept: the copy of the last turn ends after the last token."""
    bench = Bench([turn("a", 0, 200, 5)], system="fastswitch")
    recording = bench.run()
    (copy,) = rows(recording, "copies")
    assert copy["end_ns"] > requests(recording)["a"]["finish_ns"] == 5 * US
    assert bench.engine.env.now == copy["end_ns"]
    assert bench.engine.verdict is None


def test_where_the_release_would_stop_everybody_still_served_is_unfinished() -> None:
    turns = [turn(name, 0, 128, 500) for name in "ab"]
    bench = Bench(turns, system="vllm-0.3.3", order="fcfs", **{"pool.host_blocks": 0})
    recording = bench.run()
    assert "aborts its engine" in str(recording.summary["verdict"])
    assert {row["status"] for row in rows(recording, "requests")} == {"unfinished"}
    assert {row["reason"] for row in rows(recording, "requests")} == {"the engine stopped"}


def test_a_scheduler_that_waits_for_nothing_is_an_error_and_no_endless_run() -> None:
    bench = Bench([turn("a", 0)], check="off")
    idle = Plan(waiting_on=("a miracle",))
    bench.scheduler.schedule = lambda _now: idle  # type: ignore[method-assign]
    with pytest.raises(ProgressError, match="idle for ever: a miracle"):
        bench.run()


def test_an_empty_workload_is_over_at_once() -> None:
    bench = Bench([])
    assert starts(bench.run()) == []
    assert bench.engine.env.now == 0
