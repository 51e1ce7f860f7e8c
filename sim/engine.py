"""The engine loop as a SimPy process: schedule, execute, update. The twin of `realrun/engine.py`.

A step in which nothing changed takes the short way at the top of the loop; everything else goes
through `_execute`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol

import simpy

from policy.errors import ProgressError, ReleaseVerdict
from policy.plan import Copy, CopyResult, Direction, Outcome, Plan
from policy.scheduler import Scheduler
from runs.lineages import Names, no_names
from runs.loop import NULL, Loop
from runs.recorder import Recorder
from runs.serving import longest_context, make_request, output_target
from runs.turns import NEVER, Arrival, Turns
from sim.clock import Clock
from sim.device import Device, Served
from sim.link import Job
from traces.prefixes import Keys, no_keys

Process = Generator[simpy.Event, object, Any]


class StepEnd(simpy.Event):
    """The end of a step. Comes after every arrival and copy of the same nanosecond.

    One object serves all steps of an engine, since only one step is under way at a time.
    """

    def __init__(self, env: Clock) -> None:
        super().__init__(env)
        self._ok = True
        self._value = None

    def after(self, delay: int) -> StepEnd:
        """The event, `delay` nanoseconds from now."""
        self.callbacks = []
        self.env.schedule(self, priority=STEP_END, delay=delay)  # type: ignore[arg-type]
        return self


#: SimPy's priorities are 0 and 1; a step ends behind both.
STEP_END = 2


class Link(Protocol):
    """What the engine asks of the way between the two memories."""

    in_flight: dict[int, Job]
    on_end: simpy.Event | None

    @property
    def ended_jobs(self) -> list[Job]:
        """Jobs that have ended since the list was last cleared."""

    def submit(self, copy: Copy, submitter_free_ns: int) -> Job:
        """Start a job."""

    def cancel(self, copy_id: int) -> None:
        """A job's source is kept."""

    def slowdown(self, begin_ns: int, step_ns: int) -> int:
        """Nanoseconds a step gains by copies under way."""


