"""V1 with other victims than the release's: chosen otherwise, or displaced by who waits.

Both happen before anybody has tokens of the step, so that no block is named that nobody computes
(trap L7 of docs/vllm_v1.md). With the switches off all is the release's.
"""

from __future__ import annotations

from collections.abc import Iterable

from policy.choices.catalog import named_decisions
from policy.choices.victim import Stake
from policy.engines.swapping import Parts
from policy.engines.v1_held import Held
from policy.engines.v1_serving import V1Serving
from policy.request import Request


class V1Victims(V1Serving):
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        options = parts.system.options
        decisions = parts.decisions or named_decisions(options, self.settings, self.desk.order)
        self.victim = decisions.victim
        self.displacement = decisions.displacement
        self._displaces = options.displacement != "never" and self.by_priority
        self._clears_first = self.victim is not None
        if self.victim is not None:
            self.desk.rates.reads_prefills = self.victim.reads_prefills
        self._num_displaced = 0
        self._looks_again = False  # the next step may decide otherwise though nothing has happened
        self._lacks_room = False  # somebody who runs has no tokens until copies have ended

    # ------------------------------------------------------------------ short of room

    def _serve_in_turn(self, budget: int, cap: int) -> int:
        """See V1Serving. Victims until what everybody wants is free, or coming; then all who run, in
        order, but those that wait for what is coming."""
        if not self._clears_first:
            return super()._serve_in_turn(budget, cap)
        while self._short(budget, cap) > 0:
            self._preempt(self._choose([one for one in self.running.values() if self._may_go(one)]))
        served: dict[Held, None] = {}
        for held in list(self.running.values()):
            tokens = self._wanted(held, budget, cap)
            if tokens and self._growth(held, tokens) <= self.device.num_free:
                served[held] = None
                budget -= tokens
                self._serve(held, tokens)
            elif tokens:
                self._lacks_room = self._looks_again = True
        self._pass_over(served)
        return budget

    def _wanted(self, held: Held, budget: int, cap: int) -> int:
        return min(1, budget) if held.request.is_decoding else self._chunk(held, budget, cap)

    def _growth(self, held: Held, tokens: int) -> int:
        """Blocks that so many more tokens need."""
        return max(0, self._blocks(held.num_computed + tokens) - len(held.blocks))

    def _short(self, budget: int, cap: int) -> int:
        """Blocks that the step lacks."""
        need = 0
        for held in self.running.values():
            tokens = self._wanted(held, budget, cap)
            need += self._growth(held, tokens)
            budget -= tokens
        return need - self.device.num_free - self.num_coming

    def _may_go(self, held: Held) -> bool:  # noqa: ARG002
        """Its KV is its own to give up."""
        return True

    def _choose(self, running: list[Held]) -> Held:
        """The next victim among those who run. The first in order stays while there is another."""
        victim = self.victim
        if victim is None:
            return self._victim(running)
        prefill, device = self.desk.rates.prefill, self.device
        first = first_in_order(running)
        return max(
            [held for held in running if held is not first] or running,
            key=lambda held: (
                held.request.rank[0],
                victim.key(Stake(held.num_computed, device.num_sole(held.blocks)), prefill),
                held.place,
            ),
        )

    # ------------------------------------------------------------------ who waits is more urgent

    def _make_way(self) -> None:
        """Those who run and are less urgent than the first who waits give way to it, the least urgent
        first, if it fits then; else nobody does. A displacement says between whom the difference is
        large enough, and never turns the order round, or both would displace each other for ever."""
        self._num_displaced = 0
        self._looks_again = self._lacks_room = False
        if not self._displaces or not len(self.waiting):
            return
        request = self.waiting.first()
        less_urgent = [
            held
            for held in self.running.values()
            if self._outranks(request, held.request) and self._may_go(held)
        ]
        if not less_urgent:
            return
        self._looks_again = True
        less_urgent.sort(key=lambda held: held.request.rank, reverse=True)
        hits, growing = self._lookup(request), self.desk.growing()
        seats = len(self.running) + 1 - self.settings.max_num_seqs
        short = self._room_for(hits, request.num_tokens) + len(growing)
        short -= self.device.num_free + self.num_coming
        found = dict.fromkeys(hits)
        victims = []
        for held in less_urgent:
            if short <= 0 and seats <= 0:
                break
            victims.append(held)
            seats -= 1
            short -= self.device.num_sole([block for block in held.blocks if block not in found])
            short -= held.request in growing
        if short > 0 or seats > 0:
            return
        for held in victims:
            self._preempt(held)
        self._num_displaced = len(victims)

    def _outranks(self, waiting: Request, running: Request) -> bool:
        key = self.displacement.key
        return waiting.rank[0] < running.rank[0] and (
            (key(waiting), waiting.rank[0]) < (key(running), running.rank[0])
        )


def first_in_order(running: Iterable[Held]) -> Held:
    """The most urgent of those who run; of equal ones the first admitted."""
    return min(running, key=lambda held: (held.request.rank[0], held.place))
