"""vLLM 0.33.0 (V1), decision for decision: rules R6 to R17, one comment a rule.

Own words for what that release's `Scheduler.schedule` and `update_from_output` decide with
asynchronous scheduling off; docs/vllm_v1.md lists the rules. Compared with the package itself in
tests/full/test_vllm_v1.py. Blocks and names are `pools.named` and `v1_holdings` (R1 to R5, R8, R17).

Most steps are alike: everybody who runs gets what it wants. They are planned from what changes (who
is not done with its prompt, who begins or fills a block) and not by a walk over all who run; only
where blocks or budget are short is the release's loop followed turn by turn.

Under an order of our own V1's queues stay: the order's key takes the place of `Request.priority`, at
each choice of a victim and, sorted again at each update, in the waiting queue.
"""

from __future__ import annotations

from itertools import islice

from policy.engines.base import ALWAYS, Event, Until
from policy.engines.draft import Draft
from policy.engines.v1_held import Held, place_of, urgency
from policy.engines.v1_holdings import V1Holdings
from policy.errors import ReleaseVerdict
from policy.plan import Plan, PreemptionMode
from policy.request import Move, Request

#: A step with commands may be followed by a different one.
EVENTS = ALWAYS | Event.PLANNED


class V1Engine(V1Holdings):
    """See the module."""

    # ------------------------------------------------------------------ one step

    def decide(self) -> tuple[Plan, Until]:
        """See Engine. Raises ReleaseVerdict where the release would go on or wait for ever."""
        self._catch_up()
        self._chunks, self._lost, self._found, self._victims = {}, [], [], []
        self._blocked = None
        desk = self.desk
        budget, cap = self.settings.max_num_batched_tokens, self._cap()
        serve = self._serve_all if self._is_easy(budget, cap) else self._serve_in_turn
        budget = serve(budget, cap)
        if self._may_admit():
            self._admit(budget, cap)
        elif self.is_still and not desk.running and not self._completes():
            self._watch.fruitless(self.state)
        return self._plan(), self._until()

    def _until(self) -> Until:
        return Until(EVENTS, self._next_find())

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

    def _completes(self) -> bool:
        """Somebody's prompt is computed to its end by this step."""
        return any(
            self.running[request].computed + tokens == request.num_tokens
            for request, tokens in self._chunks.items()
        )

    def _cap(self) -> int:
        """R7: most tokens of one request in this step, 0 for no cap."""
        settings = self.settings
        cap = settings.long_prefill_token_threshold
        num_live = len(self.desk.live)
        if not cap or num_live <= 1:
            return 0
        if settings.long_prefill_token_threshold_adaptive:
            return max(cap, settings.max_num_batched_tokens // num_live)
        return cap

    def _chunk(self, held: Held, budget: int, cap: int) -> int:
        """R6: what somebody who runs and does not decode gets; decoding is the case 1."""
        tokens = held.request.num_tokens - held.computed
        if 0 < cap < tokens:
            tokens = cap
        return min(tokens, budget)

    # ------------------------------------------------------------------ who runs

    def _is_easy(self, budget: int, cap: int) -> bool:
        """Everybody who runs gets its tokens and blocks, whatever the order among them is."""
        running, partial = self.desk.running, self.partial
        budget -= len(running)
        if budget < 0:
            return False
        need = len(self.desk.growing())
        if partial:
            for held in partial.values():
                if held.is_stalled:
                    return False
                tokens = self._chunk(held, budget, cap)
                budget -= tokens
                if tokens:
                    need += self._blocks(held.computed + tokens) - len(held.blocks)
            if not budget and not self._partial_are_last():
                return False  # a prompt may take what a decode behind it needs
        return need <= self.device.num_free

    def _partial_are_last(self) -> bool:
        last = islice(reversed(self.running), len(self.partial))
        return all(request in self.partial for request in last)

    def _serve_all(self, budget: int, cap: int) -> int:
        """R8, R4: a token for everybody who decodes, and chunks; blocks for these alone, no watermark."""
        desk = self.desk
        budget -= len(desk.running)
        self._begin_blocks(desk.growing())
        self._name_filled(desk.filling())
        for held in self.partial.values():
            tokens = self._chunk(held, budget, cap)
            if not tokens:
                break
            self._hold(held, tokens)
            budget -= tokens
        return budget

    def _serve_in_turn(self, budget: int, cap: int) -> int:
        """The release's loop over who runs, with its victims."""
        desk, device = self.desk, self.device
        running = list(self.running.values())
        served: dict[Held, int] = {}
        index = 0
        while index < len(running) and budget > 0:
            held = running[index]
            request = held.request
            if request.is_decoding:
                end = request.num_tokens
                tokens = 1
            else:
                tokens = self._chunk(held, budget, cap)
                end = held.computed + tokens
            need = self._blocks(end) - len(held.blocks)
            # R9: victims one by one until it fits; the one that asks may be it.
            while need > device.num_free:
                victim = self._victim(running)
                at = running.index(victim)
                del running[at]
                index -= at < index
                budget += self._given_back(served.pop(victim, 0))
                self._preempt(victim)
                if victim is held:
                    break
            if request not in self.running:
                if self.by_priority:
                    continue  # those behind are more urgent and may fit
                break
            served[held] = tokens
            budget -= tokens
            index += 1
            if held.is_stalled:
                held.is_stalled = False
                del self.partial[request]
                desk.join_batch(request)
                self._joined = True
            if not request.is_decoding:
                self._hold(held, tokens)
                continue
            if need > 0:
                held.blocks += device.take(need)
            self._name(held, end)
        for request in [r for r in desk.running if self.running[r] not in served]:
            self._stall(self.running[request])
        return budget

    def _given_back(self, tokens: int) -> int:
        """R10: what a victim had of this step is somebody else's now."""
        return tokens

    def _victim(self, running: list[Held]) -> Held:
        """R9: the one admitted last; under priority the least urgent, of equal ones the first."""
        return max(running, key=urgency) if self.by_priority else running[-1]

    def _stall(self, held: Held) -> None:
        """It runs, but this step has no token for it."""
        self.desk.leave_batch(held.request)
        held.computed = held.request.num_tokens - 1
        held.is_stalled = True
        self.partial[held.request] = held

    def _preempt(self, held: Held) -> None:
        """R11: its blocks are free at once, and it begins anew."""
        request = held.request
        self._stop(held)
        self._chunks.pop(request, None)
        mode = self._give_up(held)
        lost = held.computed if mode is PreemptionMode.RECOMPUTE else 0
        self._victims.append((request.request_id, mode))
        self._lost.append((request.request_id, lost))
        self.lost_tokens += lost
        request.num_preemptions += 1
        self._begin_anew(held)

    def _give_up(self, held: Held) -> PreemptionMode:  # noqa: ARG002
        """What becomes of a victim's KV: it is lost."""
        return PreemptionMode.RECOMPUTE

    def _begin_anew(self, held: Held) -> None:
        request = held.request
        self.device.free(reversed(held.blocks))
        held.blocks = []
        held.computed = held.num_named = held.num_found = 0
        held.is_stalled = False
        request.move(Move.RECOMPUTE)
        self.waiting.put_back(request)

    # ------------------------------------------------------------------ who is admitted

    def _may_admit(self) -> bool:
        """R14: a step that preempted admits nobody."""
        return not self._lost

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

    def _lookup(self, request: Request) -> list[int]:
        """R13: whole blocks, and one token at least is computed."""
        if not self.caches:
            return []
        names = request.block_names
        limit = (request.num_tokens - 1) // self._size
        return self.device.find(map(names.__getitem__, range(limit)))

    def _has_room(self, request: Request, hits: list[int], tokens: int) -> bool:
        device = self.device
        # Blocks found that nobody holds are free now, and will not be.
        taken = device.num_idle(hits) - len(hits)
        if self.running:  # R15: whoever was admitted in this step runs
            taken += self._watermark
        if self.settings.reserve_full_isl:  # R16: all of it must fit now, and is not kept
            tokens = request.num_tokens
        return self._blocks(tokens) + taken <= device.num_free

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
