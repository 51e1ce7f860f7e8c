"""What the engine adds to a step: scheduler, plan, lists of tokens, recorder.

A real engine decodes a standing batch with nothing else to do, and the time inside its runner is taken from
the time between the ends of its steps. The runner computes nothing: what it would take is no overhead.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from realrun.journal import Journal
from realrun.model import LoadedModel, load_model
from realrun.runner import Runner, Work
from realrun.serve import Machine, Options, make_engine, prepare
from runs.recorder import Recorder
from runs.scenario import Scenario, build

PROMPT = 64


@dataclass(frozen=True)
class StepTime:
    """From the end of one step to the end of the next, and how much of it was inside."""

    whole_ns: int
    inside_ns: int


class Inside:
    """Adds up the time inside functions of objects or modules, until `undo`."""

    def __init__(self, places: list[tuple[Any, str]]) -> None:
        self.spent_ns = 0
        self._places = [(owner, name, getattr(owner, name)) for owner, name in places]
        for owner, name, call in self._places:
            setattr(owner, name, self._timed(call))

    def undo(self) -> None:
        """Time nothing any more."""
        for owner, name, call in self._places:
            setattr(owner, name, call)

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = time.perf_counter_ns()
            result = call(*arguments)
            self.spent_ns += time.perf_counter_ns() - begin
            return result

        return timed


def scenario(folder: Path, batch: int, steps: int) -> Scenario:
    """`batch` requests at once, each of `steps` tokens, with room for all."""
    header = {"format": "fastswitch-workload/1", "timing": "open"}
    rows = [
        {
            "request_id": f"r{index}",
            "session_id": f"r{index}",
            "turn": 1,
            "input_tokens": PROMPT,
            "output_tokens": steps,
            "arrival_s": 0.0,
        }
        for index in range(batch)
    ]
    path = folder / "w.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (header, *rows)))
    blocks = batch * (-(-(PROMPT + steps) // 16) + 1)
    return build(
        {
            "name": "step-overhead",
            "workload": str(path),
            "system": "fastswitch",
            "profile": "a10-llama-3-8b",
            "priority": {"pattern": "markov", "frequency": 0.04},
            "pool": {"device_blocks": 2 * blocks, "host_blocks": 2 * blocks, "aging": "none"},
        },
        "step overhead",
    )


class Idle(Runner):
    """Computes nothing, at once."""

    def __init__(self) -> None:
        self.graphs = None
        self._tokens: list[int] | None = None

    def greedy_step(self, work: Sequence[Work], decoding: int = 0) -> list[int]:  # noqa: ARG002
        """Any token."""
        self._tokens = [1] * len(work)
        return self._tokens

    def again(self) -> list[int] | None:
        """As a graph that needs to be told nothing."""
        return self._tokens


@cache
def _tiny(device: str) -> LoadedModel:
    """A model of which nothing but its shape is used."""
    return load_model("random:tiny", torch.float32, device)


def step_times(
    model: LoadedModel,
    batch: int,
    steps: int,
    device: str,
    places: Callable[[Machine, Any], list[tuple[Any, str]]],
    runner: Callable[[Machine], Runner] | None = None,
) -> list[StepTime]:
    """Decode steps of one run, without those of prompts and of requests that end. `places(machine,
    engine)`: whose functions count as inside. `runner`: in place of the machine's own."""
    rows: list[StepTime] = []
    with tempfile.TemporaryDirectory() as folder:
        options = Options(device=device, model=model.config.name)
        machine = prepare(scenario(Path(folder), batch, steps), options, model=model)
        own = None if runner is None else runner(machine)
        engine = make_engine(machine, Recorder(), Journal(None), check="off", runner=own)
        inside = Inside(places(machine, engine))
        before = [time.perf_counter_ns(), 0]
        calls = [0]

        def check(_: object) -> None:
            calls[0] += 1
            if calls[0] % 2:  # after a schedule; what follows is the step and its update
                return
            now = time.perf_counter_ns()
            rows.append(StepTime(now - before[0], inside.spent_ns - before[1]))
            before[:] = [now, inside.spent_ns]

        engine.watch(check)
        try:
            with torch.inference_mode():
                engine.run()
        finally:
            inside.undo()
            engine.swap.close()
            machine.close()
    return rows[2:-1]


def step_overhead_ns(batch: int, device: str, steps: int = 20) -> int:
    """Median time of a decode step outside the runner."""
    times = step_times(_tiny(device), batch, steps, device, _the_runner, lambda _: Idle())
    return round(statistics.median(row.whole_ns - row.inside_ns for row in times))


def _the_runner(_machine: Machine, engine: Any) -> list[tuple[Any, str]]:
    return [(engine.runner, "greedy_step"), (engine.runner, "again")]
