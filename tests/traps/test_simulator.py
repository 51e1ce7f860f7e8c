"""Traps of simulators (docs/traps.md, S1 to S6 and A10): time goes on, nothing is had for free, and
a copy costs those whom it would cost on a real machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from policy.engines.base import Event, Until
from policy.engines.catalog import ENGINES
from policy.engines.draft import Draft
from policy.engines.ranked import RankedEngine
from policy.engines.swaps import Swaps
from policy.errors import ProgressError
from policy.plan import Plan, PreemptionMode
from policy.request import Request
from runs.recording import Recording
from runs.scenario import build, merge
from sim.clock import Clock
from sim.simulate import simulate
from tests.helpers.bench import FREE
from traces.readers.native import write
from traces.workload import Header, Turn, Workload

BLOCK = 16
SECOND = 1_000_000_000
BLOCK_BYTES = BLOCK * 131_072  # of Llama-3-8B


def block_in(nanoseconds: float) -> dict[str, float]:
    """A link that moves one block in so many nanoseconds, either way."""
    rate = BLOCK_BYTES * 1e9 / nanoseconds
    names = ("to_device", "to_host", "to_device_duplex", "to_host_duplex")
    return {f"transfer.{name}": rate for name in names}


PRESSED: dict[str, Any] = {
    "workload": {
        "generator": "chat",
        "conversations": 60,
        "rate": 1.5,
        "context_cap": 2048,
        "think": "exponential",
    },
    "profile": "a10-llama-3-8b",
    "pool": {"device_blocks": 500, "host_blocks": 4000},
    "priority": {"pattern": "random", "frequency": 0.04},
    "limits": {"max_model_len": 8192},
}


def pressed(system: str | dict[str, Any], **values: Any) -> Recording:
    """An A10 with room for about ten conversations, and sixty that come."""
    dotted = {name.replace("__", "."): value for name, value in values.items()}
    return simulate(build(merge({**PRESSED, "system": system}, dotted), "pressed"), check="off")


def played(
    folder: Path,
    turns: list[Turn],
    system: str | dict[str, Any],
    values: dict[str, float],
    timing: str = "open",
    check: str = "full",
    **pool: Any,
) -> Recording:
    """Turns of a test's own, under their static priorities."""
    path = folder / "turns.jsonl"
    write(Workload.of(turns, Header(timing=timing)), path)  # type: ignore[arg-type]
    scenario = {
        "workload": {"file": str(path)},
        "system": system,
        "order": "priority",
        "profile": "a10-llama-3-8b",
        "profile_values": {**FREE, **values},
        "pool": {
            "device_blocks": 100,
            "host_blocks": 1000,
            "block_size": BLOCK,
            "watermark": 0.0,
            "aging": "none",
            **pool,
        },
    }
    return simulate(build(scenario, "played"), check=check)


