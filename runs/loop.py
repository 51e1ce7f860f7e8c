"""What the loops of both machines share: turns arrive, leave and end; copies end; a step has a row.

How time passes, what computes and what copies is the machine's (`sim/engine.py`, `realrun/engine.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

from policy.plan import CopyResult, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from runs.recorder import CopyRecord, Recorder
from runs.recording import IntTable
from runs.serving import Serving, client_facts, planner_of, unservable
from runs.turns import NEVER, Arrival, Turns
from traces.workload import Turn

NULL = IntTable.NULL


class Served:
    """A turn being served. `target`: output tokens until it is done; `produced`: those so far."""

    __slots__ = ("arrival_ns", "first_token_ns", "produced", "request", "target", "turn")

    def __init__(self, turn: Turn, arrival_ns: int, request: Request, target: int) -> None:
        self.turn = turn
        self.arrival_ns = arrival_ns
        self.request = request
        self.target = target
        self.produced = 0
        self.first_token_ns: int | None = None


S = TypeVar("S", bound=Served)


class Loop(ABC, Generic[S]):
    """One engine loop's book of turns. `served`: those that are live, by request id.

    `check` is called after every schedule and update, `progress` is told how many turns have ended.
    `verdict` is what vLLM 0.3.3 would have died of, if it did.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        driver: Turns,
        recorder: Recorder,
        served: dict[str, S],
        *,
        check: Callable[[Scheduler], None] | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.scheduler = scheduler
        self.driver = driver
        self.recorder = recorder
        self.served = served
        self.verdict: str | None = None
        self.num_ended = 0
        self._frontend_ns = 0  # turns are seen so much later than they arrive
        self._check = check
        self._progress = progress
        self._last: Plan | None = None  # the last numbered one, which may stand
        self._cancels: list[tuple[int, str]] = []  # when, who; a heap

    # ------------------------------------------------------------------ the machine's side

    @abstractmethod
    def _now(self) -> int:
        """Nanoseconds since the run began."""

    @abstractmethod
    def _serve(self, arrival: Arrival) -> S:
        """What the machine needs of a turn that has arrived."""

    @abstractmethod
    def _cancel_copy(self, copy_id: int) -> None:
        """The source of a copy under way is kept."""

    def _settle(self, served: S) -> None:
        """A turn is about to end: bring its counts up to date."""

    def _ended(self, served: S, row: tuple[Any, ...], status: str) -> None:
        """A turn has ended with this row of requests.parquet."""

    def _withhold(self, request_id: str) -> None:
        """The step just run gave a decoding request no token."""

    # ------------------------------------------------------------------ arrivals and departures

    def _arrive(self, now: int, seen: int | None = None) -> None:
        """`seen`: turns are seen that arrived until then, if that is not now."""
        for arrival in self.driver.due(now if seen is None else seen):
            served = self._serve(arrival)
            self.recorder.arrived(served.turn, arrival.due_ns)
            self.served[arrival.request_id] = served
            why = unservable(served.turn)
            if why is not None:
                self._end(served, "rejected", why)
                continue
            self.scheduler.add(served.request, now)
            if served.turn.cancel_ns is not None:
                at = arrival.arrival_ns + served.turn.cancel_ns
                heappush(self._cancels, (at, arrival.request_id))

    def leave(self, request_id: str, at_ns: int) -> None:
        """A client has left, of which the workload knew nothing. Call it from `driver.due`."""
        heappush(self._cancels, (at_ns, request_id))

    def _cancel(self, now: int) -> None:
        while self._cancels and self._cancels[0][0] <= now:
            at, request_id = heappop(self._cancels)
            if self.scheduler.cancel(request_id, now):
                self._end(self.served[request_id], "cancelled", "client left", cancel_ns=at)

    def _finish(self, finished: Iterable[str], end_ns: int) -> None:
        for request_id in finished:
            served = self.served[request_id]
            self._settle(served)
            capped = served.produced == served.target < served.turn.output_tokens
            if served.first_token_ns is None:
                served.first_token_ns = end_ns
            self._end(served, "finished", "length cap" if capped else "", finish_ns=end_ns)

    def _end(
        self,
        served: S,
        status: str,
        reason: str,
        *,
        cancel_ns: int | None = None,
        finish_ns: int | None = None,
    ) -> None:
        """Write a turn down and let its next one come."""
        name = served.turn.request_id
        del self.served[name]
        self._settle(served)
        end_ns = self._now() if finish_ns is None else finish_ns
        row = self.recorder.ended(
            served.turn,
            served.arrival_ns,
            served.request,
            status=status,
            end_ns=end_ns,
            reason=reason,
            output_tokens=served.produced,
            first_token_ns=served.first_token_ns,
            finish_ns=finish_ns,
            cancel_ns=cancel_ns,
            cancel_seen_step=None if cancel_ns is None else self.scheduler.step + 1,
        )
        self._ended(served, row, status)
        if status != "unfinished":
            self.driver.ended(name, end_ns)
        self.num_ended += 1
        if self._progress is not None:
            self._progress(self.num_ended)

    def _leave_unfinished(self) -> None:
        """The run ends here: write down who was still being served."""
        for served in list(self.served.values()):
            self._end(served, "unfinished", "the engine stopped")

    @property
    def _wake_ns(self) -> int:
        """When the next turn arrives or the next client leaves."""
        arrives = self.driver.next_ns
        if arrives < NEVER:
            arrives += self._frontend_ns
        return min(arrives, self._cancels[0][0] if self._cancels else NEVER)

    @property
    def _is_done(self) -> bool:
        """Nobody is served, and nobody will come."""
        return self.driver.is_done and not self.scheduler.num_live

    # ------------------------------------------------------------------ what happened

    def _begin(self, plan: Plan, step: int, start_ns: int, free: tuple[int, int]) -> None:
        """Write a plan down, and do what takes no time: cancel copies, reject turns. `step`: its number,
        or the last one's if it has none; `free`: blocks before it, device and host."""
        recorder = self.recorder
        if plan.is_numbered:
            if plan is not self._last:
                self._last = plan
                recorder.planned(plan, step)
            recorder.decided(plan, step, start_ns, free)
        else:
            recorder.unnumbered(plan, step + 1, start_ns)
        for copy_id in plan.cancel:
            self._cancel_copy(copy_id)
        for request_id, why in plan.reject:
            self._end(self.served[request_id], "rejected", why)

    def _seen(self, records: Iterable[CopyRecord]) -> tuple[CopyResult, ...]:
        """Ends of copies, seen before the next plan."""
        seen_step = self.scheduler.step + 1
        results = []
        for record in records:
            self.recorder.copied(record, seen_step)
            results.append(CopyResult(record.copy_id, record.ok, record.end_ns))
        return tuple(results)

    def _report(self, plan: Plan, lost: set[str]) -> tuple[tuple[str, int], ...]:
        """Tokens one by one, because some requests' loads failed and they got none."""
        if plan.batch is not None:
            for request_id in lost.intersection(plan.batch.decode):
                self._withhold(request_id)
                self.recorder.withheld(request_id)
        return tuple(
            (request_id, int(request_id not in lost)) for request_id in plan.num_scheduled_tokens
        )

    def _stepped(
        self,
        plan: Plan,
        step: int,
        times: tuple[int, int, int],
        size: int,
        kv_tokens: int,
        free: tuple[int, int],
    ) -> None:
        """The row of a numbered step. `times`: start, end and stall; `size`, `kv_tokens`: of the batch."""
        prefilled = sum(count for _, count in plan.prefill)
        row = (
            step,
            *times,
            prefilled,
            size,
            kv_tokens,
            *free,
            NULL if plan.wait_cost is None else plan.wait_cost,
            NULL if plan.overlap_cost is None else plan.overlap_cost,
        )
        (self.recorder.stepped if plan.batch is None else self.recorder.decoded)(row)
        self.recorder.flush_if_full()


def facts_of(serving: Serving, loop: Loop[Any], *, drawn: str) -> dict[str, Any]:
    """What the tables do not say about a run, on either machine (run.json). `drawn`: what differs
    between its replications."""
    scheduler, driver, header = loop.scheduler, loop.driver, serving.workload.header
    settings = serving.settings
    return {
        "scenario": serving.scenario.name,
        "system": serving.system.name,
        "switches": serving.system.switches(),
        "order": scheduler.order.name,
        "planner": planner_of(scheduler),
        "workload": {
            "source": header.source,
            "composed_from": list(header.composed_from),
            "rows": driver.num_rows,
            "drawn": drawn,
            **client_facts(driver),
        },
        "device_blocks": settings.device_blocks,
        "host_blocks": settings.host_blocks,
        "block_size": settings.block_size,
        "max_model_len": settings.max_model_len,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_num_seqs": settings.max_num_seqs,
        "priority_updates": scheduler.num_updates,
        **scheduler.engine.facts(),
        "verdict": loop.verdict,
    }
