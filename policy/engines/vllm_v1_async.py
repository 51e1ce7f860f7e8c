"""V1 with preemption by swap that no step waits for, and with parking ahead of need.

A victim's blocks are free when its copy has ended; until then whoever wanted them runs without tokens,
and the others go on. Who comes back takes its seat and its blocks at once and has tokens when its KV
is here. Who is still being copied is not admitted, and who is being loaded is no victim.

`movement: proactive` parks before blocks run out (NEO's two thresholds, docs/sources.md#neo): below the low
one victims leave until the high one is free or coming, and who comes leaves the high one free.
"""

from __future__ import annotations

from collections.abc import Hashable

from policy.engines.base import Event, Until
from policy.engines.draft import Draft
from policy.engines.swapping import Parts
from policy.engines.v1_held import Held
from policy.engines.v1_victims import first_in_order
from policy.engines.vllm_v1_swap import Swapped, V1SwapEngine
from policy.plan import CopyResult, Plan, PreemptionMode
from policy.pools.allocation import Allocation
from policy.request import Move, Request


class V1AsyncSwapEngine(V1SwapEngine):
    """`_leaving`: blocks on the device that a copy still reads or fills, and nobody's; by copy."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._clears_first = True
        self._parks = parts.system.options.movement == "proactive"
        self._headroom = self.settings.high_blocks if self._parks else 0
        self._leaving: dict[int, list[int]] = {}
        self._copy_of: dict[Request, int] = {}  # live requests whose KV is on its way
        self._loading: dict[Request, None] = {}

    # ------------------------------------------------------------------ what happened

    def leave(self, request: Request, move: Move) -> None:
        """See Engine. What a copy reads or fills stays until it has ended."""
        copy_id = self._copy_of.pop(request, None)
        if copy_id is not None:
            held = self._swapped(request)
            if request in self._loading:
                del self._loading[request]
                self._leaving[copy_id], held.blocks = held.blocks, []
            self._orphan(copy_id, held)
        super().leave(request, move)

    def _orphan(self, copy_id: int, held: Swapped) -> None:
        """The copy keeps the host blocks, which its request does not have any more."""
        orphan = self._flights[copy_id] = Swapped(held.request, held.host)
        orphan.saved = held.saved
        held.host = self.host.new()

    def copy_ended(self, result: CopyResult) -> int:
        """See Engine."""
        copy_id, held = result.copy_id, self._flights.pop(result.copy_id)
        request = held.request
        self._catch_up()
        self.device.free(reversed(self._leaving.pop(copy_id, [])))
        is_store = request not in self._loading
        if self._copy_of.get(request) != copy_id:  # it was cancelled
            self._drop(held)
            return Event.STORED
        del self._copy_of[request]
        if is_store:
            if result.ok:
                return Event.STORED
            self._drop(held)
            return Event.LOST
        del self._loading[request]
        self._drop(held)
        if result.ok:
            self._name(held, held.computed)
        else:
            self._stop(held)
            self._begin_anew(held)
        return Event.LOADED

    # ------------------------------------------------------------------ one step

    def _make_way(self) -> None:
        """See V1Victims. Parking comes first."""
        super()._make_way()
        if self._parks and not self._num_displaced:
            self._park()

    def _park(self) -> None:
        """Below the low threshold, after this step's growth, until the high one; as the host has room."""
        if not self.running or self._left() >= self.settings.low_blocks:
            return
        first = first_in_order(self.running.values())
        while self._left() < self._headroom:
            found = [
                held
                for held in self.running.values()
                if held is not first and held.request.is_decoding
            ]
            if not found:
                return
            held = self._choose(found)
            if self._blocks(held.num_computed) > self.host.num_available:
                return
            self._preempt(held)

    def _left(self) -> int:
        return self.device.num_free + self.num_coming - len(self.desk.growing())

    def _until(self) -> Until:
        until = super()._until()
        low = self.settings.low_blocks if self._parks and self.running else 0
        return until._replace(events=until.events | Event.STORED, room=low)

    def _why_idle(self, plan: Plan) -> tuple[str, ...]:
        if self._flights:
            return (f"copy {min(self._flights)}",)
        return super()._why_idle(plan)

    # ------------------------------------------------------------------ victims and their return

    def _may_go(self, held: Held) -> bool:
        return held.request not in self._loading

    def _chunk(self, held: Held, budget: int, cap: int) -> int:
        """See V1Serving."""
        return 0 if held.request in self._loading else super()._chunk(held, budget, cap)

    def _give_up(self, held: Held) -> PreemptionMode:
        """See V1SwapEngine. What is copied stays here until then, and can be found by its names."""
        mode = super()._give_up(held)
        if mode is PreemptionMode.SWAP:
            assert isinstance(held, Swapped)
            copy_id = self._stores[-1].copy_id
            count = len(held.host.blocks)
            self._leaving[copy_id], held.blocks = held.blocks[:count], held.blocks[count:]
            self._copy_of[held.request] = copy_id
        return mode

    def _may_admit(self) -> bool:
        """See V1Engine. Nobody takes the room that others wait for."""
        return super()._may_admit() and not self._lacks_room

    def _has_room(self, request: Request, hits: list[int], tokens: int) -> bool:
        return request not in self._copy_of and super()._has_room(request, hits, tokens)

    def _room_for(self, hits: list[int], tokens: int) -> int:
        return super()._room_for(hits, tokens) + (self._headroom if self.running else 0)

    def _hold(self, held: Held, tokens: int) -> None:
        """See V1Holdings. What is to be loaded comes first, and its tokens when it is here."""
        super()._hold(held, tokens)
        assert isinstance(held, Swapped)
        if held.saved:
            del self._chunks[held.request]
            self._loading[held.request] = None
            self._copy_of[held.request] = self._loads[-1].copy_id

    def _copies(self, draft: Draft) -> None:
        draft.to_host += self._stores
        draft.to_device += self._loads
        self._stores, self._loads = [], []

    # ------------------------------------------------------------------ what others read

    @property
    def num_coming(self) -> int:
        """See Engine."""
        return sum(map(self.device.num_sole, self._leaving.values()))

    @property
    def is_still(self) -> bool:
        """See V1Holdings."""
        return not self._flights

    def tables(self) -> list[list[int]]:
        """See V1Holdings."""
        return [*super().tables(), *self._leaving.values()]

    def host_copies(self) -> list[Allocation]:
        """See V1SwapEngine. A copy of who was cancelled keeps its own."""
        found = [
            held.host for c, held in self._flights.items() if self._copy_of.get(held.request) != c
        ]
        return super().host_copies() + found

    def state(self) -> Hashable:
        """See V1Holdings."""
        return (super().state(), tuple(self._flights))
