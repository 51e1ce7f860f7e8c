"""The simulated machine, step by step and token by token: slow, obvious, the differential oracle.

Everything the fast loop derives is done the long way here: a decision in every step, a fresh plan
object each time, growth found by looking at every request, one list entry per token, completions
found by counting, KV totals by summing. Only the host link, arrivals and copies are shared, since
they are not on the fast path.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

from policy.desk import Desk
from policy.engines import base as policy
from policy.engines.base import Event, Until
from policy.engines.catalog import make_engine
from policy.errors import ReleaseVerdict
from policy.orders.base import Order
from policy.orders.catalog import make_order
from policy.plan import Batch, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.systems import served_under
from runs.loop import NULL
from runs.recorder import Recorder, decision_line
from runs.recording import Recording
from runs.scenario import Scenario
from runs.serving import age, make_scheduler
from sim import simulate as machine
from sim.device import Device, Served
from sim.engine import Engine
from sim.simulate import Setup
from tests.helpers.inside import Wrapped
from traces.workload import Turn


class NaiveDesk(Desk):
    """Growth by looking at every request of the batch."""

    def growing(self) -> dict[Request, None]:
        size = self.settings.block_size
        return {r: None for r in self.running if (r.num_tokens - 1) % size == 0}


class EveryStep(Wrapped):
    """Decides in every step and never hands out the same object twice."""

    def decide(self) -> tuple[Plan, Until]:
        plan, _ = self.inner.decide()
        batch = plan.batch
        fresh = None if batch is None else Batch((*batch.decode,), 0, (), ())
        return plan._replace(batch=fresh), Until(Event.MADE)


def naive_scheduler(setup: Setup) -> Scheduler:
    """That of a scenario, which decides anew in every step."""
    scenario, streams, settings = setup.scenario, setup.streams, setup.settings
    order = make_order(scenario.order_name, streams, scenario.order_settings())
    desk = NaiveDesk(settings, order, scenario.rates.start())
    system = served_under(setup.system, is_fcfs=type(order) is Order)
    engine = EveryStep(make_engine(settings, system, order, streams, desk=desk))
    made = Scheduler(settings, system, order, streams, engine=cast(policy.Engine, engine))
    age(made, setup)
    return made


class NaiveDevice(Device):
    """Counts every token of every request."""

    def begin(self, plan: Plan) -> int:
        """Duration of the plan's step."""
        if plan.batch is None:
            return self.prefill_ns(plan)
        for request_id in plan.batch.decode:
            served = self.served[request_id]
            expected = served.turn.input_tokens + served.produced
            assert self._scheduler.num_tokens(request_id) == expected
        self.batch_size = len(plan.batch.decode)
        self.kv_tokens = sum(map(self._scheduler.num_tokens, plan.batch.decode))
        if plan.prefill:
            prompts = self._prompts(plan)
            return self._costs.mixed_ns(self.batch_size, self.kv_tokens, 0, prompts)
        return self._costs.decode_ns(self.batch_size, self.kv_tokens)

    def end(self, plan: Plan, lost: set[str], end_ns: int) -> tuple[str, ...]:
        """Who is done."""
        finished = list(self.end_prefill(plan, lost, end_ns))
        for request_id in plan.batch.decode if plan.batch is not None else ():
            if request_id not in lost:
                served = self.served[request_id]
                served.produced += 1
                if served.produced == served.target:
                    finished.append(request_id)
        return tuple(sorted(finished))

    def leave(self, served: Served) -> None:
        """Nothing is derived, so nothing is to be settled."""


class NaiveRecorder(Recorder):
    """One event per token; spans are put together when the request ends."""

    def __init__(self) -> None:
        super().__init__(decisions=True)
        self.events: dict[str, list[tuple[str, int, int]]] = {}
        self.computed: dict[str, bool] = {}  # since it came to the device

    def arrived(self, turn: Turn, due_ns: int) -> None:
        super().arrived(turn, due_ns)
        self.events[turn.request_id] = []
        self.computed[turn.request_id] = False

    def took_off(self, request_id: str, step: int, mode: str) -> None:
        """Lost the device: preempted if it had computed since it came there, else parked."""
        was_running, self.computed[request_id] = self.computed[request_id], False
        self._stories[request_id].preemptions += was_running
        self._stories[request_id].parkings += not was_running
        was = "running" if was_running else "waiting"
        self._tables["preemptions"].append((request_id, step, mode, was))

    def saw(self, request_id: str, kind: str, step: int, tokens: int) -> None:
        self.events[request_id].append((kind, step, tokens))
        self.computed[request_id] = True

    def ended(self, turn: Turn, *rest: Any, **more: Any) -> None:
        spans: list[list[Any]] = []
        for kind, step, tokens in self.events.pop(turn.request_id):
            if kind == "token" and spans and spans[-1][0] == "token" and spans[-1][2] == step - 1:
                spans[-1][2] = step
                spans[-1][3] += 1
            else:
                spans.append([kind, step, step, tokens])
        name = turn.request_id
        self._stories[name].spans = [(name, *span) for span in spans]
        super().ended(turn, *rest, **more)


