"""Traps that each cost a prototype a wrong result or an ambiguous choice (docs/traps.md, M1 to M16).

Rules are scripted; magnitudes are small runs that assert a direction, with margin. Where a plain
mistake makes the difference, the mistake is made here and its size is the test.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

import policy.engines.swapping
from policy.choices.overlap import Adaptive
from policy.engines.base import ALWAYS, Engine, Until
from policy.engines.target import Bounds, Target, choose_target
from policy.memory.context import Context
from policy.memory.memory import Memory
from policy.orders.base import Key
from policy.orders.traces import MarkovTrace
from policy.plan import Copy, Direction, Plan
from policy.pools.allocation import Pool
from policy.pools.catalog import make_pool
from policy.pools.paged import PagedPool
from policy.request import Request
from policy.scheduler import Scheduler
from policy.views import Draw, RequestView
from runs.recording import Recording
from runs.scenario import Scenario, build, merge
from sim.simulate import prepare, simulate
from tests.helpers.chats import chat_of
from tests.helpers.inside import Wrapped, memory_of, wrap
from tests.helpers.scripted import NEVER, Watched
from tests.helpers.shadow import ShadowMachine, Turn, serve
from tests.helpers.small import draw, random_scheduler, random_turns, scheduler, variant
from traces import workload
from traces.generators.chat import ASSISTANT, ASSISTANT_ALIKE
from traces.generators.laws import draw_mixture, mixture_at
from traces.randomness import Streams
from traces.readers.native import write

ASYNC = variant("fastswitch", overlap="async", between_turns="drop")
KEEPING = variant("fastswitch", overlap="async")

PRESSED: dict[str, Any] = {
    "workload": {
        "generator": "chat",
        "conversations": 80,
        "rate": 1.5,
        "context_cap": 2048,
        "think": "exponential",
    },
    "profile": "a10-llama-3-8b",
    "pool": {"device_blocks": 500, "host_blocks": 4000},
    "last_turn_known": True,
    "priority": {"pattern": "random", "frequency": 0.04},
    "limits": {"max_model_len": 8192},
}

#: Copies that take no time at all.
FREE_COPIES = {
    "transfer.per_job": 0.0,
    "transfer.per_call": 0.0,
    "transfer.piece_setup": 0.0,
    "transfer.to_device": 1e15,
    "transfer.to_host": 1e15,
    "transfer.to_device_duplex": 1e15,
    "transfer.to_host_duplex": 1e15,
    "transfer.interference_to_device": 0.0,
    "transfer.interference_to_host": 0.0,
}


def pressed(system: str, **values: Any) -> Scenario:
    """An A10 with room for about ten conversations, and eighty that come within a minute.

    `pool__host_blocks=9` sets `pool.host_blocks`, `switch__reuse=False` a switch of the system.
    """
    switches = {k[8:]: v for k, v in values.items() if k.startswith("switch__")}
    dotted = {k.replace("__", "."): v for k, v in values.items() if not k.startswith("switch__")}
    chosen = {"base": system, **switches} if switches else system
    return build(merge({**PRESSED, "system": chosen}, dotted), "pressed")


def played(system: str, **values: Any) -> Recording:
    return simulate(pressed(system, **values), check="off")


@cache
def measured(system: str, **values: Any) -> dict[str, Any]:
    """Metrics of a run of the code as it is."""
    metrics: dict[str, Any] = played(system, **values).summary["metrics"]
    return metrics


def mistaken(system: str, **values: Any) -> dict[str, Any]:
    """Metrics of a run with a mistake planted."""
    metrics: dict[str, Any] = played(system, **values).summary["metrics"]
    return metrics


# ------------------------------------------------------------------ M1, M2: reaching the target


def three_urgent_ones() -> Watched:
    """A leader of one block and three of four fill the device; three come who need four each."""
    made = scheduler(ASYNC, device_blocks=13, initial_group=1, growth_group=1)
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 1, 3, priority=-1))
    for index in range(3):
        machine.arrive(Turn(f"low{index}", index, 14, 8, priority=5))
    machine.step()
    assert memory_of(made).device.num_available == 0
    for index in range(3):
        machine.arrive(Turn(f"urgent{index}", 9 + index, 14, 8))
    return machine


def drip(
    order: Sequence[Request],
    residents: Collection[Request],
    shielded: Sequence[Request],
    bounds: Bounds,
) -> Target:
    """The trap: one newcomer at a time, the next when it has got its room."""
    away = next((i for i, r in enumerate(order) if r.context.device is None), len(order))
    return choose_target(order[: away + 1], residents, shielded, bounds)


def test_m1_one_plan_nominates_every_victim_of_the_target() -> None:
    machine = three_urgent_ones()
    assert [name for name, _ in machine.step().preempt] == ["low2", "low1", "low0"]
    machine.step()
    assert len(machine.preempted) == 3  # room that is pending is waited for, not made again


def test_m1_pending_room_is_for_those_it_was_made_for() -> None:
    machine = three_urgent_ones()
    machine.step()
    machine.arrive(Turn("latecomer", 20, 3, 2, priority=1))
    admitted: list[str] = []
    for _ in range(3):
        machine.end_copy(Direction.TO_HOST)
        admitted += [name for name, _ in machine.step().prefill]
    assert admitted == ["urgent0", "urgent1", "urgent2"]


def test_m1_one_incoming_at_a_time_preempts_for_one_and_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = three_urgent_ones()
    monkeypatch.setattr("policy.engines.ranked.choose_target", drip)
    assert [name for name, _ in machine.step().preempt] == ["low2"]


def doubting(made: Scheduler) -> list[Plan]:
    """From now on each idle plan is decided once more, and must be idle again. The idle plans."""
    proper = made.schedule
    idle: list[Plan] = []

    def schedule(now_ns: int) -> Plan:
        plan = proper(now_ns)
        if made.num_live and not plan.runs and not plan.has_commands:
            idle.append(plan)
            again, _ = made.engine.decide()
            assert not again.runs and not again.has_commands, f"{plan} slept on {again}"
        return plan

    made.schedule = schedule  # type: ignore[method-assign]
    return idle


class Content(Wrapped):
    """Whatever its plan does, it holds until something that nobody could sleep through."""

    def decide(self) -> tuple[Plan, Until]:
        plan, until = self.inner.decide()
        return plan, until._replace(events=ALWAYS)


def idle_plans(seeds: range, wrapped: Callable[[Engine], Wrapped] = Wrapped) -> int:
    count = 0
    for seed in seeds:
        rng = random.Random(seed)
        made = random_scheduler(rng)
        if made.engine.name == "vllm-0.3.3":
            continue
        idle = doubting(wrap(made, wrapped))
        serve(ShadowMachine(made, rng), random_turns(rng, made.settings.block_size))
        count += len(idle)
    return count


def test_m2_an_idle_plan_decided_again_is_idle_again() -> None:
    assert idle_plans(range(120)) > 20


def test_m2_sleeping_after_a_plan_that_acted_is_caught() -> None:
    with pytest.raises(AssertionError, match="slept on"):
        idle_plans(range(120), Content)


# ------------------------------------------------------------------ M3 to M6: runs of blocks


def held_up(recording: Recording) -> float:
    """Share of the lives of turns that they spend in steps which compute for them and first wait for
    copies. `stall_share` counts also those who would compute and are kept from it."""
    steps, spans = recording.table("steps").to_pylist(), recording.table("spans").to_pylist()
    served = {row["step"]: row["batch"] for row in steps}
    for span in spans:
        if span["kind"] == "prefill":
            served[span["first_step"]] += 1
    lives = [
        row["finish_ns"] - row["arrival_ns"] for row in recording.table("requests").to_pylist()
    ]
    return sum(row["stall_ns"] * served[row["step"]] for row in steps) / sum(lives)


def test_m3_cutting_copies_from_the_tail_shreds_a_full_host() -> None:
    whole = played("+reuse", pool__host_blocks=1300)
    tail = played("+reuse", pool__host_blocks=1300, switch__contamination="tail")
    groups = played("+groups", pool__host_blocks=1300)
    of_whole, of_tail = (recording.summary["metrics"] for recording in (whole, tail))
    assert of_tail["mean_run_blocks"] < 0.7 * of_whole["mean_run_blocks"]
    assert of_tail["stall_share"] > 1.1 * of_whole["stall_share"]
    assert held_up(tail) > 1.1 * held_up(whole)
    assert held_up(whole) < 0.95 * held_up(groups)  # or reuse would earn nothing


@pytest.mark.parametrize("paged", ["host", "device"])
def test_m4_groups_on_one_side_alone_give_no_runs_and_no_gain(
    paged: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_side(allocator: str, name: str, num_blocks: int, draw: Draw) -> Pool:
        if name == paged:
            return PagedPool(name, num_blocks)
        return make_pool(allocator, name, num_blocks, draw)

    both = measured("+groups")
    monkeypatch.setattr(policy.engines.swapping, "make_pool", one_side)
    one = mistaken("+groups")
    assert both["mean_run_blocks"] > 10
    assert one["mean_run_blocks"] < 1.5
    assert one["stall_share"] > 2 * both["stall_share"]
    assert one["stall_share"] > 0.8 * measured("vllm-0.3.3-keep")["stall_share"]


def test_m5_a_load_knows_its_length_so_the_initial_group_hardly_matters() -> None:
    runs = [measured("+groups", groups__initial_blocks=g)["mean_run_blocks"] for g in (4, 60, 240)]
    assert max(runs) < 1.15 * min(runs)


def test_m5_reserving_beside_loads_shortens_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    proper = Memory.load

    def load(
        self: Memory, context: Context, num_blocks: int, now_ns: int, reserve: int, *, waited: bool
    ) -> Copy:
        return proper(self, context, num_blocks, now_ns, max(0, 240 - num_blocks), waited=waited)

    proper_runs = measured("+groups", groups__initial_blocks=240)["mean_run_blocks"]
    monkeypatch.setattr(Memory, "load", load)
    assert mistaken("+groups", groups__initial_blocks=240)["mean_run_blocks"] < 0.85 * proper_runs


def test_m6_runs_are_long_without_reuse_shorter_with_it_and_shortest_on_a_full_host() -> None:
    plain = measured("+groups")["mean_run_blocks"]
    reuse = measured("+reuse")["mean_run_blocks"]
    full = measured("+reuse", pool__host_blocks=1300)["mean_run_blocks"]
    assert plain > 1.6 * reuse > 1.6 * 1.6 * full > 1.6 * 1.6 * 2


# ------------------------------------------------------------------ M7, M8: one order for all


def swapped_before_waiting(
    order: Sequence[Request],
    residents: Collection[Request],
    shielded: Sequence[Request],
    bounds: Bounds,
) -> Target:
    """The release's queues, put under a priority order."""
    queues = sorted(order, key=lambda request: request.num_generated == 0)
    return choose_target(queues, residents, shielded, bounds)


