"""The engine: real model, real memory, real copies; the same policies, and text that swapping spares."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from heapq import heappush
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

from policy.errors import ConfigError, OutOfBlocks
from policy.plan import Copy, Direction, PreemptionMode
from policy.request import LIVE_STATES, RequestState
from policy.systems import SYSTEMS
from realrun.engine import Engine
from realrun.runner import Runner
from realrun.sampling import SamplingParams
from realrun.serve import Machine, Options
from realrun.transfer import Put
from sim.replay import replay
from tests.helpers.fake_device import FakeDevice
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.real import (
    ROOM,
    Run,
    failing_copy,
    held_blocks,
    run,
    scenario,
    unswapped,
    write_workload,
)
from tests.helpers.recorded import Recorder as GraphRecorder

SCHEDULES = 500
CHUNK = 50
#: The first are part of every run of the tests, the others of the long one.
CHUNKS = [
    pytest.param(first, marks=[pytest.mark.full] if first >= 2 * CHUNK else [])
    for first in range(0, SCHEDULES, CHUNK)
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    return write_workload(tmp_path / "w.jsonl")


# ---------------------------------------------------------------------- the same decisions


@pytest.mark.parametrize("priority", ["random", "markov", "none"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_real_run_of_every_system_is_replayed_decision_for_decision(
    workload: Path, system: str, priority: str
) -> None:
    values = {} if priority == "none" else {"frequency": 0.5}
    loaded = scenario(workload, system=system, priority={"pattern": priority, **values})
    found = run(loaded)
    assert replay(found.recording, loaded).difference is None
    assert len(found.recording.decisions) > 20
    if priority == "random":
        never = SYSTEMS[system].options.displacement == "never"
        # Taken off the device while they ran or waited: each has a row.
        assert found.recording.table("preemptions").num_rows > (1 if never else 3)


def test_a_changed_line_is_found(workload: Path) -> None:
    loaded = scenario(workload)
    found = run(loaded)
    line = json.loads(found.recording.decisions[9])
    line["free_host_blocks"] += 1
    found.recording.decisions[9] = json.dumps(line, separators=(",", ":"))
    difference = replay(found.recording, loaded).difference
    assert difference is not None
    assert difference.where == "line 10 of decisions.jsonl"


# ---------------------------------------------------------------------- the same text


def random_system(rng: random.Random) -> dict[str, Any]:
    return {
        "name": "drawn",
        "allocator": rng.choice(["paged", "groups", "buddy"]),
        "layout": rng.choice(["layer_major", "block_major"]),
        "submission": rng.choice(["per_block", "merged", "batched", "gather"]),
        "dispatch": rng.choice(["main_thread", "worker_threads"]),
        "threads": rng.choice([1, 2, 3]),
        "overlap": rng.choice(["sync", "async", "adaptive"]),
        "reuse": rng.choice([False, True]),
        "between_turns": rng.choice(["drop", "keep_host", "keep_device"]),
        "preemption": rng.choice(["swap", "swap", "swap", "recompute"]),
        "contamination": rng.choice(["whole", "tail"]),
    }


def random_values(rng: random.Random) -> dict[str, Any]:
    return {
        "system": random_system(rng),
        "pool": {
            **ROOM,
            "device_blocks": rng.randrange(15, 24),
            "host_blocks": rng.choice([0, 8, 20, 60, 60]),
            "block_size": rng.choice([3, 4, 4, 8]),
        },
        "limits": {"max_model_len": 60, "max_num_seqs": rng.choice([2, 4, 8])},
        "priority": {
            "pattern": rng.choice(["random", "random", "markov"]),
            "frequency": rng.choice([1.0, 0.5, 0.2]),
        },
        "seed": rng.randrange(1000),
    }


@pytest.mark.parametrize("first", CHUNKS)
def test_no_swap_schedule_changes_a_token(tmp_path: Path, first: int) -> None:
    """500 of them: every switch drawn, free blocks poisoned with NaN after every step."""
    path = write_workload(tmp_path / "w.jsonl", seed=first)
    replies: dict[int, dict[str, list[int]]] = {}
    preemptions = 0
    for number in range(first, first + CHUNK):
        values = random_values(random.Random(number))
        seed = values["seed"]
        if seed not in replies:
            roomy = {**values, "pool": {**ROOM, "device_blocks": 300}, "system": "vllm-0.3.3-keep"}
            replies[seed] = run(scenario(path, **roomy), deterministic=True).replies
        found = run(scenario(path, **values), deterministic=True)
        assert found.replies == replies[seed], values
        preemptions += found.recording.table("preemptions").num_rows
    assert preemptions > 2 * CHUNK


def test_drawn_tokens_survive_swapping_too(workload: Path) -> None:
    options = Options(
        model="random:tiny", deterministic=True, sampling=SamplingParams(1.0, 0.9, 40, seed=5)
    )
    roomy = run(scenario(workload, pool={**ROOM, "device_blocks": 300}), options)
    tight = run(scenario(workload), options)
    assert tight.replies == roomy.replies
    assert tight.metrics["preemptions"] > 3
    assert roomy.replies != unswapped(workload)


def test_a_copy_that_moves_nothing_is_noticed(workload: Path) -> None:
    """The check above can fail: without its bytes, a swapped request says something else."""

    def break_copies(engine: Engine, machine: Machine) -> None:
        engine.swap._move = lambda _store, copy, _lane: Put(len(copy.runs), 0)

    found = run(scenario(workload), deterministic=True, on_engine=break_copies)
    assert found.replies != unswapped(workload)


@pytest.mark.parametrize("system", ["vllm-0.3.3", "fastswitch", "+batched"])
def test_steps_that_follow_one_another_by_graphs_write_the_same_texts(
    tmp_path: Path, system: str
) -> None:
    """Steps of a standing batch are done again without a look at who is in it; preemptions, blocks that are
    added and copies come in between, and what nobody holds is poisoned after every step."""
    rows: list[dict[str, Any]] = [{"format": "fastswitch-workload/1", "timing": "open"}]
    for index in range(6):
        name = f"r{index}"
        turn = {"request_id": name, "session_id": name, "turn": 1, "arrival_s": 0.0}
        rows.append({**turn, "input_tokens": 5 + index, "output_tokens": 25 + 3 * index})
    path = tmp_path / "w.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    followed = [0]

    def by_graphs(engine: Engine, machine: Machine) -> None:
        model = machine.model.decoder
        runner = Runner(model, machine.store.device, capture=GraphRecorder())
        proper = runner.again

        def again() -> list[int] | None:
            found = proper()
            followed[0] += found is not None
            return found

        runner.again = again  # type: ignore[method-assign]
        engine.runner = runner

    values: dict[str, Any] = {
        "system": system,
        "priority": {"pattern": "random", "frequency": 0.1},
        "limits": {"max_model_len": 60, "max_num_seqs": 4},
    }
    tight = run(scenario(path, **values, pool={**ROOM, "device_blocks": 24}), on_engine=by_graphs)
    eager = run(scenario(path, **values, pool={**ROOM, "device_blocks": 200}))
    assert tight.replies == eager.replies
    assert tight.metrics["preemptions"] > 2
    assert followed[0] > 5


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "+reuse", "fastswitch"])
def test_a_copy_that_fails_costs_a_recompute_and_no_text(workload: Path, system: str) -> None:
    expected = unswapped(workload)
    for which in range(14):
        found = run(
            scenario(workload, system=system),
            deterministic=True,
            on_engine=failing_copy(which),
        )
        assert found.replies == expected
        assert_nothing_left(found)


def assert_nothing_left(found: Run) -> None:
    """Every turn has ended, no copy is under way, and the pools are whole."""
    memory = memory_of(found.machine.scheduler)
    assert not found.machine.scheduler.desk.live
    assert not found.engine.swap.in_flight
    assert not memory.in_flight
    assert memory.device.num_available == memory.device.num_blocks - sum(
        len(context.device.blocks)
        for context in swaps_of(found.machine.scheduler).idle_device
        if context.device is not None
    )
    assert held_blocks(found.machine.scheduler)[0] <= set(range(memory.device.num_blocks))


@pytest.mark.parametrize("state", sorted(LIVE_STATES, key=lambda state: state.value))
def test_a_client_may_leave_in_every_state(tmp_path: Path, state: RequestState) -> None:
    """Somebody is seen in that state, and leaves. Loads do not end before somebody was."""
    path = write_workload(tmp_path / "w.jsonl", seed=3, sessions=8)
    left: list[str] = []
    seen = threading.Event()

    def hold_loads(engine: Engine, _machine: Machine) -> None:
        move = engine.swap._move

        def held(store: Any, copy: Copy, lane: Any) -> int:
            if state is RequestState.LOADING and copy.direction is Direction.TO_DEVICE:
                assert seen.wait(30)
            return move(store, copy, lane)

        engine.swap._move = held

    def leave(engine: Engine) -> None:
        for name, request in engine.scheduler.desk.live.items():
            if request.state is state and not left:
                left.append(name)
                heappush(engine._cancels, (engine._clock(), name))
                seen.set()

    system = {"base": "+async", "overlap": "async"}
    priority = {"pattern": "random", "frequency": 1.0}
    loaded = scenario(path, system=system, priority=priority)
    found = run(loaded, hook=leave, on_engine=hold_loads)
    assert left, f"nobody was ever {state.name}"
    assert found.statuses()[left[0]] == "cancelled"
    assert_nothing_left(found)
    assert replay(found.recording, loaded).difference is None


@pytest.mark.parametrize("device_blocks", range(4, 20))
@pytest.mark.parametrize("host_blocks", [0, 1, 7])
def test_pools_of_every_size_serve_or_refuse_everybody(
    workload: Path, device_blocks: int, host_blocks: int
) -> None:
    pool = {**ROOM, "device_blocks": device_blocks, "host_blocks": host_blocks}
    found = run(scenario(workload, pool=pool))
    statuses = set(found.statuses().values())
    assert statuses <= {"finished", "rejected"}
    assert_nothing_left(found)


@pytest.mark.parametrize("side", ["device", "host"])
def test_a_pool_that_breaks_its_promise_stops_the_run_and_loses_no_ended_request(
    workload: Path, side: str
) -> None:
    """The k-th allocation fails, for every k: the policies count before they take, so this is a
    broken pool. The run stops with that error; who had ended is in the journal."""
    ended_before = 0
    for k in range(1, 200):
        broken = Broken(side, k)
        try:
            run(scenario(workload, system="+reuse"), on_engine=broken)
        except OutOfBlocks as error:
            assert "injected" in str(error)
        else:
            assert broken.calls < k, "the failure was swallowed"
            assert ended_before > 3
            return
        assert broken.engine is not None
        ended_before = len(broken.engine.journal.replies)
    pytest.fail("more allocations than this test expects")


class Broken:
    """Its `k`-th allocation fails."""

    def __init__(self, side: str, k: int) -> None:
        self.side = side
        self.k = k
        self.calls = 0
        self.engine: Engine | None = None

    def __call__(self, engine: Engine, machine: Machine) -> None:
        self.engine = engine
        pool = getattr(memory_of(machine.scheduler), self.side)
        allocate = pool.allocate

        def counted(*arguments: Any, **named: Any) -> None:
            self.calls += 1
            if self.calls == self.k:
                raise OutOfBlocks(f"{self.side}: injected")
            allocate(*arguments, **named)

        pool.allocate = counted


# ---------------------------------------------------------------------- turns and time


def test_a_next_turn_comes_when_its_user_has_thought(tmp_path: Path) -> None:
    rows = [
        {
            "request_id": "a/1",
            "session_id": "a",
            "turn": 1,
            "input_tokens": 3,
            "output_tokens": 2,
            "arrival_s": 0.0,
        },
        {
            "request_id": "a/2",
            "session_id": "a",
            "turn": 2,
            "input_tokens": 8,
            "output_tokens": 2,
            "think_s": 0.05,
        },
    ]
    path = tmp_path / "w.jsonl"
    header = {"format": "fastswitch-workload/1", "timing": "closed"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    found = run(scenario(path, system="vllm-0.3.3-keep"))
    first, second = found.recording.table("requests").to_pylist()
    assert second["arrival_ns"] == first["finish_ns"] + 50_000_000
    assert second["first_token_ns"] > second["arrival_ns"]
    assert second["cached_tokens"] == 4  # the last token of a reply was never computed


def test_times_of_a_real_run_never_run_backwards(workload: Path) -> None:
    found = run(scenario(workload))
    steps = found.recording.table("steps").to_pylist()
    assert all(a["end_ns"] <= b["start_ns"] for a, b in pairwise(steps))
    for copy in found.recording.table("copies").to_pylist():
        assert copy["submit_ns"] <= copy["start_ns"] <= copy["end_ns"]


def test_stopping_ends_everybody_and_replays_up_to_there(workload: Path) -> None:
    def stop(engine: Engine) -> None:
        if engine.num_ended == 4:
            engine.stop()

    loaded = scenario(workload)
    found = run(loaded, hook=stop)
    statuses = list(found.statuses().values())
    assert statuses.count("finished") >= 4
    assert "unfinished" in statuses
    assert not found.engine.swap.in_flight
    assert replay(found.recording, loaded).difference is None


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("system", ["vllm-0.3.3", "fastswitch", "vllm-v1+swap"])
def test_whoever_is_interrupted_waited_for_copies_no_longer_than_it_lived(
    workload: Path, system: str, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at every moment at which copies were under way, which then end or never do; where a step
    waits for its copies there is none, and it is stopped after so many steps."""
    is_async = system == "fastswitch"
    monkeypatch.setattr("realrun.engine.DRAIN_S", 0.05)
    moments, shares = range(2, 30, 4 if hangs else 1), []
    for moment in moments:
        device = FakeDevice(moment)
        monkeypatch.setattr("realrun.serve.runtime_for", lambda _, made=device: made)
        seen = [0]

        def stop(engine: Engine, seen: list[int] = seen, device: FakeDevice = device) -> None:
            seen[0] += bool(engine.swap.in_flight) or not is_async
            if seen[0] == moment:  # noqa: B023  # called within this round
                engine.stop()
                if hangs:
                    device.stalled = {lane.stream.name for lane in device.lanes}

        options = Options(model="random:tiny", timeout_s=0.2)
        found = run(scenario(workload, system=system), options, hook=stop)
        metrics = found.metrics
        for name in ("stall_share", "stall_share_p99_steps", "stall_share_p99_gaps"):
            assert metrics[name] is None or 0 <= metrics[name] <= 1
        assert 0 <= metrics["gpu_utilisation"] <= 1 and metrics["stall_s"] <= metrics["live_s"]
        for row in found.recording.table("requests").to_pylist():
            assert row["arrival_ns"] <= row["end_ns"]
        shares.append((metrics["unfinished"], metrics["stall_share"]))
    assert sum(left > 0 and share > 0 for left, share in shares) >= len(moments) // 2


def test_a_scenario_without_sizes_is_refused(workload: Path) -> None:
    for pool in ({"host_blocks": 5}, {"device_blocks": 5}):
        with pytest.raises(ConfigError, match="pool"):
            run(scenario(workload, pool=pool))


def test_preemptions_are_recorded_as_they_were_carried_out(workload: Path) -> None:
    found = run(scenario(workload, system="vllm-0.3.3-recompute"))
    modes = set(found.recording.table("preemptions")["mode"].to_pylist())
    assert modes == {PreemptionMode.RECOMPUTE.value}
    assert found.recording.table("copies").num_rows == 0
