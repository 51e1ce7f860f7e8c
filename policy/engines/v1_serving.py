"""Who runs in a step of V1, with how many tokens, and who is preempted for room (R6 to R12).

Most steps are alike: everybody who runs gets what it wants. They are planned from what changes (who
is not done with its prompt, who begins or fills a block) and not by a walk over all who run; only
where blocks or budget are short is the release's loop followed turn by turn.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice

from policy.engines.v1_held import Held, in_order, urgency
from policy.engines.v1_holdings import V1Holdings
from policy.plan import PreemptionMode
from policy.request import Move


class V1Serving(V1Holdings):
    """See the module."""

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
        self._begin_blocks(in_order(desk.growing()))
        self._name_filled(in_order(desk.filling()))
        for held in self.partial.values():
            tokens = self._chunk(held, budget, cap)
            if tokens:
                self._hold(held, tokens)
                budget -= tokens
        return budget

    def _serve_in_turn(self, budget: int, cap: int) -> int:
        """The release's loop over who runs, with its victims."""
        device = self.device
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
            self._serve(held, tokens)
        self._pass_over(served)
        return budget

    def _serve(self, held: Held, tokens: int) -> None:
        """One that gets tokens where not everybody does."""
        desk, request = self.desk, held.request
        end = request.num_tokens if request.is_decoding else held.computed + tokens
        if held.is_stalled:
            held.is_stalled = False
            del self.partial[request]
            desk.join_batch(request)
            self._joined = True
        if not request.is_decoding:
            self._hold(held, tokens)
            return
        need = self._blocks(end) - len(held.blocks)
        if need > 0:
            held.blocks += self.device.take(need, held.blocks[-1])
        self._name(held, end)

    def _pass_over(self, served: Collection[Held]) -> None:
        """Those who decode and were not served run, but this step has no token for them."""
        desk = self.desk
        for request in [r for r in desk.running if self.running[r] not in served]:
            held = self.running[request]
            desk.leave_batch(request)
            held.computed = request.num_tokens - 1
            held.is_stalled = True
            self.partial[request] = held

    def _given_back(self, tokens: int) -> int:
        """R10: what a victim had of this step is somebody else's now."""
        return tokens

    def _victim(self, running: list[Held]) -> Held:
        """R9: the one admitted last; under priority the least urgent, of equal ones the first."""
        return max(running, key=urgency) if self.by_priority else running[-1]

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