def test_m7_swapped_before_waiting_trades_first_tokens_for_steady_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not a detail: it moves the tail of TTFT up, and that of TBT down, several times over."""
    proper = measured("vllm-0.3.3-keep")
    monkeypatch.setattr("policy.engines.ranked.choose_target", swapped_before_waiting)
    barred = mistaken("vllm-0.3.3-keep")
    assert barred["ttft_p95_s"] > 5 * proper["ttft_p95_s"]
    assert barred["tbt_p999_s"] < 0.2 * proper["tbt_p999_s"]


def decisions(system: str) -> list[tuple[Any, ...]]:
    """What a system decides for one workload on a machine whose copies take no time."""
    made = scheduler(system, "random", device_blocks=20)
    rng = random.Random(5)
    plans = serve(ShadowMachine(made, random.Random(1)), random_turns(rng, 4))
    return [
        (
            plan.prefill,
            None if plan.batch is None else plan.batch.decode,
            plan.preempt,
            [(copy.request_id, copy.direction, copy.num_blocks) for copy in plan.copies],
        )
        for plan in plans
        if plan.is_numbered
    ]


def test_m7_under_priorities_the_baseline_decides_as_every_synchronous_system_does() -> None:
    baseline = decisions("vllm-0.3.3-keep")
    assert any(preempt for _, _, preempt, _ in baseline)
    for system in ("+batched", "+block-major", "+groups"):
        assert decisions(system) == baseline


def test_m8_a_waiting_prompt_displaces_and_gets_room_for_all_of_it_and_a_step() -> None:
    made = scheduler(ASYNC, device_blocks=13, initial_group=1, growth_group=1)
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("leader", 0, 1, 3, priority=-1))
    for index in range(3):
        machine.arrive(Turn(f"low{index}", index, 14, 8, priority=5))
    machine.step()
    machine.arrive(Turn("urgent", 9, 16, 8))  # fills four blocks; its next token needs a fifth
    assert [name for name, _ in machine.step().preempt] == ["low2", "low1"]


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "fastswitch"])
def test_m8_prefill_steps_put_a_floor_under_the_gaps_that_no_copy_mechanism_passes(
    system: str,
) -> None:
    free = mistaken(system, profile_values=FREE_COPIES)
    assert free["stall_s"] < 0.01
    assert free["tbt_in_batch_p99_s"] > 1.8 * free["tbt_p50_s"]
    assert measured(system)["tbt_in_batch_p99_s"] > 0.98 * free["tbt_in_batch_p99_s"]


def test_m8_the_watermark_hardly_matters() -> None:
    made = [
        measured("fastswitch", pool__watermark=share)["throughput_tok_s"] for share in (0.0, 0.05)
    ]
    assert max(made) < 1.05 * min(made)


# ------------------------------------------------------------------ M9: the next turn comes at once


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "+groups", "fastswitch"])
def test_m9_a_next_turn_seen_after_the_plan_of_its_instant_loses_its_place(
    system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake is a nanosecond of thinking: the slot is given away and preempted back."""
    values = {"workload__think": "none", "priority__pattern": "markov"}
    proper = measured(system, **values)
    monkeypatch.setattr("traces.generators.sessions.wait_ns", lambda *_: 1)
    late = mistaken(system, **values)
    assert late["preemptions"] > 1.3 * proper["preemptions"]
    assert late["blocks_in"] > 2 * proper["blocks_in"]