def rows(recording: Recording, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = recording.table(table).to_pylist()
    return found


# ------------------------------------------------------------------ S1: time goes on


class CountingClock(Clock):
    """Counts the events of each instant."""

    busiest = 0
    events = 0
    instant = -1

    def step(self) -> None:
        super().step()
        kind = type(self)
        kind.events = kind.events + 1 if self.now == kind.instant else 1
        kind.instant = self.now
        kind.busiest = max(kind.busiest, kind.events)


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "fastswitch"])
@pytest.mark.parametrize("device_blocks", [130, 500])
def test_s1_events_at_one_instant_are_bounded(
    system: str, device_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody thinks for no time, shares a device that holds one, and is drawn anew every step:
    still an instant sees no more events than a few per copy and per turn."""
    monkeypatch.setattr("sim.simulate.Clock", CountingClock)
    monkeypatch.setattr(CountingClock, "busiest", 0)
    recording = pressed(
        system,
        workload__think="none",
        workload__conversations=30,
        pool__device_blocks=device_blocks,
        priority__frequency=1.0,
    )
    assert recording.summary["metrics"]["preemptions"] > 500
    assert 3 <= CountingClock.busiest <= 20


def test_s1_a_planner_that_goes_round_in_circles_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Circling(RankedEngine):
        def decide(self) -> tuple[Plan, Until]:
            victim = next(iter(self.desk.live), None)
            if victim is None:
                return Plan(waiting_on=("arrivals",)), Until()
            preempt = ((victim, PreemptionMode.RECOMPUTE),)
            return Plan(preempt=preempt, waiting_on=("the next plan",)), Until(Event.MADE)

    monkeypatch.setitem(ENGINES, "ranked", Circling)
    with pytest.raises(ProgressError, match="plans in a row ran nothing"):
        pressed("fastswitch", workload__conversations=3)


# ------------------------------------------------------------------ S2: what a preemption costs


def prefills_of_each(recording: Recording) -> Counter[str]:
    return Counter(
        row["request_id"] for row in rows(recording, "spans") if row["kind"] == "prefill"
    )


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "+reuse", "fastswitch"])
def test_s2_a_preempted_request_finds_its_kv_again_and_prefills_once(system: str) -> None:
    recording = pressed(system)
    preempted = [row["preemptions"] for row in rows(recording, "requests")]
    assert max(preempted) >= 10
    assert max(prefills_of_each(recording).values()) == 1
    assert recording.summary["metrics"]["recomputed_tokens"] == 0


def test_s2_without_host_room_it_prefills_again_each_time_and_is_seen_to() -> None:
    recording = pressed("+reuse", pool__host_blocks=0)
    prefills = prefills_of_each(recording)
    for row in rows(recording, "requests"):
        assert prefills[row["request_id"]] <= 1 + row["preemptions"]
    assert max(prefills.values()) >= 10


# ------------------------------------------------------------------ S3: nothing is had for free


def unpaid(recording: Recording) -> list[str]:
    """Requests whose prompt was neither computed nor found, or that found what was not there: a
    hit needs a parent's KV, less its last token, and a copy in unless it never left the device."""
    prefilled: dict[str, int] = {}
    for row in rows(recording, "spans"):
        if row["kind"] == "prefill":
            prefilled.setdefault(row["request_id"], row["tokens"])
    loaded = Counter[str]()
    for row in rows(recording, "copies"):
        loaded[row["request_id"]] += row["blocks"] if row["direction"] == "h2d" else 0
    contexts: dict[str, int] = {}
    found = []
    for row in sorted(rows(recording, "requests"), key=lambda row: row["turn"]):
        name, cached = row["request_id"], row["cached_tokens"]
        if row["status"] != "finished":
            continue
        before = contexts.get(row["session_id"], 1)
        contexts[row["session_id"]] = row["input_tokens"] + row["output_tokens"]
        if (
            prefilled[name] + cached != row["input_tokens"]
            or cached >= before
            or (cached and loaded[name] * BLOCK < cached)
        ):
            found.append(name)
    return found


@pytest.mark.parametrize("host_blocks", [300, 900, 8000])
@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "+groups", "fastswitch"])
def test_s3_every_prompt_token_is_computed_once_or_found_where_it_was_kept(
    system: str, host_blocks: int
) -> None:
    recording = pressed(system, pool__host_blocks=host_blocks)
    metrics = recording.summary["metrics"]
    later = [row for row in rows(recording, "requests") if row["turn"] > 1]
    hits = sum(row["cached_tokens"] > 0 for row in later)
    assert hits == len(later) if host_blocks == 8000 else hits < len(later)
    assert metrics["cached_tokens"] > 1000
    assert unpaid(recording) == []


def test_s3_hits_on_blocks_that_are_gone_are_seen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = Swaps.start_prefill

    def hits_for_ever(self: Swaps, request: Request, draft: Draft, most: int | None = None) -> bool:
        is_whole = proper(self, request, draft, most)
        if request.turn > 1:
            draft.prefill[-1] = (request.request_id, 1)
        return is_whole

    honest = pressed("+groups", pool__host_blocks=300).summary["metrics"]
    monkeypatch.setattr(Swaps, "start_prefill", hits_for_ever)
    recording = pressed("+groups", pool__host_blocks=300)
    assert len(unpaid(recording)) > 10
    assert recording.summary["metrics"]["makespan_s"] < 0.9 * honest["makespan_s"]


