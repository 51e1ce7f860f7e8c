"""What must not change, or only one way, when one thing about a run does: mechanisms that only move
bytes change no token when bytes cost nothing; with room for all nothing moves; less to send, less to
wait for and a faster link never make it worse. Expected values come from the other run alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.profile import load
from calibrate.transfer_cost import BANDWIDTHS
from policy.plan import Copy, Direction, Plan
from policy.systems import SYSTEMS, System
from runs.recording import Recording
from runs.scenario import build, merge
from sim.clock import Clock
from sim.costs import CopyCosts
from sim.engine import Engine
from sim.link import HostLink
from sim.simulate import simulate
from tests.helpers.bench import BLOCK_TOKENS, MICROSECOND, WHOLE

#: Calls that take no time, and bytes that move as fast as a link may: a copy takes 0 ns.
NOTHING = {
    **dict.fromkeys(
        [
            "transfer.per_job",
            "transfer.per_call",
            "transfer.per_descriptor",
            "transfer.piece_setup",
            "transfer.gather_launch",
            "transfer.lock_growth",
            "transfer.interference_to_device",
            "transfer.interference_to_host",
        ],
        0.0,
    ),
    **dict.fromkeys(
        [
            "transfer.to_device",
            "transfer.to_host",
            "transfer.to_device_duplex",
            "transfer.to_host_duplex",
            "transfer.gather_bandwidth",
        ],
        BANDWIDTHS[1],
    ),
    "transfer.queue_depth": 1e9,
}
SCENARIO: dict[str, Any] = {
    "workload": {
        "generator": "chat",
        "conversations": 20,
        "rate": 3.0,
        "context_cap": 1024,
        "think": "exponential",
        "think_mean_s": 1.0,
    },
    "profile": "a10-llama-3-8b",
    "profile_values": NOTHING,
    "last_turn_known": True,
    "pool": {"device_blocks": 150, "host_blocks": 20_000, "aging": "shuffle"},
    "limits": {"max_model_len": 1024},
}
ORDERS: dict[str, dict[str, Any]] = {
    "markov": {"priority": {"pattern": "markov", "frequency": 0.1}},
    "random": {"priority": {"pattern": "random", "frequency": 0.04}},
    "vtc": {"order": "vtc"},
}
#: Under an order that is not the release's own FCFS, these differ in how bytes move and in nothing else.
ALIKE = ("vllm-0.3.3-keep", "+groups", "+reuse", "+batched", "+block-major", "+groups-block-major")
#: Free blocks differ: groups reserve tails, reuse keeps host copies.
STEP = ("step", "start_ns", "end_ns", "stall_ns", "prefill_tokens", "batch", "kv_tokens")
TIMES = ("first_token_ns", "finish_ns", "output_tokens", "cached_tokens", "preemptions", "status")


@cache
def served(system: str, order: str, seed: int) -> Recording:
    data = {**SCENARIO, **ORDERS[order], "system": system, "seed": seed}
    return simulate(build(data, "metamorphic"), check="off")


def rows(recording: Recording, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = recording.table(table).to_pylist()
    return found


def moved(recording: Recording) -> int:
    return sum(row["bytes"] for row in rows(recording, "copies"))


# ---------------------------------------------------------------------- copies that cost nothing


@pytest.mark.counted
@pytest.mark.parametrize("order", ORDERS)
def test_where_copies_cost_nothing_and_the_host_holds_all_mechanisms_change_no_token(
    order: str, seeds: Callable[[int, int], range]
) -> None:
    """Every token of every request at the same nanosecond: all steps, all spans, all outcomes."""
    for seed in seeds(1, 8):
        assert_alike(order, seed)


def assert_alike(order: str, seed: int) -> None:
    first = served(ALIKE[0], order, seed)
    assert len(rows(first, "preemptions")) > 20
    assert {row["mode"] for row in rows(first, "preemptions")} == {"swap"}
    for system in ALIKE[1:]:
        other = served(system, order, seed)
        for table in ("spans", "preemptions"):
            assert rows(other, table) == rows(first, table), (system, table)
        assert [[row[name] for name in STEP] for row in rows(other, "steps")] == [
            [row[name] for name in STEP] for row in rows(first, "steps")
        ], system
        for one, two in zip(rows(first, "requests"), rows(other, "requests"), strict=True):
            assert [one[name] for name in ("request_id", *TIMES)] == [
                two[name] for name in ("request_id", *TIMES)
            ], system


def test_where_copies_cost_something_the_mechanisms_differ() -> None:
    """Or the test above would compare runs in which nothing depends on copies."""
    last = set()
    for system in ALIKE:
        data = {**SCENARIO, **ORDERS["random"], "system": system, "profile_values": {}}
        recording = simulate(build(data, "metamorphic"), check="off")
        last.add(max(row["finish_ns"] for row in rows(recording, "requests")))
    assert len(last) > 3


@pytest.mark.parametrize("order", ORDERS)
def test_on_the_same_decisions_reuse_moves_no_more_bytes(order: str) -> None:
    """Copies cost nothing, so both decide the same (the test above): what differs is what is sent."""
    without, with_it = served("+groups", order, 0), served("+reuse", order, 0)
    assert rows(without, "preemptions") == rows(with_it, "preemptions")
    assert 0 < moved(with_it) < moved(without)
    for way in ("d2h", "h2d"):
        sent = {
            name: sum(row["blocks"] for row in rows(run, "copies") if row["direction"] == way)
            for name, run in (("without", without), ("with", with_it))
        }
        assert sent["with"] <= sent["without"]


# ---------------------------------------------------------------------- room for all

KEEPERS = [
    name
    for name, system in SYSTEMS.items()
    if system.engine == "ranked"
    and not system.options.prefix_sharing
    and system.options.movement == "none"
]  # a movement copies ahead of any need


@pytest.mark.parametrize("system", KEEPERS)
def test_with_room_for_all_and_kv_kept_on_the_device_nobody_is_preempted_and_nothing_moves(
    system: str,
) -> None:
    roomy = {**SCENARIO, **ORDERS["random"], "profile_values": {}, "last_turn_known": False}
    data = merge(
        roomy,
        {
            "system": {"base": system, "name": "roomy", "between_turns": "keep_device"},
            "pool.device_blocks": 100_000,
            "workload.conversations": 12,
        },
    )
    recording = simulate(build(data, "metamorphic"), check="off")
    assert not rows(recording, "preemptions") and not rows(recording, "copies")
    later = [row for row in rows(recording, "requests") if row["turn"] > 1]
    assert later and all(row["cached_tokens"] for row in later)


# ---------------------------------------------------------------------- one plan, two machines

JOBS = st.lists(
    st.tuples(st.sampled_from(list(Direction)), st.integers(1, 40), st.integers(0, 30_000)),
    min_size=1,
    max_size=12,
)
SUBMISSIONS = st.sampled_from(["per_block", "merged", "batched", "gather"])
#: Calls, descriptors, pieces and jobs that all take their time.
COSTLY = {
    **WHOLE,
    "transfer.per_job": 300.0,
    "transfer.per_call": 700.0,
    "transfer.per_descriptor": 2.0,
    "transfer.piece_setup": 5.0,
    "transfer.gather_launch": 70.0,
    "transfer.gather_bandwidth": MICROSECOND * 10,
    "transfer.queue_depth": 40.0,
}


def costs_of(
    faster: float, submission: str, duplex: float, layout: str = "block_major"
) -> CopyCosts:
    """A link `faster` times as fast, in both directions, alone and together."""
    rates = {
        **COSTLY,
        "transfer.to_device": MICROSECOND * faster,
        "transfer.to_host": MICROSECOND * faster,
        "transfer.to_device_duplex": MICROSECOND * faster * duplex,
        "transfer.to_host_duplex": MICROSECOND * faster * duplex,
    }
    system = System("link").but(layout=layout, submission=submission)
    return CopyCosts(load("a10-llama-3-8b").with_values(rates), system, BLOCK_TOKENS)


def ends(jobs: list[tuple[Direction, int, int]], costs: CopyCosts, threads: int) -> list[int]:
    """When each copy ends, submitted one gap after the other."""
    env = Clock()
    link = HostLink(env, costs, worker_threads=threads)
    submitted = []
    for copy_id, (way, blocks, gap) in enumerate(jobs):
        if gap:
            env.run(until=env.now + gap)
        copy = Copy(copy_id, way, "r", ((0, 0, blocks),), blocks)
        submitted.append(link.submit(copy, 0))
    env.run()
    return [job.end_ns for job in submitted]


@given(JOBS, SUBMISSIONS, st.sampled_from([0.3, 0.6, 1.0]), st.integers(1, 3))
def test_twice_the_bandwidth_ends_no_copy_later(
    jobs: list[tuple[Direction, int, int]], submission: str, duplex: float, threads: int
) -> None:
    """The same copies handed over at the same moments. Each direction is served in order; rounding
    up at every change of rate may add a nanosecond per change."""
    slow = ends(jobs, costs_of(1.0, submission, duplex), threads)
    fast = ends(jobs, costs_of(2.0, submission, duplex), threads)
    assert all(two <= one + 2 * len(jobs) for one, two in zip(slow, fast, strict=True))
    assert sum(fast) < sum(slow) + 2 * len(jobs) ** 2


def stall(
    plan: Plan, in_flight: list[tuple[Direction, int]], costs: CopyCosts, threads: int | None
) -> int:
    """How long the engine stands still for a plan's copies, behind others already submitted."""
    env = Clock()
    link = HostLink(env, costs, worker_threads=threads)
    for copy_id, (way, blocks) in enumerate(in_flight):
        link.submit(Copy(copy_id - 99, way, "r", ((0, 0, blocks),), blocks), 0)
    engine = SimpleNamespace(env=env, link=link, _submits_itself=threads is None)
    env.run(until=env.process(Engine._copy(cast(Engine, engine), plan)))
    return env.now