def test_m9_a_next_turn_takes_back_kv_that_is_still_being_copied_out() -> None:
    made = scheduler(KEEPING)
    machine = Watched(made, polls=NEVER)
    machine.arrive(Turn("first", 0, 12, 2))
    machine.step()
    machine.step()
    assert "first" in machine.finished
    (store,) = machine.step().copies
    machine.arrive(Turn("second", 9, 20, 2, parent_id="first"))
    plan = machine.step()
    assert plan.cancel == (store.copy_id,)
    assert plan.copies == ()
    assert plan.prefill == (("second", 20 - 13),)


# ------------------------------------------------------------------ M10, M11: the trace and its clock


class Redrawn(MarkovTrace):
    """The other reading: inside a state, places are drawn anew at every update."""

    def key(self, request: RequestView, now_ns: int) -> Key:
        return (super().key(request, now_ns)[0], self._draw("tie", request.session_id, self._index))


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "fastswitch"])
def test_m10_a_tie_break_per_update_instead_of_per_stay_multiplies_preemptions(system: str) -> None:
    scenario = pressed(system, priority__pattern="markov")
    redrawn = simulate(scenario, order=Redrawn(Streams(0, 0)), check="off").summary["metrics"]
    stay = measured(system, priority__pattern="markov")
    assert redrawn["preemptions"] > 4 * stay["preemptions"]
    assert redrawn["blocks_in"] > 3 * stay["blocks_in"]