class Engine(Loop[Served]):
    """One serving engine on a simulated machine. `run` is its process. `keys` names the blocks of a
    prompt.

    `plans_ahead`: the next step is planned while one runs (vLLM's asynchronous scheduling), so a turn
    that arrives meanwhile is in the one after it. `frontend_ns`: what lies between a client and the
    engine; turns are seen so much later than they arrive. `pushed`: where others hand turns to the driver,
    the next time that they do, or say that nothing more will come.
    """

    def __init__(
        self,
        env: Clock,
        scheduler: Scheduler,
        driver: Turns,
        device: Device,
        link: Link,
        recorder: Recorder,
        *,
        submits_itself: bool,
        last_turn_known: bool,
        plans_ahead: bool = False,
        frontend_ns: int = 0,
        keys: Keys = no_keys,
        names: Names = no_names,
        check: Callable[[Scheduler], None] | None = None,
        progress: Callable[[int], None] | None = None,
        pushed: Callable[[], simpy.Event] | None = None,
    ) -> None:
        super().__init__(scheduler, driver, recorder, device.served, check=check, progress=progress)
        self.env = env
        self.device = device
        self.link = link
        self._submits_itself = submits_itself
        self._last_turn_known = last_turn_known
        self._plans_ahead = plans_ahead
        self._frontend_ns = frontend_ns
        self._keys = keys
        self._names = names
        self._pushed = pushed
        self._longest = longest_context(scheduler.settings, scheduler.system)
        self._step_end = StepEnd(env)

    # ------------------------------------------------------------------ the loop

    def run(self) -> Process:
        """Serve until every turn has ended. Sets `verdict` instead of raising ReleaseVerdict."""
        env, scheduler, driver, device = self.env, self.scheduler, self.driver, self.device
        link, recorder, check = self.link, self.recorder, self._check
        levels = scheduler.engine.levels
        schedule, update, decides = scheduler.schedule, scheduler.update, recorder.decides
        step_end = self._step_end
        ahead, frontend_ns = self._plans_ahead, self._frontend_ns
        began: int | None = None  # of the step just ended, if this plan was made while it ran
        try:
            while True:
                now = env.now
                seen = (now if began is None else began) - frontend_ns
                if driver.next_ns <= seen:
                    self._arrive(now, seen)
                if self._cancels and self._cancels[0][0] <= now:
                    self._cancel(now)
                plan = schedule(now)
                if check is not None:
                    check(scheduler)
                free = levels()
                if scheduler.is_plain and plan.batch is not None:
                    # The batch decodes and nothing else happens: one event, one row.
                    step = scheduler.step
                    if plan is not self._last:
                        self._last = plan
                        recorder.planned(plan, step)
                    if decides:
                        recorder.decided(plan, step, now, free)
                    duration = device.decode_ns(plan.batch)
                    if link.in_flight:
                        duration += link.slowdown(now, duration)
                    yield step_end.after(duration)
                    finished = device.end_decode()
                    end = now + duration
                    recorder.decoded(
                        (
                            step,
                            now,
                            end,
                            0,
                            0,
                            device.batch_size,
                            device.kv_tokens,
                            *free,
                            NULL,
                            NULL,
                        )
                    )
                    copies = self._ended_copies() if link.ended_jobs else ()
                    began = now if ahead else None
                    update(Outcome(True, now, end, None, finished, copies))
                elif plan.is_numbered or plan.has_commands:
                    outcome = yield from self._execute(plan, free)
                    finished = outcome.finished
                    began = now if ahead and plan.runs else None
                    update(outcome)
                elif self._is_done and not link.in_flight:
                    return
                else:
                    if (yield from self._idle(plan)):
                        return
                    finished, began = (), None
                    update(Outcome(False, env.now, env.now, None, (), self._ended_copies()))
                if finished:
                    self._finish(finished, env.now)
                if check is not None:
                    check(scheduler)
        except ReleaseVerdict as verdict:
            self.verdict = str(verdict)
            recorder.unnumbered(None, scheduler.step + 1, env.now)
            self._ended_copies()
            self._leave_unfinished()

    def _execute(self, plan: Plan, free: tuple[int, int]) -> Process:
        """One plan that is new: commands first, then what it runs. Returns the outcome."""
        env, device = self.env, self.device
        start = env.now
        step = self.scheduler.step
        self._begin(plan, step, start, free)
        lost: set[str] = set()
        if plan.copies or plan.wait_for:
            lost = yield from self._copy(plan)
        stall = env.now - start
        finished: tuple[str, ...] = ()
        if plan.runs:
            yield from self._compute(self._duration(plan))
        if plan.prefill:
            finished = device.end_prefill(plan, lost, env.now)
            for request_id, count in plan.prefill:
                produced = request_id not in lost and device.completes(request_id, count)
                self.recorder.prefilled(request_id, step, count, produced=produced)
        if plan.batch is not None:
            decoded = [name for name in device.end_decode() if name not in lost]
            finished = tuple(sorted([*finished, *decoded]) if finished else decoded)
        if plan.is_numbered:
            size, kv_tokens = (device.batch_size, device.kv_tokens) if plan.batch else (0, 0)
            self._stepped(plan, step, (start, env.now, stall), size, kv_tokens, free)
        reported = self._report(plan, lost) if lost else None
        return Outcome(plan.runs, start, env.now, reported, finished, self._ended_copies())

    def _duration(self, plan: Plan) -> int:
        if plan.batch is None:
            return self.device.prefill_ns(plan)
        if plan.prefill:
            return self.device.mixed_ns(plan, plan.batch)
        return self.device.decode_ns(plan.batch)

    def _compute(self, duration: int) -> Process:
        if self.link.in_flight:
            duration += self.link.slowdown(self.env.now, duration)
        yield self._step_end.after(duration)

    # ------------------------------------------------------------------ copies

    def _copy(self, plan: Plan) -> Process:
        """Submit the plan's copies and wait for those it names; who lost KV to a failed load."""
        waits = set(plan.wait_for)
        free_ns = self.env.now
        for way in (Direction.TO_HOST, Direction.TO_DEVICE):
            free_ns = max(free_ns, self.env.now)
            for copy in plan.copies:
                if copy.direction is way:
                    job = self.link.submit(copy, free_ns)
                    if self._submits_itself:
                        free_ns = job.submitted_ns
            for job in list(self.link.in_flight.values()):
                if job.copy.direction is way and job.copy.copy_id in waits:
                    job.waited = True
                    yield job.done
        if self._submits_itself and free_ns > self.env.now:
            yield self.env.timeout(free_ns - self.env.now)
        return {
            job.copy.request_id
            for job in self.link.ended_jobs
            if not job.ok and job.waited and job.copy.direction is Direction.TO_DEVICE
        }

    def _ended_copies(self) -> tuple[CopyResult, ...]:
        jobs: list[Job] = self.link.ended_jobs
        if not jobs:
            return ()
        results = self._seen([job.record() for job in jobs])
        jobs.clear()
        return results

    # ------------------------------------------------------------------ what Loop asks

    def _now(self) -> int:
        return self.env.now

    def _serve(self, arrival: Arrival) -> Served:
        request = make_request(
            arrival,
            last_turn_known=self._last_turn_known,
            prefix_keys=self._keys(arrival.turn),
            block_names=self._names(arrival),
        )
        target = output_target(arrival.turn, self._longest)
        return Served(arrival.turn, arrival.arrival_ns, request, target)

    def _cancel_copy(self, copy_id: int) -> None:
        self.link.cancel(copy_id)

    def _settle(self, served: Served) -> None:
        self.device.leave(served)

    def _withhold(self, request_id: str) -> None:
        self.device.withhold(request_id)

    # ------------------------------------------------------------------ idleness

    def _idle(self, plan: Plan) -> Process:
        """Nothing runs until a copy ends, a turn arrives or a client leaves. Whether all is over: where
        turns are pushed, that is known only when nothing more will be."""
        env, link, begin = self.env, self.link, self.env.now
        while not link.ended_jobs:
            events: list[simpy.Event] = [] if self._pushed is None else [self._pushed()]
            if link.in_flight:
                link.on_end = env.event()
                events.append(link.on_end)
            wake = self._wake_ns
            if wake < NEVER:
                events.append(env.timeout(max(0, wake - env.now)))
            if not events:
                raise ProgressError(f"idle for ever: {', '.join(plan.waiting_on)}")
            yield simpy.AnyOf(env, events)
            # Whatever else happens at this instant happens before the next plan.
            yield self._step_end.after(0)
            if self._pushed is None or not self._is_done or link.ended_jobs:
                break
            if not link.in_flight:  # woken to hear that nothing more comes
                return True
        self.recorder.unnumbered(plan, self.scheduler.step + 1, begin)
        if self.scheduler.num_live:
            self.recorder.waited(self.scheduler.step + 1, begin, env.now)
        return False
