"""The engine loop on a real machine: schedule, execute, update. The twin of `sim/engine.py`.

One thread runs the loop, the model and all bookkeeping; the swap manager's workers only copy. The
policies are those of `policy/`, as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

import runs.loop
from policy.errors import ProgressError, ReleaseVerdict
from policy.plan import Batch, CopyResult, Direction, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.views import BlockNames
from realrun.journal import Journal
from realrun.prompts import Prompts
from realrun.runner import Runner, Work
from realrun.swap import SwapManager
from runs.loop import Loop
from runs.recorder import Recorder
from runs.serving import longest_context, make_request, output_target
from runs.turns import NEVER, Arrival, Turns
from traces.block_names import TokenNames
from traces.prefixes import keys_from_tokens
from traces.workload import Turn

#: Chooses the next token of each row: (logits, request ids, positions) -> token ids.
Sampler = Callable[[torch.Tensor, Sequence[str], Sequence[int]], list[int]]

#: The longest the engine sleeps before it looks up again, in seconds.
NAP_S = 0.05
#: As long, where turns may come while it waits for a copy.
LIVE_NAP_S = 0.002
#: How long an interrupted engine waits for copies under way.
DRAIN_S = 10.0


class Clock:
    """Nanoseconds since the run began."""

    def __init__(self) -> None:
        self._begin = time.perf_counter_ns()

    def __call__(self) -> int:
        """Now."""
        return time.perf_counter_ns() - self._begin


class Served(runs.loop.Served):
    """A turn being served and its tokens: the prompt, and what was generated behind it."""

    __slots__ = ("tokens",)

    def __init__(
        self, turn: Turn, arrival_ns: int, request: Request, target: int, tokens: list[int]
    ) -> None:
        super().__init__(turn, arrival_ns, request, target)
        self.tokens = tokens

    @property
    def output(self) -> list[int]:
        """Tokens generated so far."""
        return self.tokens[len(self.tokens) - self.produced :]


class Live(NamedTuple):
    """What a live driver brings along. `ends(request_id, produced, token)`: whether a reply is over with
    this token, asked once for each; `nap` waits for news, for so many seconds at most."""

    driver: Turns
    prompts: Prompts
    sample: Sampler
    ends: Callable[[str, int, int], bool]
    nap: Callable[[float], None]


class Parts(NamedTuple):
    """What an engine is made of. `sample` None: greedy, where the runner knows a shorter way. `live`: its
    driver, prompts and sampler are these too."""

    scheduler: Scheduler
    driver: Turns
    runner: Runner
    swap: SwapManager
    prompts: Prompts
    sample: Sampler | None
    recorder: Recorder
    journal: Journal
    clock: Callable[[], int]
    live: Live | None = None


class Engine(Loop[Served]):
    """One serving engine. `run` serves until every turn has ended, or `stop` was called.

    `eos`: token ids that end a reply; empty where the workload's output lengths rule.
    """

    def __init__(
        self,
        parts: Parts,
        *,
        last_turn_known: bool,
        eos: frozenset[int] = frozenset(),
        check: Callable[[Scheduler], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(
            parts.scheduler, parts.driver, parts.recorder, {}, check=check, progress=progress
        )
        self.runner = parts.runner
        self.swap = parts.swap
        self.journal = parts.journal
        self._prompts = parts.prompts
        self._sample = parts.sample
        self._clock = parts.clock
        self._live = parts.live
        self.was_stopped = False
        self.largest_batch = self.largest_prefill = 0
        self._last_turn_known = last_turn_known
        self._eos = eos
        self._history: dict[str, list[int]] = {}  # ended request -> its tokens, for its children
        self._batch: Batch | None = None  # whose `_rows` are
        self._rows: list[Served] = []
        self._ran: Batch | None = None  # what the last step ran, and nobody else

    def watch(self, check: Callable[[Scheduler], None] | None) -> None:
        """Have this called after every schedule and update, in place of the check there was."""
        self._check = check

    def stop(self) -> None:
        """Serve nobody any more: what is under way ends as unfinished. May be called by a signal."""
        self.was_stopped = True

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Serve. Sets `verdict` instead of raising ReleaseVerdict."""
        scheduler, driver = self.scheduler, self.driver
        now = 0
        try:
            while not self.was_stopped:
                now = self._clock()
                if driver.next_ns <= now:
                    self._arrive(now)
                if self._cancels and self._cancels[0][0] <= now:
                    self._cancel(now)
                plan = scheduler.schedule(now)
                if self._check is not None:
                    self._check(scheduler)
                if plan.is_numbered or plan.has_commands:
                    outcome = self._execute(plan, now)
                elif self._is_done and not self.swap.in_flight:
                    return
                else:
                    self._idle(plan, now)
                    outcome = Outcome(False, now, self._clock(), None, (), self._ended_copies())
                scheduler.update(outcome)
                self._finish(outcome.finished, outcome.end_ns)
                if self._check is not None:
                    self._check(scheduler)
        except ReleaseVerdict as verdict:
            self.verdict = str(verdict)
            self.recorder.unnumbered(None, scheduler.step + 1, now)
        self._abandon()

    def _execute(self, plan: Plan, start: int) -> Outcome:
        """Commands first, then what the plan runs."""
        step = self.scheduler.step
        free = self.scheduler.engine.levels()
        self._begin(plan, step, start, free)
        lost: set[str] = set()
        if plan.copies or plan.wait_for:
            lost = self._copy(plan)
        stall = self._clock() - start
        self._run(plan)
        if lost:
            self._ran = None
        end = self._clock()
        finished = self._fold(plan, lost, step, end)
        if plan.is_numbered:
            self._record(plan, step, start, end, stall, free)
        reported = self._report(plan, lost) if lost else None
        return Outcome(plan.runs, start, end, reported, finished, self._ended_copies())

    # ------------------------------------------------------------------ computing

    def _decoding(self, plan: Plan) -> list[Served]:
        """Who decodes in a plan, in order; looked up once for a standing batch."""
        batch = plan.batch
        if batch is not self._batch:
            self._batch = batch
            self._rows = [] if batch is None else [self.served[name] for name in batch.decode]
        return self._rows

    def _work(self, plan: Plan) -> tuple[list[Served], list[Work]]:
        """Everybody who computes in this step and their new tokens, prompts (or chunks) first."""
        scheduler, table_of = self.scheduler, self.scheduler.block_table
        who, work = [], []
        for request_id, count in plan.prefill:
            served = self.served[request_id]
            past = scheduler.num_computed(request_id)
            who.append(served)
            work.append(Work(served.tokens[past : past + count], past, table_of(request_id)))
        if plan.batch is not None:
            rows = self._decoding(plan)
            who += rows
            work += [
                Work((known := served.tokens)[-1:], len(known) - 1, table_of(name))
                for served, name in zip(rows, plan.batch.decode, strict=True)
            ]
        return who, work

    def _run(self, plan: Plan) -> None:
        """Compute what the plan runs; copies submitted from then on come behind it."""
        if not self._follows(plan) or not self._compute_again(plan):
            who, work = self._work(plan)
            if not work:
                return
            self._compute(who, work, len(plan.prefill))
            self._ran = None if plan.prefill else plan.batch
        self.swap.set_barrier()

    def _follows(self, plan: Plan) -> bool:
        """Whether the plan runs exactly whom the last step ran, who have what it gave them: the same
        standing batch, whose block tables can only have grown."""
        return (
            plan.batch is not None
            and plan.batch is self._ran
            and not plan.prefill
            and self._sample is None
            and not self.swap.guard.is_busy
        )

    def _compute_again(self, plan: Plan) -> bool:
        """Run the last step's batch once more, if the runner can without being told about it."""
        tokens = self.runner.again()
        if tokens is None:
            return False
        for served, token in zip(self._decoding(plan), tokens, strict=True):
            served.tokens.append(token)
        return True

    def _compute(self, who: list[Served], work: list[Work], prompts: int) -> None:
        """Run the step and append everybody's next token; behind a chunk of a prompt, and those are the
        first so many, there is none."""
        size = self.scheduler.settings.block_size
        if self.swap.guard.is_busy:
            self.swap.guard.check_compute(
                one.table[position // size]
                for one in work
                for position in range(one.past, one.past + len(one.tokens))
            )
        if self._sample is None:
            tokens = self.runner.greedy_step(work, len(work) - prompts)
        else:
            names = [served.turn.request_id for served in who]
            positions = [one.past + len(one.tokens) for one in work]
            logits = self.runner.step(work, len(work) - prompts)
            tokens = self._sample(logits, names, positions)
        for served, one, token in zip(who[:prompts], work, tokens, strict=False):
            if one.past + len(one.tokens) == len(served.tokens):
                served.tokens.append(token)
        for served, token in zip(who[prompts:], tokens[prompts:], strict=True):
            served.tokens.append(token)

    def _fold(self, plan: Plan, lost: set[str], step: int, end: int) -> tuple[str, ...]:
        """Count the tokens of the step just run; take back those of requests that lost their KV.
        Returns who is done, in id order."""
        finished, eos, live = [], self._eos, self._live
        computed = self.scheduler.num_computed
        whole = {n for n, c in plan.prefill if computed(n) + c == self.scheduler.num_tokens(n)}
        ran = [self.served[name] for name, _ in plan.prefill if name in whole]
        ran += self._decoding(plan)
        for served in ran:
            if lost and served.turn.request_id in lost:
                served.tokens.pop()
                continue
            served.produced += 1
            if served.first_token_ns is None:
                served.first_token_ns = end
            is_over = served.produced == served.target or (eos and served.tokens[-1] in eos)
            if live is not None:
                over = live.ends(served.turn.request_id, served.produced, served.tokens[-1])
                is_over = is_over or over
            if is_over:
                finished.append(served.turn.request_id)
        for name, count in plan.prefill:
            self.recorder.prefilled(name, step, count, produced=name in whole and name not in lost)
        finished.sort()
        return tuple(finished)

    def _record(
        self, plan: Plan, step: int, start: int, end: int, stall: int, free: tuple[int, int]
    ) -> None:
        batch = plan.batch
        size = 0 if batch is None else len(batch.decode)
        self.largest_batch = max(self.largest_batch, size)
        self.largest_prefill = max(self.largest_prefill, sum(count for _, count in plan.prefill))
        kv_tokens = sum([len(served.tokens) for served in self._decoding(plan)]) - size
        self._stepped(plan, step, (start, end, stall), size, kv_tokens, free)

    # ------------------------------------------------------------------ copies

    def _copy(self, plan: Plan) -> set[str]:
        """Submit the plan's copies and wait for those it names, those to the host first, since
        others may go into what they vacate. Returns who lost KV to a failed load."""
        swap = self.swap
        waits = set(plan.wait_for)
        lost = set()
        for way in Direction:
            for copy in plan.copies:
                if copy.direction is way:
                    swap.submit(copy)
            named = [
                transfer
                for copy_id, transfer in swap.in_flight.items()
                if copy_id in waits and transfer.copy.direction is way
            ]
            swap.wait(transfer.copy.copy_id for transfer in named)
            if way is Direction.TO_DEVICE:
                lost = {t.copy.request_id for t in named if not t.ok}
            for transfer in named:
                swap.guard.give_back(transfer.copy)
        return lost

    def _ended_copies(self) -> tuple[CopyResult, ...]:
        return self._seen([self.swap.record(transfer) for transfer in self.swap.poll()])

    # ------------------------------------------------------------------ what Loop asks

    def _now(self) -> int:
        return self._clock()

    def _serve(self, arrival: Arrival) -> Served:
        """The turn with its real tokens, and so its real length."""
        history = [] if arrival.parent_id is None else self._history.get(arrival.parent_id, [])
        turn = arrival.turn
        tokens = self._prompts.prompt(turn, history) if turn.input_tokens else []
        turn = replace(turn, input_tokens=len(tokens))
        settings = self.scheduler.settings
        keys: tuple[int, ...] = ()
        names: BlockNames | None = None
        if self.scheduler.system.finds_by_name:
            names = TokenNames(tokens, settings.block_size)
        elif self.scheduler.system.shares_prefixes:
            keys = keys_from_tokens(tokens, settings.prefix_block or settings.block_size)
        request = make_request(
            arrival._replace(turn=turn),
            last_turn_known=self._last_turn_known,
            prefix_keys=keys,
            block_names=names,
        )
        target = output_target(turn, longest_context(settings, self.scheduler.system))
        return Served(turn, arrival.arrival_ns, request, target, tokens)

    def _cancel_copy(self, copy_id: int) -> None:
        self.swap.cancel(copy_id)

    def _ended(self, served: Served, row: tuple[Any, ...], status: str) -> None:
        self.journal.ended(row, served.output)
        if status != "unfinished" and self._live is None:
            self._history[served.turn.request_id] = served.tokens

    def _abandon(self) -> None:
        """The run ends here: let copies end, and write down who was still being served."""
        deadline = self._clock() + int(DRAIN_S * 1e9)
        while self.swap.in_flight and self._clock() < deadline:
            self.swap.wait_for_news(NAP_S)
            self._ended_copies()
        self._leave_unfinished()

    # ------------------------------------------------------------------ idleness

    def _idle(self, plan: Plan, now: int) -> None:
        """Nothing runs until a copy ends, a turn arrives or a client leaves."""
        self.recorder.unnumbered(plan, self.scheduler.step + 1, now)
        wake = self._wake_ns
        may_hear = self._live is not None and not self.scheduler.num_live
        if not self.swap.in_flight and wake == NEVER and not may_hear:
            raise ProgressError(f"idle for ever: {', '.join(plan.waiting_on)}")
        nap = min(NAP_S, max(0, wake - now) / 1e9)
        if self.swap.in_flight:
            self.swap.wait_for_news(nap if self._live is None else min(nap, LIVE_NAP_S))
        else:
            (time.sleep if self._live is None else self._live.nap)(nap)
        if self.scheduler.num_live:
            self.recorder.waited(self.scheduler.step + 1, now, self._clock())