# ------------------------------------------------------------------ S4: where KV is looked for


def second_turn(
    folder: Path, system: dict[str, Any], think_s: int, **pool: Any
) -> tuple[int, int, int]:
    """Of a second turn of 200 tokens after a first that left KV of 159 in ten blocks: (tokens
    prefilled, blocks loaded, tokens found)."""
    turns = [
        Turn("a/1", "a", 1, 150, 10, arrival_ns=0),
        Turn("a/2", "a", 2, 200, 10, think_ns=think_s * SECOND),
    ]
    recording = played(folder, turns, system, block_in(1000), "closed", **pool)
    prefilled = sum(
        row["tokens"]
        for row in rows(recording, "spans")
        if row["request_id"] == "a/2" and row["kind"] == "prefill"
    )
    loaded = sum(
        row["blocks"]
        for row in rows(recording, "copies")
        if row["request_id"] == "a/2" and row["direction"] == "h2d"
    )
    found = next(r for r in rows(recording, "requests") if r["request_id"] == "a/2")
    return prefilled, loaded, found["cached_tokens"]


@pytest.mark.parametrize(
    ("between_turns", "think_s", "host_blocks", "expected"),
    [
        ("keep_device", 5, 1000, (41, 0, 159)),  # the device first
        ("keep_host", 0, 1000, (41, 0, 159)),  # it has not left yet
        ("keep_host", 5, 1000, (41, 10, 159)),  # then the host
        ("keep_host", 5, 9, (200, 0, 0)),  # that had no room: computed again
        ("drop", 5, 1000, (200, 0, 0)),
    ],
)
@pytest.mark.parametrize("base", ["+groups", "+reuse", "fastswitch"])
def test_s4_kv_is_looked_for_on_the_device_then_on_the_host_and_then_computed(
    base: str,
    between_turns: str,
    think_s: int,
    host_blocks: int,
    expected: tuple[int, int, int],
    tmp_path: Path,
) -> None:
    system = {"base": base, "between_turns": between_turns}
    assert second_turn(tmp_path, system, think_s, host_blocks=host_blocks) == expected


def test_s4_what_is_on_both_sides_is_not_copied(tmp_path: Path) -> None:
    """The second turn leaves its KV on the host too, and the third comes before it leaves."""
    turns = [
        Turn("a/1", "a", 1, 150, 10, arrival_ns=0),
        Turn("a/2", "a", 2, 200, 10, think_ns=SECOND),
        Turn("a/3", "a", 3, 250, 10, think_ns=0),
    ]
    recording = played(tmp_path, turns, "+reuse", block_in(1000), "closed")
    loads = [c["request_id"] for c in rows(recording, "copies") if c["direction"] == "h2d"]
    assert loads == ["a/2"]
    assert [row["cached_tokens"] for row in rows(recording, "requests")] == [0, 159, 209]


# ------------------------------------------------------------------ S5, A10: who waits for a copy


