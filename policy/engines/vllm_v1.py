"""vLLM 0.33.0 (V1), decision for decision: a step, and who is admitted in it (R13 to R16).

Own words for what that release's `Scheduler.schedule` and `update_from_output` decide with
asynchronous scheduling off; docs/vllm_v1.md lists the rules. Compared with the package itself in
tests/full/test_vllm_v1.py. Blocks and names are `pools.named` and `v1_holdings` (R1 to R5, R8, R17); who
runs gets tokens, or is preempted, in `v1_serving` (R6 to R12).

Under an order of our own V1's queues stay: the order's key takes the place of `Request.priority`, at
each choice of a victim and, sorted again at each update, in the waiting queue.
"""

from __future__ import annotations

from policy.engines.base import ALWAYS, Event, Until
from policy.engines.draft import Draft
from policy.engines.v1_held import Held, place_of
from policy.engines.v1_victims import V1Victims
from policy.errors import ReleaseVerdict
from policy.plan import Plan
from policy.request import Move, Request

#: A step with commands may be followed by a different one.
EVENTS = ALWAYS | Event.PLANNED


class V1Engine(V1Victims):
    """See the module."""

    # ------------------------------------------------------------------ one step

    def decide(self) -> tuple[Plan, Until]:
        """See Engine. Raises ReleaseVerdict where the release would go on or wait for ever."""
        self._catch_up()
        self._chunks, self._lost, self._found, self._victims = {}, [], [], []
        self._blocked = None
        desk = self.desk
        self._make_way()
        budget, cap = self.settings.max_num_batched_tokens, self._cap()
        serve = self._serve_all if self._is_easy(budget, cap) else self._serve_in_turn
        budget = serve(budget, cap)
        if self._may_admit():
            self._admit(budget, cap)
        elif self._lost and self.is_still and not desk.running and not self._completes():
            self._watch.fruitless(self.state)
        return self._plan(), self._until()

    def _until(self) -> Until:
        events = EVENTS | Event.MADE if self._looks_again else EVENTS
        return Until(events, self._next_find())

    def _plan(self) -> Plan:
        desk, draft = self.desk, Draft()
        if self._joined:
            desk.running.sort(key=place_of)
            self._joined = False
        for request, tokens in self._chunks.items():
            request.move(Move.PREFILL)
            desk.prefilling[request] = self.running[request].computed + tokens
            draft.prefill.append((request.request_id, tokens))
        draft.preempt.extend(self._victims)
        desk.flush_rejects(draft)
        self._copies(draft)
        batch = desk.standing_batch()
        plan = draft.finish(batch)._replace(found=tuple(self._found), lost=tuple(self._lost))
        if plan.found or plan.lost or plan.copies:
            plan = plan._replace(is_by_name=True)
        if plan.runs:
            if batch is not None or self._completes():
                self._watch.stirred()
            return plan
        return plan._replace(waiting_on=self._why_idle(plan))

    def _copies(self, draft: Draft) -> None:
        """Copies that the plan starts or waits for: none without a host tier."""

    def _why_idle(self, plan: Plan) -> tuple[str, ...]:
        if plan.preempt or plan.reject:
            return ("the next plan",)
        if len(self.waiting):
            raise ReleaseVerdict(
                f"vLLM 0.33.0 waits for ever here: nothing runs, and {self.waiting.first()!r} does not"
                f" fit into {self.device.num_blocks} blocks"
            )
        return ("arrivals",)

    # ------------------------------------------------------------------ who is admitted

    def _may_admit(self) -> bool:
        """R14: a step that preempted admits nobody."""
        return len(self._lost) == self._num_displaced

    def _admit(self, budget: int, cap: int) -> None:
        """R14: in queue order while budget and seats are left; the first that does not fit ends it."""
        waiting, running, seats = self.waiting, self.running, self.settings.max_num_seqs
        while budget > 0 and len(waiting) and len(running) < seats:
            request = waiting.first()
            held = self.held[request]
            hits = self._lookup(request)
            held.computed = self._found_for(held, len(hits))
            tokens = self._chunk(held, budget, cap)
            if not self._has_room(request, hits, held.computed + tokens):
                held.computed = 0
                self._blocked = request
                break
            waiting.pop()
            self.device.share(hits)
            held.blocks = hits
            held.num_named = len(hits)
            self._seat(held)
            self._hold(held, tokens)
            budget -= tokens

    def _seat(self, held: Held) -> None:
        request = held.request
        self._place += 1
        held.place = self._place
        self.running[request] = held
        self.partial[request] = held
        request.resident_since = self.desk.step
        if not request.is_begun and not request.num_preemptions:
            request.cached_tokens = held.computed
        self._found.append((request.request_id, held.computed))
        self.found_tokens += held.computed
        self.looked_up_tokens += request.num_tokens

    def _found_for(self, held: Held, hits: int) -> int:
        """Tokens that need not be computed, so many blocks being found."""
        held.num_found = hits
        return hits * self._size

    def _has_room(self, request: Request, hits: list[int], tokens: int) -> bool:
        if self.settings.reserve_full_isl:  # R16: all of it must fit now, and is not kept
            tokens = request.num_tokens
        return self._room_for(hits, tokens) <= self.device.num_free

    def _next_find(self) -> int | None:
        """The step in which somebody who decodes fills the block that whoever did not fit did not
        find: it may fit then. Nothing else in a plan that stands makes anybody fit."""
        request = self._blocked
        if not self.caches or request is None:
            return None
        names = request.block_names
        found = len(self._lookup(request))
        end = (found + 1) * self._size
        if end >= request.num_tokens:
            return None
        soonest = None
        for other in self.desk.running:
            ahead = end - other.num_tokens
            if ahead > 0 and (soonest is None or ahead < soonest):
                full = min(found, other.num_tokens // self._size)
                if not full or other.block_names[full - 1] == names[full - 1]:
                    soonest = ahead
        return None if soonest is None else self.desk.step + soonest
