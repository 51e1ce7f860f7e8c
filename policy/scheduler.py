"""The scheduler: `add`, `cancel`, `schedule`, `update`. Used unchanged by every machine.

    plan = scheduler.schedule(now_ns)
    outcome = machine.execute(plan)
    scheduler.update(outcome)

Arrivals with `arrival_ns <= now_ns` enter between `update` and `schedule`, in (arrival, id) order.
At one instant the order is: finish, copy completions, arrivals, priority update, plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from policy.choices.catalog import Decisions, named_decisions
from policy.choices.movement import BACKUPS
from policy.choices.rates import Rates
from policy.engines.ranked import RulePlanner
from policy.engines.vllm_033 import ReleasePlanner
from policy.errors import ConfigError, InvariantError, ProgressError
from policy.memory.backup import BackupMemory
from policy.memory.ledger import Ledger
from policy.memory.memory import Memory
from policy.memory.sharing import SharedMemory
from policy.orders.base import Order
from policy.plan import CopyResult, Outcome, Plan
from policy.pools.allocation import Pool
from policy.pools.free_runs import BuddyRuns, FreeRuns
from policy.pools.groups import GroupPool
from policy.pools.paged import PagedPool
from policy.pools.prefix import PrefixPool
from policy.request import Move, Request
from policy.settings import Settings
from policy.state import State
from policy.systems import System
from policy.views import Draw


class Scheduler:
    """One engine's scheduler. `draw` is the only randomness (which tail a pool takes back).
    `decisions`: in place of those that the system names."""

    def __init__(
        self,
        settings: Settings,
        system: System,
        order: Order,
        draw: Draw,
        rates: Rates | None = None,
        decisions: Decisions | None = None,
    ) -> None:
        if system.shape == "chunked" and settings.max_num_batched_tokens <= settings.max_num_seqs:
            raise ConfigError(
                f"limits.max_num_batched_tokens: {settings.max_num_batched_tokens} is not above"
                f" max_num_seqs {settings.max_num_seqs}; under shape chunked every decode takes a token"
                " of it, and prompts what is left"
            )
        self.settings = settings
        self.system = system
        self.order = order
        device = make_pool("device", settings.device_blocks, system, draw)
        host = make_pool("host", settings.host_blocks, system, draw)
        decisions = decisions or named_decisions(system, settings, order)
        ledger = Ledger(
            host, settings.block_size, decisions.eviction, whole=system.contamination == "whole"
        )
        increment = settings.host_increment if system.reuse else 0
        size = settings.block_size
        #: The device side of `memory` where prompts share what they begin with.
        self.sharing: SharedMemory | None = None
        if system.prefix_sharing:
            pool = PrefixPool(device, (settings.prefix_block or size) // size)
            self.sharing = SharedMemory(
                pool, ledger, size, reuse=system.reuse, host_increment=increment
            )
        backups = BACKUPS.get(system.movement)
        backing = (
            BackupMemory(device, ledger, size, reuse=True, host_increment=increment)
            if backups is not None
            else None
        )
        memory = (
            self.sharing
            or backing
            or Memory(device, ledger, size, reuse=system.reuse, host_increment=increment)
        )
        self._backs_up_at_once = backups is not None and not backups.is_lazy
        self._low = settings.low_blocks if system.movement == "proactive" else 0
        self.state = State(
            settings,
            system,
            memory,
            order,
            decisions,
            rates or Rates(),
            self.sharing,
            backing,
        )
        self.follows_release = system.fcfs_planner == "release" and type(order) is Order
        self._planner: RulePlanner | ReleasePlanner = (
            ReleasePlanner(self.state) if self.follows_release else RulePlanner(self.state)
        )
        # Nobody else reads the times of steps.
        self._learns = system.overlap == "adaptive"
        self._learns_prefill = system.preemption == "cost"
        self._plan = Plan()
        self._changed = True  # the next plan must be decided
        self.is_plain = False  # the plan handed out last holds no command
        self._updates = 0
        self._next_update_step = settings.update_every if order.refreshes else None
        self._next_update_ns = settings.update_every_ns if order.refreshes else None
        self._idle_plans = 0

    # ------------------------------------------------------------------ what machines read

    @property
    def step(self) -> int:
        """Number of the last plan handed out that had one; -1 before the first."""
        return self.state.step - 1

    @property
    def num_updates(self) -> int:
        """Priority updates so far."""
        return self._updates

    def block_table(self, request_id: str) -> Sequence[int]:
        """Device block ids of a resident request, in logical order. Read it, do not keep it."""
        context = self.state.live[request_id].context
        assert context.device is not None
        return context.device.blocks

    def num_tokens(self, request_id: str) -> int:
        """Prompt plus generated tokens of a live request."""
        return self.state.live[request_id].num_tokens

    def num_computed(self, request_id: str) -> int:
        """Tokens of a live request that does not decode whose KV is on the device: where the chunk
        that a plan names for it begins."""
        return self.state.live[request_id].context.device_tokens

    def request(self, request_id: str) -> Request:
        """A live request."""
        return self.state.live[request_id]

    @property
    def num_live(self) -> int:
        """Requests neither finished, rejected nor cancelled."""
        return len(self.state.live)

    # ------------------------------------------------------------------ the interface

    def add(self, request: Request, now_ns: int) -> None:
        """A turn has arrived. Raises InvariantError for an id that is already live."""
        if request.request_id in self.state.live:
            raise InvariantError(f"{request.request_id} is live already")
        self.state.now_ns = now_ns
        self._planner.enter(request)
        self._changed = True

    def cancel(self, request_id: str, now_ns: int) -> bool:
        """The client went away. False if the request is not live (any more)."""
        request = self.state.live.get(request_id)
        if request is None:
            return False
        self.state.now_ns = now_ns
        self._planner.leave(request)
        self.state.cancel(request)
        self._changed = True
        return True

    def schedule(self, now_ns: int) -> Plan:
        """The next plan; the same object as before while nothing has changed.

        Raises ProgressError if nothing can ever run, ReleaseVerdict where vLLM 0.3.3 would stop.
        """
        state = self.state
        state.now_ns = now_ns
        if self._next_update_step is not None and state.step >= self._next_update_step:
            self._next_update_step = state.step + (self.settings.update_every or 1)
            self._refresh(now_ns)
        elif self._next_update_ns is not None and now_ns >= self._next_update_ns:
            period = self.settings.update_every_ns or 1
            skipped = (now_ns - self._next_update_ns) // period
            self._next_update_ns += (skipped + 1) * period
            self._updates += skipped
            self._refresh(now_ns)
        if not self._changed and state.step != self._planner.wake_step:
            plan = self._plan
            if self.is_plain and plan.batch is None:
                return plan
            growing = state.growing()
            free = state.memory.device.num_available
            if self._backs_up_at_once and growing:
                pass  # blocks have filled up
            elif self._low and state.room_left() < self._low:
                pass  # somebody may have to leave
            elif free >= len(growing) + self._planner.strict_growth:
                if not self.is_plain:
                    # Only now, since a batch that is made must be handed out, or whoever reads it
                    # never hears of who joined. A plan with commands may not come again.
                    plan = self._plan = Plan(batch=state.standing_batch())
                    self.is_plain = True
                    if plan.batch is None:
                        return plan
                if growing:
                    state.grow(growing)
                state.step += 1
                return plan
        return self._decide()

    def update(self, outcome: Outcome) -> None:
        """Fold in what happened: tokens, then finished requests, then copies."""
        state = self.state
        plan = self._plan
        if outcome.ran:
            if plan.batch is not None:
                state.clock.count += 1
                if self._learns and not plan.wait_for:
                    state.rates.saw_step(outcome.end_ns - outcome.start_ns)
            elif self._learns_prefill and not plan.wait_for:
                state.rates.saw_prefill(plan, outcome.end_ns - outcome.start_ns)
            if outcome.tokens is not None:
                self._withhold(plan, outcome.tokens)
            if state.prefilling:
                self._prefilled(outcome)
            if outcome.finished:
                self._finish(outcome.finished)
        if outcome.copies:
            self._copies_ended(outcome.copies)

    # ------------------------------------------------------------------ pieces

    def _copies_ended(self, copies: tuple[CopyResult, ...]) -> None:
        """Fold in ended copies. A store that went well changes a decision only through the room it
        frees."""
        state, planner = self.state, self._planner
        for result in copies:
            flight = state.memory.complete(result.copy_id, ok=result.ok)
            if result.ok:
                state.rates.saw_copy(flight, result.done_ns)
            if not (result.ok and flight.to_host) or not planner.is_settled:
                self._changed = True
            if state.copy_ended(flight, ok=result.ok):
                assert flight.context is not None
                planner.requeue(flight.context.owner)

    def _decide(self) -> Plan:
        state = self.state
        plan = self._planner.decide()
        if plan.is_numbered:
            state.step += 1
        self._plan = plan
        self.is_plain = not plan.has_commands
        self._changed = not self.is_plain and not self._planner.is_settled
        if plan.runs or not state.live:
            self._idle_plans = 0
        else:
            self._idle_plans += 1
            if self._idle_plans > self.settings.idle_limit:
                raise ProgressError(
                    f"{self._idle_plans} plans in a row ran nothing with {len(state.live)} live"
                    f" requests; last waited on {', '.join(plan.waiting_on)}"
                )
        return plan

    def _refresh(self, now_ns: int) -> None:
        self.order.update(self._updates, now_ns)
        self._updates += 1
        self.state.refresh_ranks()
        self._changed = True

    def _withhold(self, plan: Plan, tokens: tuple[tuple[str, int], ...]) -> None:
        """Check an explicit report and take back the tokens of requests whose copy failed."""
        state = self.state
        planned = plan.num_scheduled_tokens
        if sorted(request_id for request_id, _ in tokens) != sorted(planned):
            raise InvariantError("the outcome's requests are not the plan's")
        for request_id, count in tokens:
            if count not in (0, 1):
                raise InvariantError(f"{request_id}: {count} tokens in one step")
            request = state.live[request_id]
            if count == 0 and request.is_decoding:
                state.withhold(request)

    def _prefilled(self, outcome: Outcome) -> None:
        """Each request whose prefill is complete has its first new token and joins the batch, in
        queue order; one of which a chunk was computed waits for the next step."""
        state = self.state
        failed = {request_id for request_id, count in outcome.tokens or () if count == 0}
        for request, computed in state.prefilling.items():
            if request.request_id in failed:
                continue
            state.memory.settle(request.context, computed)
            if self.sharing is not None:
                self.sharing.publish(request.context)
            if computed < request.num_tokens:
                request.is_begun = True
                request.move(Move.CHUNK)
                continue
            request.add_token()
            state.join_batch(request)
        state.prefilling.clear()

    def _finish(self, finished: tuple[str, ...]) -> None:
        self._changed = True
        for request_id in finished:
            request = self.state.live[request_id]
            if not request.is_decoding:
                raise InvariantError(f"{request_id} finished without a token: {request!r}")
            self.state.finish(request)


def make_pool(name: str, num_blocks: int, system: System, draw: Draw) -> Pool:
    """A pool of the system's kind; both tiers use the same, since one side alone gives nothing."""
    if system.allocator == "paged":
        return PagedPool(name, num_blocks)
    space = BuddyRuns(num_blocks) if system.allocator == "buddy" else FreeRuns(num_blocks)
    return GroupPool(name, space, picker(draw, f"reclaim-{name}"))


def picker(draw: Draw, purpose: str) -> Callable[[int], int]:
    """`pick(n)`: the next of a pure sequence of draws, in 0..n-1."""
    calls = 0

    def pick(n: int) -> int:
        nonlocal calls
        calls += 1
        return draw(purpose, "", calls) % n

    return pick