def parked(replies: int = 400, step_ns: int = 1000) -> list[Turn]:
    """`low` of 80 blocks gives way to `urgent` and comes back; `leader` decodes all along."""
    return [
        Turn("leader", "leader", 1, 10, replies, arrival_ns=0, priority=-1),
        Turn("low", "low", 1, 1270, 8, arrival_ns=0, priority=1),
        Turn("urgent", "urgent", 1, 1270, 4, arrival_ns=7 * step_ns // 2, priority=0),
    ]


ASYNC = {"base": "fastswitch", "overlap": "async", "between_turns": "drop"}


def served_ns(recording: Recording) -> dict[str, int]:
    return {row["request_id"]: row["finish_ns"] for row in rows(recording, "requests")}


def lengths(recording: Recording) -> set[int]:
    return {row["end_ns"] - row["start_ns"] for row in rows(recording, "steps")}


def test_s5_a_slow_copy_delays_those_who_need_it_and_no_step(tmp_path: Path) -> None:
    quick = played(tmp_path, parked(), ASYNC, block_in(100))
    slow = played(tmp_path, parked(), ASYNC, block_in(1000))
    assert lengths(quick) == lengths(slow) == {1000}
    later = {name: served_ns(slow)[name] - ns for name, ns in served_ns(quick).items()}
    blocks = [copy["blocks"] for copy in rows(quick, "copies")]
    assert blocks == [80, 80]
    assert later["leader"] == 0
    one_way = 80 * 900
    assert abs(later["urgent"] - one_way) <= 1000
    assert abs(later["low"] - 2 * one_way) <= 2000


def test_s5_copies_that_surcharge_the_step_are_seen_to(tmp_path: Path) -> None:
    """The synchronous system does what the trap does, and says so in its steps."""
    sync = {**ASYNC, "overlap": "sync"}
    slow = played(tmp_path, parked(), sync, block_in(1000))
    assert sum(row["stall_ns"] for row in rows(slow, "steps")) == 2 * 80_000
    assert max(lengths(slow)) == 81_000


def longest_step(folder: Path, queue_depth: int, **switches: Any) -> int:
    """In nanoseconds beyond 100,000, while 80 blocks leave and come back in 5,120 copies of 500 ns,
    each submitted in 10 ns."""
    system = {**ASYNC, "allocator": "paged", "submission": "per_block", **switches}
    values = {
        **block_in(64 * 500),
        "step.base": 100_000.0,
        "transfer.per_call": 10.0,
        "transfer.queue_depth": float(queue_depth),
    }
    recording = played(folder, parked(120, 100_000), system, values)
    assert [copy["calls"] for copy in rows(recording, "copies")] == [5120, 5120]
    return max(lengths(recording)) - 100_000


def test_a10_five_thousand_small_copies_stall_no_step_of_an_engine_with_worker_threads(
    tmp_path: Path,
) -> None:
    assert longest_step(tmp_path, 1000, dispatch="worker_threads") == 0


def test_a10_a_full_stream_queue_stalls_the_engines_own_thread(tmp_path: Path) -> None:
    roomy = longest_step(tmp_path, 6000, dispatch="main_thread")
    full = longest_step(tmp_path, 1000, dispatch="main_thread")
    assert roomy == 5120 * 10
    assert full == 10 + (5120 - 1000) * 500


# ------------------------------------------------------------------ S6: where pools start from


def runs_of_the_first_store(folder: Path, system: str, aging: str) -> int:
    """Copies that the first 103 blocks to leave are cut into."""
    turns = []
    for index in range(20):
        name = f"c{index:02}"
        turns.append(Turn(f"{name}/1", name, 1, 1600, 40, arrival_ns=index * SECOND))
        turns.append(Turn(f"{name}/2", name, 2, 1660, 40, think_ns=100 * SECOND))
    pool = {"device_blocks": 2000, "host_blocks": 4000, "aging": aging}
    recording = played(folder, turns, system, block_in(1000), "closed", "counts", **pool)
    first = rows(recording, "copies")[0]
    assert first["blocks"] == 103
    runs: int = first["runs"]
    return runs


def test_s6_a_fresh_page_list_is_one_run_and_a_used_one_is_not(tmp_path: Path) -> None:
    fresh, used, worst = (
        runs_of_the_first_store(tmp_path, "+batched", aging)
        for aging in ("none", "churn", "shuffle")
    )
    assert (fresh, worst) == (1, 103)
    assert used >= 20


def test_s6_block_groups_find_long_runs_in_a_used_pool_too(tmp_path: Path) -> None:
    assert runs_of_the_first_store(tmp_path, "+groups", "churn") <= 3