WAYS = st.lists(st.tuples(st.sampled_from(list(Direction)), st.integers(1, 40)), max_size=8)


@given(WAYS, WAYS, SUBMISSIONS, st.sampled_from([None, 1, 2]), st.sets(st.integers(0, 7)))
def test_the_same_plan_stalls_no_longer_for_waiting_for_fewer_of_its_copies(
    given_copies: list[tuple[Direction, int]],
    before: list[tuple[Direction, int]],
    submission: str,
    threads: int | None,
    waited: set[int],
) -> None:
    """Sync waits for all, async for none but conflicts, adaptive for some: in that order."""
    costs = costs_of(1.0, submission, 0.6, "layer_major")
    copies = tuple(
        Copy(copy_id, way, f"r{copy_id}", ((0, 0, blocks),), blocks)
        for copy_id, (way, blocks) in enumerate(given_copies)
    )
    every = tuple(copy.copy_id for copy in copies)
    some = tuple(copy_id for copy_id in every if copy_id in waited)
    stalls = [
        stall(Plan(copies=copies, wait_for=names), before, costs, threads)
        for names in (every, some, ())
    ]
    # Loads are submitted after the stores that are waited for, so a direction may meet the other
    # one busy that would have been idle: a nanosecond of rounding per change of rate.
    slack = 2 * (len(copies) + len(before))
    assert stalls[0] + slack >= stalls[1] and stalls[1] + slack >= stalls[2]
    assert threads is None or stalls[2] == 0


@pytest.mark.parametrize("order", ["random", "markov"])
def test_the_first_plan_that_copies_stalls_an_async_system_no_longer_than_a_sync_one(
    order: str,
) -> None:
    """Up to and including that plan both have decided the same."""
    stalls = []
    for overlap in ("sync", "async"):
        system = {"base": "+async", "name": overlap, "overlap": overlap, "between_turns": "drop"}
        data = {**SCENARIO, **ORDERS[order], "system": system, "profile_values": {}}
        recording = simulate(build(data, "metamorphic"), check="off")
        first = min(row["step"] for row in rows(recording, "preemptions"))
        steps = [row for row in rows(recording, "steps") if row["step"] <= first]
        stalls.append([(row["start_ns"], row["stall_ns"]) for row in steps])
    sync, overlapped = stalls
    assert [start for start, _ in sync] == [start for start, _ in overlapped]
    assert all(two <= one for (_, one), (_, two) in zip(sync, overlapped, strict=True))
    assert sync[-1][1] > 0