def requests_of(sessions: range) -> list[Request]:
    return [Request(f"s{i}", arrival_ns=0, input_tokens=1, session_id=f"s{i}") for i in sessions]


def keys_at(sessions: range, index: int) -> dict[str, Key]:
    """Keys at an update of a trace that knows these conversations and no others."""
    order = MarkovTrace(draw, share=0.1, stay=0.9)
    live = requests_of(sessions)
    for request in live:
        order.arrived(request, 0)
    for number in range(index + 1):
        order.update(number, 0)
    return {request.session_id: order.key(request, 0) for request in live}


@pytest.mark.parametrize("index", [0, 7, 300])
def test_m10_the_share_of_the_high_is_a_number_and_depends_on_nobody_else(index: int) -> None:
    many = keys_at(range(2000), index)
    high = sum(key[0] == 0 for key in many.values())
    assert 160 <= high <= 240
    few = keys_at(range(0, 2000, 100), index)
    assert few == {name: many[name] for name in few}


SLOW_CALLS = {"transfer.per_call": 10_000.0}


def updates_per_second(system: str, **priority: Any) -> float:
    recording = played(system, profile_values=SLOW_CALLS, **priority)
    seconds: float = recording.summary["metrics"]["makespan_s"]
    updates: int = recording.summary["priority_updates"]
    return updates / seconds


