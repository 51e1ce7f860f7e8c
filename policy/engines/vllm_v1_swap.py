"""V1 with preemption by swap: what FastSwitch's idea would bring to today's engine.

A victim's KV, its last block and its reply included, goes to the host before the step that takes its
blocks, and comes back before the step that admits it again; both are waited for. All else is V1's:
who is a victim, who is admitted and in which order. What is still found on the device is not loaded.
Where the host has no room the victim recomputes, as in V1.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from policy.engines.base import Event, Levels
from policy.engines.draft import Draft
from policy.engines.swapping import Parts
from policy.engines.v1_held import Held
from policy.engines.vllm_v1 import V1Engine
from policy.plan import Copy, CopyResult, Direction, PreemptionMode
from policy.pools.allocation import Allocation
from policy.pools.catalog import make_pool
from policy.pools.runs import contiguous_runs
from policy.request import Move, Request


class Swapped(Held):
    """`host`: its blocks there, and `saved`: how many tokens they hold."""

    __slots__ = ("host", "saved")

    def __init__(self, request: Request, host: Allocation) -> None:
        super().__init__(request)
        self.host = host
        self.saved = 0

    @property
    def host_blocks(self) -> int:  # type: ignore[override]
        """Blocks on the host."""
        return len(self.host.blocks)


class V1SwapEngine(V1Engine):
    """See the module."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        settings = self.settings
        allocator = parts.system.options.allocator
        self.host = make_pool(allocator, "host", settings.host_blocks, parts.draw)
        self.swapped_blocks = 0
        self._flights: dict[int, Swapped] = {}
        self._next_id = 0
        self._stores: list[Copy] = []
        self._loads: list[Copy] = []

    def hold_nothing(self, request: Request) -> Held:
        """See V1Holdings."""
        return Swapped(request, self.host.new())

    def leave(self, request: Request, move: Move) -> None:
        """See Engine. No copy is under way between steps."""
        held = self._swapped(request)
        super().leave(request, move)
        self._drop(held)

    def copy_ended(self, result: CopyResult) -> int:
        """See Engine. Whoever lost KV with a copy that failed recomputes."""
        held = self._flights.pop(result.copy_id)
        if held.blocks:  # it was loaded
            self._drop(held)
            if held.request not in self.running:
                return Event.LOADED  # it is done already
            if result.ok:
                self._name(held, held.num_computed)
            else:
                self._stop(held)
                self._begin_anew(held)
            return Event.LOADED
        if result.ok:
            return Event.STORED
        self._drop(held)
        return Event.LOST

    def _drop(self, held: Swapped) -> None:
        self.host.truncate(held.host, 0)
        held.saved = 0

    # ------------------------------------------------------------------ victims and their return

    def _give_up(self, held: Held) -> PreemptionMode:
        """See V1Engine. The copy is waited for, so the blocks are free in this very step."""
        assert isinstance(held, Swapped)
        for index in range(held.computed // self._size, held.num_named):
            self.device.unname(held.blocks[index])  # trap L7: this step was to compute it
        used = held.blocks[: self._blocks(held.computed)]
        if not used or len(used) > self.host.num_available:
            return super()._give_up(held)
        self.host.allocate(held.host, len(used))
        held.saved = held.computed
        self._stores.append(self._copy(held, Direction.TO_HOST, used, held.host.blocks))
        return PreemptionMode.SWAP

    def _found_for(self, held: Held, hits: int) -> int:
        """See V1Engine. What is on the host counts from where the device's ends."""
        assert isinstance(held, Swapped)
        held.num_found = hits
        return max(hits * self._size, held.saved)

    def _seat(self, held: Held) -> None:
        super()._seat(held)
        assert isinstance(held, Swapped)
        if held.saved <= held.num_found * self._size:
            self._drop(held)

    def _hold(self, held: Held, tokens: int) -> None:
        super()._hold(held, tokens)
        assert isinstance(held, Swapped)
        if held.saved:
            first, last = held.num_found, self._blocks(held.saved)
            device, host = held.blocks[first:last], held.host.blocks[first:last]
            self._loads.append(self._copy(held, Direction.TO_DEVICE, device, host))

    def _name(self, held: Held, tokens: int) -> None:
        """See V1Holdings. What is being loaded has no names before it is here: a copy may fail."""
        assert isinstance(held, Swapped)
        if not held.saved:
            super()._name(held, tokens)

    def _copy(self, held: Swapped, way: Direction, device: list[int], host: list[int]) -> Copy:
        runs = tuple(contiguous_runs(device, host))
        copy = Copy(self._next_id, way, held.request.request_id, runs, len(device))
        self._flights[copy.copy_id] = held
        self._next_id += 1
        self.swapped_blocks += len(device)
        return copy

    def _copies(self, draft: Draft) -> None:
        draft.to_host += self._stores
        draft.to_device += self._loads
        draft.wait_for += [copy.copy_id for copy in (*self._stores, *self._loads)]
        self._stores, self._loads = [], []

    def _swapped(self, request: Request) -> Swapped:
        held = self.held[request]
        assert isinstance(held, Swapped)
        return held

    # ------------------------------------------------------------------ what others read

    def levels(self) -> Levels:
        """See Engine."""
        return Levels(self.device.num_free, self.host.num_free)

    def state(self) -> Hashable:
        """See V1Holdings."""
        saved = [self._swapped(request).saved for request in self.waiting]
        return (super().state(), tuple(saved))

    def facts(self) -> dict[str, Any]:
        """See Engine."""
        return {**super().facts(), "swapped_blocks": self.swapped_blocks}

    def host_copies(self) -> list[Allocation]:
        """What holds blocks on the host, or may."""
        return [self._swapped(request).host for request in self.held]

    def check(self, *, full: bool) -> None:
        """See Engine."""
        super().check(full=full)
        if full:
            self.host.check(self.host_copies())
