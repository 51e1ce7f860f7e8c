"""Small real runs: a tiny model with random weights, pools of a few blocks, poisoned free blocks."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from policy.engines.v1_holdings import V1Holdings
from policy.engines.vllm_v1_swap import Swapped, V1SwapEngine
from policy.plan import Copy
from policy.scheduler import Scheduler
from realrun.engine import Engine
from realrun.journal import Journal
from realrun.kvstore import KVStore
from realrun.model import LoadedModel, load_model
from realrun.serve import Machine, Options, make_engine, prepare
from runs.metrics.summary import summarise
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario, build
from runs.serving import aging_lengths, checker
from sim.replay import replay
from tests.helpers.inside import memory_of, swaps_of

#: The policies' laws and the machine's copies are checked on a device with room for two or three.
ROOM = {"device_blocks": 10, "host_blocks": 60, "block_size": 4, "aging": "shuffle"}


@cache
def tiny() -> LoadedModel:
    """Two layers, 256 tokens, weights from a seed; one for all tests."""
    return load_model("random:tiny", torch.float32, "cpu", seed=1)


def write_workload(path: Path, seed: int = 0, sessions: int = 5, turns: int = 3) -> Path:
    """Conversations that all begin at once, so that a machine of any speed is overloaded."""
    rng = random.Random(seed)
    lines = [json.dumps({"format": "fastswitch-workload/1", "timing": "closed"})]
    for session in range(sessions):
        context = 0
        for turn in range(1, turns + 1):
            new, output = rng.randrange(1, 7), rng.randrange(1, 8)
            row: dict[str, Any] = {
                "request_id": f"s{session}/{turn}",
                "session_id": f"s{session}",
                "turn": turn,
                "input_tokens": context + new,
                "output_tokens": output,
            }
            row["arrival_s" if turn == 1 else "think_s"] = 0.0
            context += new + output
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def scenario(workload: Path, **values: Any) -> Scenario:
    """Five conversations of three turns, all at once; priorities change every other step."""
    data: dict[str, Any] = {
        "name": "real",
        "workload": str(workload),
        "profile": "a10-llama-3-8b",
        "pool": ROOM,
        "limits": {"max_model_len": 60, "max_num_seqs": 4},
        "priority": {"pattern": "random", "frequency": 0.5},
        "groups": {"initial_blocks": 2, "growth_blocks": 2, "host_increment_blocks": 1},
        "last_turn_known": True,
    }
    return build({**data, **values}, "test")


@dataclass
class Run:
    """What a run left. `replies`: request id -> tokens."""

    engine: Engine
    machine: Machine
    recording: Recording
    replies: dict[str, list[int]]

    @property
    def metrics(self) -> dict[str, Any]:
        """The recording's."""
        return summarise(self.recording)

    def statuses(self) -> dict[str, str]:
        """Request id -> how it ended."""
        rows = self.recording.table("requests", ["request_id", "status"]).to_pylist()
        return {row["request_id"]: row["status"] for row in rows}


def run(
    loaded: Scenario,
    options: Options | None = None,
    *,
    deterministic: bool = False,
    hook: Callable[[Engine], None] | None = None,
    on_engine: Callable[[Engine, Machine], None] | None = None,
) -> Run:
    """Serve in memory, with every law checked after every schedule and update, and free blocks
    poisoned after every update. `hook` is called there too."""
    options = options or Options(model="random:tiny", deterministic=deterministic)
    machine = prepare(loaded, options, model=tiny())
    recorder = Recorder(decisions=True, aging=aging_lengths(machine.serving))
    journal = Journal(None)
    engine = make_engine(machine, recorder, journal)
    engine.watch(Watch(engine, machine.store, hook))
    if on_engine is not None:
        on_engine(engine, machine)
    with torch.inference_mode():
        try:
            engine.run()
        finally:
            engine.swap.close()
            machine.close()
    facts = {
        "order": machine.scheduler.order.name,
        "device_blocks": machine.serving.settings.device_blocks,
        "host_blocks": machine.serving.settings.host_blocks,
        "max_model_len": machine.serving.settings.max_model_len,
        "verdict": engine.verdict,
        "link_bytes_per_s": {"h2d": 1e9, "d2h": 1e9},
    }
    return Run(engine, machine, recorder.close(facts), journal.replies)


class Watch:
    """The engine's check: laws always; after an update, what nobody holds is poisoned."""

    def __init__(
        self, engine: Engine, store: KVStore, hook: Callable[[Engine], None] | None
    ) -> None:
        self._engine = engine
        self._store = store
        self._hook = hook
        self._laws = checker("full")
        self._has_plan = False

    def __call__(self, scheduler: Scheduler) -> None:
        assert self._laws is not None
        self._laws(scheduler)
        self._has_plan = not self._has_plan
        if not self._has_plan:
            self._poison(scheduler)
            if self._hook is not None:
                self._hook(self._engine)

    def _poison(self, scheduler: Scheduler) -> None:
        device, host = held_blocks(scheduler)
        for tier, held in ((self._store.device, device), (self._store.host, host)):
            free = sorted(set(range(tier.num_blocks)) - held)
            if free:
                tier.poison(free)


def held_blocks(scheduler: Scheduler) -> tuple[set[int], set[int]]:
    """Blocks of either pool that hold KV or are a copy's."""
    engine, settings = scheduler.engine, scheduler.settings
    if isinstance(engine, V1Holdings):
        # A free block that has a name may be found again.
        device = set(range(settings.device_blocks)) - set(engine.device.nameless)
        host: set[int] = set()
        if not isinstance(engine, V1SwapEngine):
            host = set(range(settings.host_blocks))
        for held in engine.held.values():
            host.update(held.host.blocks if isinstance(held, Swapped) else ())
        return device, host
    memory = memory_of(scheduler)
    contexts = [request.context for request in scheduler.desk.live.values()]
    contexts += memory.ledger.kept.values()
    contexts += swaps_of(scheduler).idle_device
    flights = list(memory.in_flight.values())
    sides = []
    for side in ("device", "host"):
        held: set[int] = set()
        for holder in (*contexts, *flights):
            allocation = getattr(holder, side)
            if allocation is not None:
                held.update(allocation.blocks)
        sides.append(held)
    if swaps_of(scheduler).sharing is not None:
        for shared in swaps_of(scheduler).sharing.tree:
            sides[0].update(shared.blocks)
    for flight in flights:
        for device, host, length in flight.copy.runs:
            sides[0].update(range(device, device + length))
            sides[1].update(range(host, host + length))
    return sides[0], sides[1]


def unswapped(path: Path) -> dict[str, list[int]]:
    """What the model says with room for everybody and every prompt in one step."""
    room = {**ROOM, "device_blocks": 300}
    roomy = scenario(path, system="+groups", pool=room, limits={"max_model_len": 60})
    found = run(roomy, deterministic=True)
    assert found.metrics["preemptions"] == 0
    return found.replies


def failing_copy(which: int) -> Callable[[Engine, Machine], None]:
    """For `on_engine` of `run`: the copy with this number fails where it is carried out."""

    def break_it(engine: Engine, _machine: Machine) -> None:
        move = engine.swap._move

        def fails(store: Any, copy: Copy, lane: Any) -> int:
            if copy.copy_id == which:
                raise RuntimeError("injected")
            return move(store, copy, lane)

        engine.swap._move = fails

    return break_it


def same_text(loaded: Scenario, expected: dict[str, list[int]], **how: Any) -> Run:
    """A run that says this and replays to the same decisions."""
    found = run(loaded, deterministic=True, **how)
    assert found.replies == expected
    assert replay(found.recording, loaded).difference is None
    return found