class NaiveEngine(Engine):
    """The loop at its plainest."""

    recorder: NaiveRecorder
    device: NaiveDevice

    def run(self) -> Generator[Any, Any, Any]:
        try:
            while True:
                now = self.env.now
                if self.driver.next_ns <= now:
                    self._arrive(now)
                self._cancel(now)
                plan = self.scheduler.schedule(now)
                free = self.scheduler.engine.levels()
                if plan.is_numbered or plan.has_commands:
                    outcome = yield from self._step(plan, free)
                    self.scheduler.update(outcome)
                    self._finish(outcome.finished, self.env.now)
                elif self._is_done and not self.link.in_flight:
                    return
                else:
                    yield from self._idle(plan)
                    end = self.env.now
                    self.scheduler.update(Outcome(False, end, end, None, (), self._ended_copies()))
        except ReleaseVerdict as verdict:
            self.verdict = str(verdict)
            self._ended_copies()
            self._leave_unfinished()

    def _step(self, plan: Plan, free: tuple[int, int]) -> Generator[Any, Any, Outcome]:
        start, step, recorder = self.env.now, self.scheduler.step, self.recorder
        if plan.is_numbered:
            for request_id, mode in plan.preempt:
                recorder.took_off(request_id, step, mode.value)
            recorder._decisions.append(decision_line(plan, step, start, free))
        for copy_id in plan.cancel:
            self.link.cancel(copy_id)
        for request_id, why in plan.reject:
            self._end(self.device.served[request_id], "rejected", why)
        lost: set[str] = set()
        if plan.copies or plan.wait_for:
            lost = yield from self._copy(plan)
        stall = self.env.now - start
        finished: tuple[str, ...] = ()
        if plan.runs:
            yield from self._compute(self.device.begin(plan))
            finished = self.device.end(plan, lost, self.env.now)
            self._log(plan, step, lost)
        if plan.is_numbered:
            decodes = plan.batch is not None
            recorder.stepped(
                (
                    step,
                    start,
                    self.env.now,
                    stall,
                    sum(count for _, count in plan.prefill),
                    self.device.batch_size if decodes else 0,
                    self.device.kv_tokens if decodes else 0,
                    *free,
                    NULL if plan.wait_cost is None else plan.wait_cost,
                    NULL if plan.overlap_cost is None else plan.overlap_cost,
                )
            )
        tokens = tuple((r, int(r not in lost)) for r in plan.num_scheduled_tokens)
        reported = tokens if plan.runs else None
        copies = self._ended_copies()
        return Outcome(plan.runs, start, self.env.now, reported, finished, copies)

    def _log(self, plan: Plan, step: int, lost: set[str]) -> None:
        for request_id, count in plan.prefill:
            self.recorder.saw(request_id, "prefill", step, count)
        whole = {name: self.device.completes(name, count) for name, count in plan.prefill}
        for request_id in plan.num_scheduled_tokens:
            if request_id not in lost and whole.get(request_id, True):
                self.recorder.saw(request_id, "token", step, 1)


def naive_simulate(scenario: Scenario, fails: Any = None) -> Recording:
    """`simulate`, the long way; in memory, with decisions."""
    setup = machine.prepare(scenario)
    recorder = NaiveRecorder()
    engine = machine.make_engine(setup, naive_scheduler(setup), recorder, "off")
    engine.__class__ = NaiveEngine
    engine.device.__class__ = NaiveDevice
    engine.link._fails = fails
    engine.env.run(until=engine.env.process(engine.run()))
    return recorder.close({"verdict": engine.verdict})


def fast_simulate(scenario: Scenario, fails: Any = None) -> Recording:
    """`simulate` with an injected failure, in memory, with decisions."""
    setup = machine.prepare(scenario)
    scheduler = make_scheduler(setup)
    recorder = Recorder(decisions=True)
    engine = machine.make_engine(setup, scheduler, recorder, "off")
    engine.link._fails = fails
    engine.env.run(until=engine.env.process(engine.run()))
    return recorder.close({"verdict": engine.verdict})
