"""The scheduler: `add`, `cancel`, `schedule`, `update`. Used unchanged by every machine.

    plan = scheduler.schedule(now_ns)
    outcome = machine.execute(plan)
    scheduler.update(outcome)

Arrivals with `arrival_ns <= now_ns` enter between `update` and `schedule`, in (arrival, id) order.
At one instant the order is: finish, copy completions, arrivals, priority update, plan.

Thin over an engine (`policy/engines/base.py`), which decides and says until when its plan holds. Until
then nothing is decided: the same plan comes back, and the batch grows where a block is full.
"""

from __future__ import annotations

from collections.abc import Sequence

from policy.choices.catalog import Decisions
from policy.choices.rates import Rates
from policy.engines.base import Engine, Event, Until
from policy.engines.catalog import make_engine
from policy.errors import InvariantError, ProgressError
from policy.orders.base import Order
from policy.orders.clock import UpdateClock
from policy.plan import Outcome, Plan
from policy.request import Move, Request
from policy.settings import Settings
from policy.systems import System
from policy.views import Draw


class Scheduler:
    """One scheduler: an engine, its desk, and the plan in force. `draw`, `rates` and `decisions` are for
    the engine; `engine` is one that is made already, and then they are not used."""

    def __init__(
        self,
        settings: Settings,
        system: System,
        order: Order,
        draw: Draw,
        rates: Rates | None = None,
        decisions: Decisions | None = None,
        *,
        engine: Engine | None = None,
    ) -> None:
        self.settings = settings
        self.system = system
        self.order = order
        self.engine = engine or make_engine(settings, system, order, draw, rates, decisions)
        self.desk = self.engine.desk
        self._updates = UpdateClock(settings, order)
        self._plan = Plan()
        self._until = Until(events=Event.MADE)
        self._seen = Event.MADE  # since the plan was made
        self.is_plain = False  # the plan handed out last holds no command
        self._idle_plans = 0

    # ------------------------------------------------------------------ what machines read

    @property
    def step(self) -> int:
        """Number of the last plan handed out that had one; -1 before the first."""
        return self.desk.step - 1

    @property
    def num_updates(self) -> int:
        """Priority updates so far."""
        return self._updates.count

    def block_table(self, request_id: str) -> Sequence[int]:
        """Device block ids of a resident request, in logical order. Read it, do not keep it."""
        return self.engine.block_table(request_id)

    def num_tokens(self, request_id: str) -> int:
        """Prompt plus generated tokens of a live request."""
        return self.desk.live[request_id].num_tokens

    def num_computed(self, request_id: str) -> int:
        """Tokens of a live request that does not decode whose KV is on the device: where the chunk
        that a plan names for it begins."""
        return self.engine.num_computed(request_id)

    def request(self, request_id: str) -> Request:
        """A live request."""
        return self.desk.live[request_id]

    @property
    def num_live(self) -> int:
        """Requests neither finished, rejected nor cancelled."""
        return len(self.desk.live)

    # ------------------------------------------------------------------ the interface

    def add(self, request: Request, now_ns: int) -> None:
        """A turn has arrived. Raises InvariantError for an id that is already live."""
        if request.request_id in self.desk.live:
            raise InvariantError(f"{request.request_id} is live already")
        self.desk.now_ns = now_ns
        self._updates.arrived(now_ns)
        self.engine.enter(request)
        self._seen |= Event.ARRIVED

    def cancel(self, request_id: str, now_ns: int) -> bool:
        """The client went away. False if the request is not live (any more)."""
        request = self.desk.live.get(request_id)
        if request is None:
            return False
        self.desk.now_ns = now_ns
        self.engine.leave(request, Move.CANCEL)
        self._seen |= Event.LEFT
        return True

    def schedule(self, now_ns: int) -> Plan:
        """The next plan; the same object as before while nothing has changed.

        Raises ProgressError if nothing can ever run, ReleaseVerdict where vLLM 0.3.3 would stop.
        """
        desk = self.desk
        desk.now_ns = now_ns
        if self._updates.is_due(desk.step, now_ns):
            desk.refresh_ranks()
            self.engine.ranks_changed()
            self._seen |= Event.RANKED
        until = self._until
        if until.is_over(self._seen, desk.step):
            return self._decide()
        plan = self._plan
        if self.is_plain and plan.batch is None:
            return plan
        growing = desk.growing()
        if until.is_short(len(growing), self.engine):
            return self._decide()
        if not self.is_plain:
            # Only now, since a batch that is made must be handed out, or whoever reads it
            # never hears of who joined. A plan with commands may not come again.
            plan = self._plan = Plan(batch=desk.standing_batch())
            self.is_plain = True
            if plan.batch is None:
                return plan
        if growing:
            self.engine.grow(growing)
        desk.step += 1
        return plan

    def update(self, outcome: Outcome) -> None:
        """Fold in what happened: tokens, then finished requests, then copies."""
        desk = self.desk
        plan = self._plan
        if outcome.ran:
            if plan.batch is not None:
                desk.clock.count += 1
            desk.rates.saw(plan, outcome)
            if outcome.tokens is not None:
                self._withhold(plan, outcome.tokens)
            if desk.prefilling:
                self._prefilled(outcome)
            for request_id in outcome.finished:
                self._finish(request_id)
        for result in outcome.copies:
            self._seen |= self.engine.copy_ended(result)

    # ------------------------------------------------------------------ pieces

    def _decide(self) -> Plan:
        desk = self.desk
        plan, self._until = self.engine.decide()
        if plan.is_numbered:
            desk.step += 1
        self._plan = plan
        self.is_plain = not plan.has_commands
        self._seen = Event.MADE if self.is_plain else Event.MADE | Event.PLANNED
        if plan.runs or not desk.live:
            self._idle_plans = 0
        else:
            self._idle_plans += 1
            if self._idle_plans > self.settings.idle_limit:
                raise ProgressError(
                    f"{self._idle_plans} plans in a row ran nothing with {len(desk.live)} live"
                    f" requests; last waited on {', '.join(plan.waiting_on)}"
                )
        return plan

    def _withhold(self, plan: Plan, tokens: tuple[tuple[str, int], ...]) -> None:
        """Check an explicit report and take back the tokens of requests whose copy failed."""
        desk = self.desk
        planned = plan.num_scheduled_tokens
        if sorted(request_id for request_id, _ in tokens) != sorted(planned):
            raise InvariantError("the outcome's requests are not the plan's")
        for request_id, count in tokens:
            if count not in (0, 1):
                raise InvariantError(f"{request_id}: {count} tokens in one step")
            request = desk.live[request_id]
            if count == 0 and request.is_decoding:
                desk.withhold(request)

    def _prefilled(self, outcome: Outcome) -> None:
        """Each request whose prefill is complete has its first new token and joins the batch, in
        queue order; one of which a chunk was computed waits for the next step."""
        desk = self.desk
        failed = {request_id for request_id, count in outcome.tokens or () if count == 0}
        for request, computed in desk.prefilling.items():
            if request.request_id in failed:
                continue
            self.engine.computed(request, computed)
            if computed < request.num_tokens:
                request.is_begun = True
                request.move(Move.CHUNK)
                continue
            request.add_token()
            desk.join_batch(request)
        desk.prefilling.clear()

    def _finish(self, request_id: str) -> None:
        request = self.desk.live[request_id]
        if not request.is_decoding:
            raise InvariantError(f"{request_id} finished without a token: {request!r}")
        self.engine.leave(request, Move.FINISH)
        self._seen |= Event.LEFT