def test_m11_a_faster_system_sees_more_updates_per_second_unless_they_go_by_the_clock() -> None:
    slow, fast = (updates_per_second(name) for name in ("vllm-0.3.3-keep", "fastswitch"))
    assert fast > 1.15 * slow
    by_clock = {"priority__frequency": None, "priority__period_s": 1.0}
    for name in ("vllm-0.3.3-keep", "fastswitch"):
        assert updates_per_second(name, **by_clock) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "+groups"])
def test_m11_preemptions_come_in_storms_at_the_updates(system: str) -> None:
    steps = played(system).table("preemptions").column("step").to_pylist()
    assert len(steps) > 1000
    assert sum(step % 25 == 0 for step in steps) > 0.85 * len(steps)


# ------------------------------------------------------------------ M12, M13: what is measured


def test_m12_gaps_with_a_preemption_inside_are_another_population() -> None:
    metrics = measured("vllm-0.3.3-keep")
    assert metrics["tbt_preempted_p50_s"] > 5 * metrics["tbt_in_batch_p999_s"]
    assert metrics["tbt_in_batch_p99_s"] < 0.1 * metrics["tbt_p99_s"]
    assert metrics["tbt_preempted_samples"] < 0.1 * metrics["tbt_samples"]


def with_a_thinker(folder: Path) -> dict[str, Any]:
    """The same run and one more conversation, whose user thinks for an hour."""
    turns = sorted(
        prepare(pressed("+groups")).workload, key=lambda turn: (turn.session_id, turn.turn)
    )
    thinker = [
        workload.Turn("z/1", "z", 1, 10, 5, arrival_ns=30_000_000_000),
        workload.Turn("z/2", "z", 2, 20, 5, think_ns=3_600_000_000_000),
    ]
    path = folder / "workload.jsonl"
    sessions: dict[str, list[workload.Turn]] = {}
    for turn in [*turns, *thinker]:
        sessions.setdefault(turn.session_id, []).append(turn)
    ordered = sorted(sessions.values(), key=lambda chat: chat[0].arrival_ns or 0)
    rows = [turn for chat in ordered for turn in chat]
    write(workload.Workload.of(rows, workload.Header(timing="closed")), path)
    return mistaken("+groups", workload={"file": str(path)})


def test_m12_throughput_over_the_makespan_is_set_by_the_longest_chat(tmp_path: Path) -> None:
    without, thinker = measured("+groups"), with_a_thinker(tmp_path)
    ours, theirs = (one["output_tokens"] / one["makespan_s"] for one in (thinker, without))
    assert ours < 0.2 * theirs
    # The hour in which nobody is there is in neither of the two that are told.
    assert thinker["throughput_live_tok_s"] == pytest.approx(
        without["throughput_live_tok_s"], rel=0.05
    )
    assert thinker["throughput_tok_s"] == pytest.approx(without["throughput_tok_s"], rel=0.05)


def test_m13_the_size_of_the_host_is_a_cliff() -> None:
    """Half of what is enough costs little, a quarter costs half as much time again."""
    spans = {n: measured("vllm-0.3.3-keep", pool__host_blocks=n) for n in (1000, 2000, 4000, 8000)}
    ids = ("runs_out",)  # which blocks are handed out may differ with the size of the pool
    ample, enough = ({k: v for k, v in spans[n].items() if k not in ids} for n in (8000, 4000))
    assert ample == enough
    assert spans[4000]["recomputed_tokens"] == 0
    assert spans[2000]["makespan_s"] < 1.1 * spans[4000]["makespan_s"]
    assert spans[1000]["makespan_s"] > 1.3 * spans[4000]["makespan_s"]
    assert spans[1000]["recomputed_tokens"] > 10 * spans[2000]["recomputed_tokens"]


