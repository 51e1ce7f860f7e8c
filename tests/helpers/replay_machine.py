"""A machine with a life of its own: what a real one does to the times, without the tensors.

Its clock never stands still, plans come later than steps end, copies end long before anybody looks,
some end badly, replies stop early, and somebody may stop the run. It counts its tokens itself and
shares no code with `sim/` but the records of a run. Where KV is found by name no reply stops early:
this machine has no tokens, and names blocks by the lengths that the workload says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from heapq import heappop, heappush

from policy.errors import ReleaseVerdict
from policy.plan import Copy, CopyResult, Direction, Outcome, Plan
from policy.request import Request
from runs.lineages import names_for
from runs.recorder import CopyRecord, Recorder
from runs.recording import IntTable, Recording
from runs.scenario import Scenario
from runs.serving import (
    Serving,
    aging_lengths,
    make_request,
    make_scheduler,
    output_target,
    settings_for,
    unservable,
)
from runs.turns import NEVER, TurnDriver
from traces.randomness import Streams
from traces.sources import open_workload
from traces.workload import Turn

SIZES = {"device_blocks": 64, "host_blocks": 64, "max_model_len": 400}
MS = 1_000_000


@dataclass
class Served:
    turn: Turn
    arrival_ns: int
    request: Request
    target: int
    produced: int = 0
    first_token_ns: int | None = None


@dataclass
class Transfer:
    copy: Copy
    submit_ns: int
    end_ns: int
    ok: bool
    waited: bool = False


def rough_run(
    scenario: Scenario, seed: int, *, failing: float = 0.0, stop: bool = False
) -> Recording:
    """Serve a scenario with times that only `seed` explains; in memory, with decisions."""
    settings = settings_for(scenario, **SIZES)
    streams = Streams(scenario.seed, scenario.run)
    workload = open_workload(scenario.workload, streams)
    serving = Serving(scenario, scenario.resolve_system(), settings, streams, workload)
    return RoughMachine(serving, random.Random(seed), failing, stop).run()


class RoughMachine:
    def __init__(self, serving: Serving, rng: random.Random, failing: float, stop: bool) -> None:
        self.serving = serving
        self.rng = rng
        self.failing = failing
        self.scheduler = make_scheduler(serving)
        self.driver = TurnDriver(serving.workload)
        self.names = names_for(serving.system, serving.settings, lambda _turn: ())
        self.recorder = Recorder(decisions=True, aging=aging_lengths(serving))
        self.now = 0
        self.plans_left = rng.randrange(20, 200) if stop else NEVER
        self.served: dict[str, Served] = {}
        self.in_flight: dict[int, Transfer] = {}
        self.busy_until = dict.fromkeys(Direction, 0)
        self.cancels: list[tuple[int, str]] = []
        self.last: Plan | None = None
        self.verdict: str | None = None

    # ------------------------------------------------------------------ the loop

    def run(self) -> Recording:
        try:
            self.serve()
        except ReleaseVerdict as verdict:
            self.verdict = str(verdict)
            self.recorder.unnumbered(None, self.scheduler.step + 1, self.now)
        for served in list(self.served.values()):
            self.end(served, "unfinished", self.now)
        settings = self.serving.settings
        return self.recorder.close(
            {
                "device_blocks": settings.device_blocks,
                "host_blocks": settings.host_blocks,
                "max_model_len": settings.max_model_len,
                "order": self.scheduler.order.name,
                "verdict": self.verdict,
            }
        )

    def serve(self) -> None:
        scheduler, driver = self.scheduler, self.driver
        while self.plans_left:
            self.plans_left -= 1
            now = self.pass_time(MS // 10)
            self.arrive(now)
            self.cancel(now)
            plan = scheduler.schedule(now)
            if not plan.is_numbered:
                self.recorder.unnumbered(plan, scheduler.step + 1, now)
            if plan.is_numbered or plan.has_commands:
                outcome = self.execute(plan, now)
            elif driver.is_done and not scheduler.num_live and not self.in_flight:
                return
            else:
                self.nap(now)
                outcome = Outcome(False, now, self.now, None, (), self.poll())
            scheduler.update(outcome)
            for name in outcome.finished:
                self.end(self.served[name], "finished", outcome.end_ns)

    def pass_time(self, most: int) -> int:
        self.now += self.rng.randrange(1, most)
        return self.now

    def nap(self, now: int) -> None:
        """Until something is due, or not quite, or far too long."""
        ends = [t.end_ns for t in self.in_flight.values()]
        leaves = [at for at, _ in self.cancels[:1]]
        wake = min([self.driver.next_ns, *ends, *leaves])
        assert wake < NEVER, "idle for ever"
        nap = max(0, wake - now)
        self.now += self.rng.choice([nap // 2, nap, nap + 30 * MS])

    def execute(self, plan: Plan, start: int) -> Outcome:
        recorder, step = self.recorder, self.scheduler.step
        free = tuple(self.scheduler.engine.levels())
        if plan.is_numbered:
            if plan is not self.last:
                recorder.planned(plan, step)
                self.last = plan
            recorder.decided(plan, step, start, free)
        for name, _why in plan.reject:
            self.end(self.served[name], "rejected", self.now)
        lost = self.copy(plan)
        stall = self.now - start
        if plan.runs:
            self.pass_time(40 * MS)
        finished = self.count_tokens(plan, lost, step)
        if plan.is_numbered:
            size = 0 if plan.batch is None else len(plan.batch.decode)
            row = (step, start, self.now, stall, 0, size, 0, *free, IntTable.NULL, IntTable.NULL)
            (recorder.stepped if plan.batch is None else recorder.decoded)(row)
        reported = None
        if lost:
            reported = tuple((n, int(n not in lost)) for n in plan.num_scheduled_tokens)
        return Outcome(plan.runs, start, self.now, reported, finished, self.poll())

    def count_tokens(self, plan: Plan, lost: set[str], step: int) -> tuple[str, ...]:
        finished = []
        computed, total = self.scheduler.num_computed, self.scheduler.num_tokens
        chunks = {name for name, count in plan.prefill if computed(name) + count < total(name)}
        for name in plan.num_scheduled_tokens:
            if name not in lost and name not in chunks:
                served = self.served[name]
                served.produced += 1
                if served.produced == served.target or self.stops_early():
                    finished.append(name)
        for name, count in plan.prefill:
            self.recorder.prefilled(name, step, count, produced=name not in lost | chunks)
        return tuple(sorted(finished))

    def stops_early(self) -> bool:
        return self.rng.random() < 0.01 and not self.serving.system.finds_by_name

    # ------------------------------------------------------------------ copies

    def copy(self, plan: Plan) -> set[str]:
        lost = set()
        for way in Direction:
            for copy in plan.copies:
                if copy.direction is way:
                    took = self.rng.randrange(1, 4 * MS) * (1 + copy.num_blocks)
                    end_ns = max(self.now, self.busy_until[way]) + took
                    self.busy_until[way] = end_ns
                    is_ok = self.rng.random() >= self.failing
                    self.in_flight[copy.copy_id] = Transfer(copy, self.now, end_ns, is_ok)
            for transfer in self.in_flight.values():
                if transfer.copy.copy_id in plan.wait_for and transfer.copy.direction is way:
                    transfer.waited = True
                    self.now = max(self.now, transfer.end_ns)
                    if not transfer.ok and way is Direction.TO_DEVICE:
                        lost.add(transfer.copy.request_id)
        for copy_id in plan.cancel:
            self.in_flight[copy_id].ok = False
        return lost

    def poll(self) -> tuple[CopyResult, ...]:
        """Some of the copies that have ended; every one that was waited for."""
        results = []
        blind = {way: self.rng.random() < 0.3 for way in Direction}
        must = {
            way: max(
                (i for i, t in self.in_flight.items() if t.waited and t.copy.direction is way),
                default=-1,
            )
            for way in Direction
        }
        for copy_id, transfer in list(self.in_flight.items()):
            way = transfer.copy.direction
            if transfer.end_ns > self.now or (blind[way] and copy_id > must[way]):
                continue
            del self.in_flight[copy_id]
            copy = transfer.copy
            self.recorder.copied(
                CopyRecord(
                    copy_id,
                    copy.request_id,
                    way.value,
                    copy.num_blocks,
                    len(copy.runs),
                    1,
                    1,
                    transfer.submit_ns,
                    transfer.submit_ns,
                    transfer.end_ns,
                    transfer.ok,
                    transfer.waited,
                ),
                self.scheduler.step + 1,
            )
            results.append(CopyResult(copy_id, transfer.ok, transfer.end_ns))
        return tuple(results)

    # ------------------------------------------------------------------ arrivals and departures

    def arrive(self, now: int) -> None:
        for arrival in self.driver.due(now):
            turn = arrival.turn
            request = make_request(
                arrival,
                last_turn_known=self.serving.scenario.last_turn_known,
                block_names=self.names(arrival),
            )
            target = output_target(turn, self.serving.settings.max_model_len)
            served = Served(turn, arrival.arrival_ns, request, target)
            self.recorder.arrived(turn, arrival.due_ns)
            self.served[arrival.request_id] = served
            if unservable(turn) is not None:
                self.end(served, "rejected", now)
                continue
            self.scheduler.add(request, now)
            if turn.cancel_ns is not None:
                heappush(self.cancels, (arrival.arrival_ns + turn.cancel_ns, arrival.request_id))

    def cancel(self, now: int) -> None:
        while self.cancels and self.cancels[0][0] <= now:
            at, name = heappop(self.cancels)
            if self.scheduler.cancel(name, now):
                self.end(self.served[name], "cancelled", now, at)

    def end(self, served: Served, status: str, now: int, cancel_ns: int | None = None) -> None:
        del self.served[served.turn.request_id]
        self.recorder.ended(
            served.turn,
            served.arrival_ns,
            served.request,
            status=status,
            end_ns=now,
            output_tokens=served.produced,
            finish_ns=now if status == "finished" else None,
            cancel_ns=cancel_ns,
            cancel_seen_step=None if cancel_ns is None else self.scheduler.step + 1,
        )
        if status != "unfinished":
            self.driver.ended(served.turn.request_id, now)
