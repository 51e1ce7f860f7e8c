"""A simulated machine on which everything takes whole microseconds, with a workload from memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from policy.orders.base import Order
from policy.scheduler import Scheduler
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario, build
from runs.serving import make_scheduler
from sim import simulate as machine
from sim.engine import Engine
from traces.workload import Header, Turn, Workload

US = 1000
BLOCK_TOKENS = 64
MICROSECOND = BLOCK_TOKENS * 131_072 * 1e6  # bytes per second that move a block in 1,000 ns

#: A step takes 1,000 ns whatever it does, and a copy costs what its bytes do.
FREE = {
    "step.base": 1000.0,
    "step.per_kv_token": 0.0,
    "step.per_sequence": 0.0,
    "step.per_sequence_beyond": 0.0,
    "step.per_prefill_token": 0.0,
    "step.per_prefill_square": 0.0,
    "transfer.per_job": 0.0,
    "transfer.per_call": 0.0,
    "transfer.per_descriptor": 0.0,
    "transfer.lock_growth": 0.0,
    "transfer.queue_depth": 100_000.0,
    "transfer.piece_setup": 0.0,
    "transfer.interference_to_device": 0.0,
    "transfer.interference_to_host": 0.0,
}
#: And a block moves in 1,000 ns.
WHOLE = {
    **FREE,
    "transfer.queue_depth": 1e6,
    "transfer.to_device": MICROSECOND,
    "transfer.to_host": MICROSECOND,
    "transfer.to_device_duplex": MICROSECOND,
    "transfer.to_host_duplex": MICROSECOND,
}


def scenario_of(**values: Any) -> Scenario:
    """The bench's scenario with dotted paths replaced."""
    data: dict[str, Any] = {
        "name": "bench",
        "workload": {"generator": "chat", "conversations": 1, "rate": 1.0},
        "system": "fastswitch",
        "order": "priority",
        "profile": "a10-llama-3-8b",
        "profile_values": WHOLE,
        "pool": {
            "device_blocks": 10,
            "host_blocks": 100,
            "block_size": BLOCK_TOKENS,
            "watermark": 0.0,
            "aging": "none",
        },
    }
    return build(data, "bench").with_values(values)


class Bench:
    """An engine ready to run, and what it was made of."""

    def __init__(
        self,
        turns: list[Turn],
        own_order: Order | None = None,
        *,
        timing: Literal["open", "closed"] = "open",
        check: str = "full",
        progress: Callable[[int], None] | None = None,
        **values: Any,
    ) -> None:
        setup = machine.prepare(scenario_of(**values))
        self.setup = replace(setup, workload=Workload.of(turns, Header(timing=timing)))
        self.scheduler: Scheduler = make_scheduler(self.setup, own_order)
        self.recorder = Recorder(decisions=True)
        self.engine: Engine = machine.make_engine(
            self.setup, self.scheduler, self.recorder, check, progress
        )

    def run(self) -> Recording:
        """To the end; metrics are not worked out."""
        env = self.engine.env
        env.run(until=env.process(self.engine.run()))
        return self.recorder.close({"verdict": self.engine.verdict})


def turn(name: str, at: int, prompt: int = 60, reply: int = 5, **more: Any) -> Turn:
    """A conversation of one turn that arrives at a time in nanoseconds."""
    return Turn(name, more.pop("session", name), 1, prompt, reply, arrival_ns=at, **more)