# ------------------------------------------------------------------ M14, M15: cheap knobs


def test_m14_a_minimum_run_buys_throughput_with_first_tokens() -> None:
    values = {"priority__frequency": 0.1, "workload__rate": 3.0}
    eager = measured("vllm-0.3.3-keep", **values)
    patient = measured("vllm-0.3.3-keep", **values, hysteresis__min_run_steps=100)
    assert patient["preemptions"] < 0.3 * eager["preemptions"]
    assert patient["throughput_tok_s"] > 1.1 * eager["throughput_tok_s"]
    assert patient["ttft_p95_s"] > 2 * eager["ttft_p95_s"]


@pytest.mark.parametrize(
    ("running", "loading", "load_ns", "waits"),
    [
        (0, 1, 10**9, True),  # nobody loses by it
        (1, 1, 29_999, True),  # one loses less than the other gains
        (1, 1, 30_000, False),  # a draw: go on
        (2, 1, 20_000, False),
        (2, 3, 20_000, True),
        (40, 1, 1_000, False),  # many would stand still
    ],
)
def test_m15_a_step_of_30_us_waits_when_going_on_costs_requests_more_time(
    running: int, loading: int, load_ns: int, waits: bool
) -> None:
    assert Adaptive().choose(running, loading, load_ns, 30_000).wait is waits


@pytest.mark.parametrize("pattern", ["random", "markov"])
@pytest.mark.parametrize("run", [0, pytest.param(1, marks=pytest.mark.full)])
def test_m15_when_steps_wait_is_no_headline(pattern: str, run: int) -> None:
    made = [
        measured("fastswitch", switch__overlap=overlap, priority__pattern=pattern, run=run)
        for overlap in ("sync", "async", "adaptive")
    ]
    throughput = [metrics["throughput_tok_s"] for metrics in made]
    assert max(throughput) < 1.05 * min(throughput)
    sync, always, adaptive = (metrics["stall_share"] for metrics in made)
    assert always < adaptive < sync


# ------------------------------------------------------------------ M16: lengths that are alike


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def ratios(values: list[float]) -> tuple[float, float]:
    """Median and P99, each over that of the law of replies."""
    at_99 = NormalDist().inv_cdf(0.99)
    return (
        quantile(values, 0.5) / mixture_at(ASSISTANT, 0),
        quantile(values, 0.99) / mixture_at(ASSISTANT, at_99),
    )


def first_replies(cap: int | None) -> list[float]:
    chat = chat_of(8000, rate=1.0, context_cap=cap)
    return [turn.output_tokens for turn in chat.workload(Streams(3, 0)) if turn.turn == 1]


def all_replies(cap: int | None) -> list[float]:
    return [
        turn.output_tokens for turn in chat_of(3000, 1.0, context_cap=cap).workload(Streams(3, 0))
    ]


def shifted(streams: Streams, k: int) -> float:
    """A common offset of that variance put on top of the mixture: alike too, but another law."""
    offset = math.sqrt(0.47) * streams.normal("offset", "", k)
    return draw_mixture(ASSISTANT, streams, "reply", "", k) * math.exp(offset)


def test_m16_replies_of_a_conversation_are_alike_and_keep_the_law_of_all_replies() -> None:
    median, p99 = ratios(first_replies(cap=None))
    assert median == pytest.approx(1, abs=0.05)
    assert p99 == pytest.approx(1, abs=0.1)
    assert 0.3 < ASSISTANT_ALIKE < 0.5


def test_m16_an_offset_on_top_of_the_mixture_moves_the_law() -> None:
    streams = Streams(3, 0)
    _, p99 = ratios([shifted(streams, k) for k in range(8000)])
    assert p99 > 1.4


def test_m16_a_cap_makes_another_population_and_the_header_names_it() -> None:
    capped, uncapped = all_replies(2048), all_replies(None)
    assert quantile(capped, 0.99) < 0.9 * quantile(uncapped, 0.99)
    headers = [
        chat_of(1, 1.0, context_cap=cap).workload(Streams(3, 0)).header for cap in (2048, None)
    ]
    assert ["2048-token cap" in " ".join(h.composed_from) for h in headers] == [True, False]
    assert "uncapped" in " ".join(headers[1].composed_from)
