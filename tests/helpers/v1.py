"""A V1 engine driven step by step, with prompts written as texts of which each letter is a token."""

from __future__ import annotations

from typing import Any

from policy.integrity import check_integrity
from policy.orders.base import Order
from policy.orders.static import StaticPriority
from policy.plan import CopyResult, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import SYSTEMS, System


class TextNames:
    """A block's name is the text up to its end; a letter not known yet may not be asked for."""

    def __init__(self, text: str, size: int) -> None:
        self.text = text
        self.size = size

    def __getitem__(self, index: int) -> str:
        end = (index + 1) * self.size
        assert end <= len(self.text), "a name was asked for before its tokens are known"
        return self.text[:end]


class V1:
    """Blocks of 4 tokens, 10 of them, unless said otherwise. A reply is letters `.` unless told."""

    def __init__(
        self,
        system: str | System = "vllm-v1",
        *,
        priority: bool = False,
        caches: bool = True,
        **settings: Any,
    ) -> None:
        values = {"device_blocks": 10, "host_blocks": 0, "block_size": 4, "watermark": 0.0}
        self.settings = Settings(**(values | settings))
        kind = SYSTEMS[system] if isinstance(system, str) else system
        order = StaticPriority() if priority else Order()
        self.scheduler = Scheduler(
            self.settings, kind.but(prefix_sharing=caches), order, lambda *_: 0
        )
        self.engine: Any = self.scheduler.engine
        self.now = 0
        self.plan = Plan()
        self.replies: dict[str, str] = {}

    def add(
        self, name: str, text: str, *, priority: int = 0, at: int | None = None, reply: str = ""
    ) -> Request:
        """A request arrives."""
        request = Request(
            name,
            arrival_ns=self.now if at is None else at,
            input_tokens=len(text),
            priority=priority,
            block_names=TextNames(text, self.settings.block_size),
        )
        self.replies[name] = reply
        self.scheduler.add(request, self.now)
        return request

    def plan_step(self) -> dict[str, int]:
        """One decision: tokens by request, in the order in which they run."""
        self.now += 1
        self.plan = self.scheduler.schedule(self.now)
        check_integrity(self.scheduler)
        tokens = self.plan.num_scheduled_tokens
        return {
            r.request_id: tokens[r.request_id]
            for r in self.engine.running
            if r.request_id in tokens
        }

    def end_step(self, *finished: str, copies: tuple[CopyResult, ...] = ()) -> None:
        """The step has run; these are done with it."""
        before = {name: r.num_tokens for name, r in self.scheduler.desk.live.items()}
        live = dict(self.scheduler.desk.live)
        self.scheduler.update(
            Outcome(self.plan.runs, self.now, self.now + 1, None, finished, copies)
        )
        for name, request in live.items():
            if request.num_tokens > before[name] and isinstance(request.block_names, TextNames):
                produced = request.num_generated - 1
                reply = self.replies[name]
                request.block_names.text += reply[produced] if produced < len(reply) else "."

    def step(self, *finished: str) -> dict[str, int]:
        """Plan and run one step."""
        tokens = self.plan_step()
        self.end_step(*finished)
        return tokens

    def steps(self, count: int) -> None:
        """Run so many."""
        for _ in range(count):
            self.step()

    @property
    def found(self) -> dict[str, int]:
        """Tokens found, by who was admitted in the last plan."""
        return dict(self.plan.found)

    @property
    def lost(self) -> dict[str, int]:
        """Tokens lost, by who was preempted in it."""
        return dict(self.plan.lost)

    @property
    def running(self) -> list[str]:
        """In order of admission."""
        return [r.request_id for r in self.engine.running]

    @property
    def waiting(self) -> list[str]:
        """In the order in which they come up."""
        return [r.request_id for r in self.engine.waiting]

    @property
    def free(self) -> int:
        """Free device blocks."""
        return int(self.engine.levels().device)
