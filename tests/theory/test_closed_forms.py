"""Runs small enough to be done by hand, equal to the formulas to the nanosecond.

One block is 64 tokens and moves in 1,000 ns, a step is 1,000 ns and grows by tokens only where a
test says so. In `parked` a short leader decodes all along, a long victim holds the room, and an
urgent newcomer takes it: one swap-out and one swap-in of known blocks.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.profile import load
from policy.plan import Copy, Direction
from policy.systems import System
from runs.recording import Recording
from runs.scenario import build
from sim.clock import Clock
from sim.costs import CopyCosts
from sim.link import HostLink
from sim.simulate import simulate
from tests.helpers.bench import BLOCK_TOKENS, MICROSECOND, WHOLE
from traces.readers.native import write
from traces.workload import Header, Turn, Workload

BLOCK = BLOCK_TOKENS * 131_072  # bytes of 64 tokens of Llama-3-8B
SECOND = 1_000_000_000

UNIT = {
    **WHOLE,
    "transfer.queue_depth": 100_000.0,
    "transfer.gather_launch": 0.0,
    "transfer.gather_bandwidth": MICROSECOND * 10,
}
STEPS = {
    "step.per_kv_token": 0.75,
    "step.per_sequence": 20.0,
    "step.per_prefill_token": 50.0,
    "step.per_prefill_square": 4.0,
}
COPIES = {
    "transfer.per_job": 300.0,
    "transfer.per_call": 10.0,
    "transfer.per_descriptor": 2.0,
    "transfer.piece_setup": 5.0,
    "transfer.gather_launch": 70.0,
}


def run(
    folder: Path,
    turns: list[Turn],
    system: str | dict[str, Any],
    values: dict[str, float] | None = None,
    timing: str = "open",
    **scenario: Any,
) -> Recording:
    path = folder / "workload.jsonl"
    write(Workload.of(turns, Header(timing=timing)), path)  # type: ignore[arg-type]
    data: dict[str, Any] = {
        "workload": {"file": str(path)},
        "system": system,
        "order": "priority",
        "profile": "a10-llama-3-8b",
        "profile_values": {**UNIT, **(values or {})},
        "pool": {
            "device_blocks": 10,
            "host_blocks": 100,
            "block_size": BLOCK_TOKENS,
            "watermark": 0.0,
            "aging": "none",
        },
    }
    for section, given_values in scenario.items():
        known = data.get(section)
        data[section] = {**known, **given_values} if isinstance(known, dict) else given_values
    return simulate(build(data, "test"), check="full")


def rows(recording: Recording, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = recording.table(table).to_pylist()
    return found


def request(recording: Recording, name: str) -> dict[str, Any]:
    return next(row for row in rows(recording, "requests") if row["request_id"] == name)


def lengths_of_steps(recording: Recording) -> list[int]:
    return [row["end_ns"] - row["start_ns"] for row in rows(recording, "steps")]


def stalls(recording: Recording) -> list[int]:
    return [row["stall_ns"] for row in rows(recording, "steps") if row["stall_ns"]]


# ---------------------------------------------------------------------- one request alone


def prefill_ns(new: int, past: int = 0) -> int:
    """With STEPS: 1,000 + 50 per token + 4 per pair."""
    return 1000 + 50 * new + 2 * new * (2 * past + new)


@pytest.mark.parametrize("system", ["vllm-0.3.3", "fastswitch"])
@pytest.mark.parametrize("prompt", [1, 17, 500])
def test_time_to_first_token_of_a_lone_request_is_its_prefill(
    tmp_path: Path, system: str, prompt: int
) -> None:
    recording = run(tmp_path, [Turn("a", "a", 1, prompt, 1, arrival_ns=7)], system, STEPS)
    alone = request(recording, "a")
    assert alone["first_token_ns"] == alone["finish_ns"] == 7 + prefill_ns(prompt)


@pytest.mark.parametrize("system", ["vllm-0.3.3", "fastswitch"])
def test_each_gap_between_tokens_is_a_decode_step_over_a_context_one_token_longer(
    tmp_path: Path, system: str
) -> None:
    """The context that step k reads: the prompt and k tokens; three quarters of a ns per token,
    rounded down in every step by itself."""
    recording = run(tmp_path, [Turn("a", "a", 1, 100, 90, arrival_ns=0)], system, STEPS)
    decodes = [1020 + 3 * (100 + k) // 4 for k in range(1, 90)]
    assert lengths_of_steps(recording)[:90] == [prefill_ns(100), *decodes]
    assert request(recording, "a")["finish_ns"] == prefill_ns(100) + sum(decodes)


def test_requests_that_decode_together_read_the_contexts_of_all(tmp_path: Path) -> None:
    turns = [Turn(name, name, 1, 50, 4, arrival_ns=0) for name in ("a", "b")]
    recording = run(tmp_path, turns, "vllm-0.3.3", STEPS)
    assert lengths_of_steps(recording) == [
        1000 + 50 * 100 + 2 * 2 * 50 * 50,
        *[1040 + 3 * 2 * (50 + k) // 4 for k in (1, 2, 3)],
    ]


# ---------------------------------------------------------------------- next turns

KEEPERS = ["vllm-0.3.3-keep", "+groups", "+reuse", "+async", "fastswitch"]


def conversation(prompt: int, reply: int, more: int) -> list[Turn]:
    """Two turns; the second repeats the first and comes a second after it."""
    return [
        Turn("a1", "a", 1, prompt, reply, arrival_ns=0),
        Turn("a2", "a", 2, prompt + reply + more, 1, think_ns=SECOND),
    ]


@pytest.mark.parametrize("system", KEEPERS)
def test_a_next_turn_waits_for_its_load_and_the_prefill_of_what_is_new(
    tmp_path: Path, system: str
) -> None:
    """KV exists for all tokens of turn one but its last, which is prefilled with the new ones."""
    turns = conversation(200, 40, 30)
    recording = run(tmp_path, turns, system, {**STEPS, **COPIES}, timing="closed", order="fcfs")
    second = request(recording, "a2")
    blocks, kept = 4, 200 + 40 - 1
    load_ns = copy_ns(blocks, 1, "per_block" if "vllm" in system else "merged", "layer_major", 10)
    assert second["cached_tokens"] == kept
    assert second["first_token_ns"] - second["arrival_ns"] == load_ns + prefill_ns(31, kept)


def test_a_next_turn_without_kept_kv_prefills_all_of_its_prompt(tmp_path: Path) -> None:
    turns = conversation(200, 40, 30)
    recording = run(tmp_path, turns, "vllm-0.3.3", STEPS, timing="closed", order="fcfs")
    second = request(recording, "a2")
    assert second["cached_tokens"] == 0
    assert second["first_token_ns"] - second["arrival_ns"] == prefill_ns(270)


def test_a_next_turn_at_once_finds_its_kv_on_the_device_and_loads_nothing(tmp_path: Path) -> None:
    turns = conversation(200, 40, 30)
    turns[1] = Turn("a2", "a", 2, 270, 1, think_ns=0)
    recording = run(tmp_path, turns, "fastswitch", STEPS, timing="closed", order="fcfs")
    second = request(recording, "a2")
    assert second["first_token_ns"] - second["arrival_ns"] == prefill_ns(31, 239)
    assert [row["direction"] for row in rows(recording, "copies")] == ["d2h"]


# ---------------------------------------------------------------------- one swap, in the way


def parked(newcomer_ns: int = 5500) -> list[Turn]:
    """Leader, victim of six blocks (five when it arrives), newcomer for whom it must leave."""
    return [
        Turn("leader", "leader", 1, 4, 50, arrival_ns=0, priority=0),
        Turn("victim", "victim", 1, 320, 30, arrival_ns=0, priority=9),
        Turn("newcomer", "newcomer", 1, 256, 2, arrival_ns=newcomer_ns, priority=1),
    ]


def copy_ns(blocks: int, runs: int, submission: str, layout: str, per_call: int) -> int:
    """From the engine's thread taking the job to its last byte, with COPIES."""
    wire = 1000 * blocks
    if submission == "gather":
        pack = 70 + 100 * blocks
        return 300 + 70 + per_call + pack + 5 + wire
    pieces = (blocks if submission == "per_block" else runs) * (
        64 if layout == "layer_major" else 1
    )
    link = 5 * pieces + wire
    first_call, last_call = 300 + per_call, 300 + per_call * pieces
    if submission == "batched":  # one call; the link begins with the first of its descriptors
        first_call, last_call = first_call + 2, first_call + 2 * pieces
    return max(first_call + link, last_call + link // pieces)


@pytest.mark.parametrize("allocator", ["paged", "groups"])
@pytest.mark.parametrize("per_call", [10, 2000])
@pytest.mark.parametrize("layout", ["layer_major", "block_major"])
@pytest.mark.parametrize("submission", ["per_block", "merged", "batched", "gather"])
@pytest.mark.parametrize("dispatch", ["main_thread", "worker_threads"])
def test_a_synchronous_swap_stalls_the_step_by_the_cost_formula(
    tmp_path: Path, dispatch: str, submission: str, layout: str, per_call: int, allocator: str
) -> None:
    switches = {
        "allocator": allocator,
        "submission": submission,
        "layout": layout,
        "dispatch": dispatch,
        "between_turns": "drop",
    }
    values = {**COPIES, "transfer.per_call": float(per_call)}
    recording = run(tmp_path, parked(), switches, values, pool={"aging": "shuffle"})
    out, back = rows(recording, "copies")
    assert (out["direction"], out["blocks"]) == ("d2h", 6)
    assert (back["direction"], back["blocks"]) == ("h2d", 6)
    assert (out["runs"] == 1) == (allocator == "groups")
    assert stalls(recording) == [
        copy_ns(6, copy["runs"], submission, layout, per_call) for copy in (out, back)
    ]


def test_a_stall_comes_before_the_steps_kernels_and_after_the_decision(tmp_path: Path) -> None:
    recording = run(tmp_path, parked(226_000), "vllm-0.3.3", {**STEPS, **COPIES})
    step = next(row for row in rows(recording, "steps") if row["stall_ns"])
    stall = copy_ns(6, 6, "per_block", "layer_major", 10)
    assert step["prefill_tokens"] == 256
    assert step["end_ns"] - step["start_ns"] == stall + prefill_ns(256)
    copy = rows(recording, "copies")[0]
    assert (copy["submit_ns"], copy["end_ns"]) == (step["start_ns"], step["start_ns"] + stall)
    assert request(recording, "newcomer")["first_token_ns"] == step["end_ns"]


ASYNC = {"base": "+async", "overlap": "async", "between_turns": "drop"}


def test_an_asynchronous_swap_stalls_no_step_and_changes_no_steps_length(tmp_path: Path) -> None:
    recording = run(tmp_path, parked(), ASYNC, COPIES)
    assert [row["direction"] for row in rows(recording, "copies")] == ["d2h", "h2d"]
    assert not any(row["waited_for"] for row in rows(recording, "copies"))
    assert stalls(recording) == []
    assert set(lengths_of_steps(recording)) == {1000}


def test_an_asynchronous_swap_out_delays_the_newcomer_to_the_first_boundary_after_it(
    tmp_path: Path,
) -> None:
    recording = run(tmp_path, parked(), ASYNC, COPIES)
    ends = 6000 + copy_ns(6, 1, "merged", "layer_major", 10)
    boundary = -(-ends // 1000) * 1000
    assert rows(recording, "copies")[0]["end_ns"] == ends
    assert request(recording, "newcomer")["first_token_ns"] == boundary + 1000


def test_the_leader_gets_a_token_a_step_while_others_are_swapped_around_it(tmp_path: Path) -> None:
    """Three prefill steps of others stand between its 50 tokens and nothing else."""
    recording = run(tmp_path, parked(), ASYNC, COPIES)
    leader = request(recording, "leader")
    prefills = [row for row in rows(recording, "steps") if row["prefill_tokens"]]
    assert [row["prefill_tokens"] for row in prefills] == [4, 320, 256]
    assert leader["finish_ns"] == (50 + 2) * 1000


# ---------------------------------------------------------------------- who submits, and when


def main_thread(**values: float) -> tuple[dict[str, Any], dict[str, float]]:
    """Asynchronous copies that the engine's own thread submits, call by call."""
    system = {**ASYNC, "dispatch": "main_thread", "submission": "per_block"}
    given_values = {f"transfer.{name}": value for name, value in values.items()}
    return {**system, "layout": "block_major"}, {**COPIES, **given_values}


def test_the_engines_thread_stalls_the_step_while_it_submits_and_no_longer(tmp_path: Path) -> None:
    system, values = main_thread()
    recording = run(tmp_path, parked(), system, values)
    assert stalls(recording) == [300 + 6 * 10] * 2


def test_a_full_queue_stalls_the_step_until_the_last_calls_fit(tmp_path: Path) -> None:
    """Six calls, a queue of two: the step goes on when two pieces of 1,005 ns are left."""
    system, values = main_thread(queue_depth=2.0)
    recording = run(tmp_path, parked(), system, values)
    assert stalls(recording) == [300 + 10 + 6 * 1005 - 2 * 1005] * 2


def two_parked() -> list[Turn]:
    """As `parked`, with two victims of three blocks each."""
    return [
        Turn("leader", "leader", 1, 4, 50, arrival_ns=0, priority=0),
        *[Turn(f"v{i}", f"v{i}", 1, 160, 30, arrival_ns=0, priority=9) for i in (1, 2)],
        Turn("newcomer", "newcomer", 1, 448, 2, arrival_ns=5500, priority=1),
    ]


def first_stores(folder: Path, threads: int) -> list[tuple[int, int]]:
    """Begin and end of the two victims' copies, counted from the decision."""
    system = {**ASYNC, "submission": "per_block", "layout": "block_major", "threads": threads}
    values = {**COPIES, "transfer.per_call": 4000.0, "transfer.lock_growth": 0.5}
    copies = rows(run(folder, two_parked(), system, values), "copies")
    stores = [row for row in copies if row["direction"] == "d2h"][:2]
    assert len({row["submit_ns"] for row in stores}) == 1
    assert [row["blocks"] for row in stores] == [3, 3]
    return [(r["start_ns"] - r["submit_ns"], r["end_ns"] - r["submit_ns"]) for r in stores]


def test_one_worker_thread_submits_two_jobs_one_after_the_other(tmp_path: Path) -> None:
    """Calls of 4,000 ns are slower than pieces of 1,005, so a job is as long as its calls."""
    job = 300 + 3 * 4000
    assert first_stores(tmp_path, 1) == [(4300, job + 1005), (job + 4300, 2 * job + 1005)]


def test_two_worker_threads_submit_together_each_slower_by_the_lock(tmp_path: Path) -> None:
    """Both jobs' calls are in at once; the link still moves them one after the other."""
    job = 300 + 3 * 6000
    assert first_stores(tmp_path, 2) == [(6300, job + 1005), (job + 1005, job + 1005 + 3 * 1005)]


# ---------------------------------------------------------------------- interference


def test_a_copy_beside_it_lengthens_each_step_by_the_overlap_times_the_interference(
    tmp_path: Path,
) -> None:
    """A store of 6,000 ns from the decision on: four steps lie wholly beside it and take 1,250 ns,
    the fifth begins with 1,000 ns of it left."""
    values = {"transfer.interference_to_host": 0.25}
    recording = run(tmp_path, parked(), ASYNC, values)
    steps = rows(recording, "steps")
    store = rows(recording, "copies")[0]
    assert store["end_ns"] - store["submit_ns"] == 6000
    beside = [r["end_ns"] - r["start_ns"] for r in steps if r["start_ns"] >= store["submit_ns"]]
    assert beside[:7] == [1250] * 5 + [1000] * 2


def test_a_step_longer_than_the_copy_gains_the_copys_whole_time_times_the_interference(
    tmp_path: Path,
) -> None:
    values = {"transfer.interference_to_host": 0.25, "step.base": 100_000.0}
    recording = run(tmp_path, parked(550_000), ASYNC, values)
    gained = [length - 100_000 for length in lengths_of_steps(recording)]
    assert sorted(gained)[-1] == 1500
    assert gained.count(0) == len(gained) - 1


# ---------------------------------------------------------------------- both directions at once

LAYOUT = System("link").but(layout="block_major")


def link_with(rates: dict[Direction, int]) -> tuple[Clock, HostLink]:
    """A link that moves a block in 1,000 ns, and in rate / 1024 of its speed when both do."""
    given_values = {
        **UNIT,
        "transfer.to_host_duplex": MICROSECOND * rates[Direction.TO_HOST] / 1024,
        "transfer.to_device_duplex": MICROSECOND * rates[Direction.TO_DEVICE] / 1024,
    }
    profile = load("a10-llama-3-8b").with_values(given_values)
    env = Clock()
    return env, HostLink(env, CopyCosts(profile, LAYOUT, BLOCK_TOKENS), worker_threads=1)


def fluid_ends(
    works: dict[Direction, int], rates: dict[Direction, int], delay: int
) -> dict[Direction, Fraction]:
    """A store from time zero beside a load from `delay` on, as fluids: exact."""
    out, back = Direction.TO_HOST, Direction.TO_DEVICE
    if delay >= works[out]:
        return {out: Fraction(works[out]), back: Fraction(delay + works[back])}
    left = {out: Fraction(works[out] - delay), back: Fraction(works[back])}
    alone = {way: left[way] * 1024 / rates[way] for way in left}
    first, last = sorted(left, key=lambda way: alone[way])
    moved = alone[first] * rates[last] / 1024
    ends = delay + alone[first]
    return {first: ends, last: ends + left[last] - moved}


@given(
    st.integers(1, 50),
    st.integers(1, 50),
    st.integers(1, 1024),
    st.integers(1, 1024),
    st.integers(0, 60_000),
)
def test_copies_in_opposite_directions_end_as_the_fluid_model_says(
    out_blocks: int, back_blocks: int, out_rate: int, back_rate: int, delay: int
) -> None:
    """Each is late by less than a nanosecond per change of rate."""
    out, back = Direction.TO_HOST, Direction.TO_DEVICE
    blocks = {out: out_blocks, back: back_blocks}
    rates = {out: out_rate, back: back_rate}
    env, link = link_with(rates)
    jobs = {}
    for copy_id, (way, at) in enumerate([(out, 0), (back, delay)]):
        if at:
            env.run(until=at)
        copy = Copy(copy_id, way, "r", ((0, 0, blocks[way]),), blocks[way])
        jobs[way] = link.submit(copy, 0)
    env.run()
    exact = fluid_ends({way: 1000 * n for way, n in blocks.items()}, rates, delay)
    for way, job in jobs.items():
        assert 0 <= job.end_ns - exact[way] <= 3
