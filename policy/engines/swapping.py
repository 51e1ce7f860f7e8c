"""What the engines that swap share: all of an engine but its decisions.

`ranked` and `vllm_033` decide; whose KV is where, and how it moves, is `swaps.Swaps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from policy.choices.catalog import Decisions, named_decisions
from policy.desk import Desk
from policy.engines import swap_laws
from policy.engines.base import Event, Levels
from policy.engines.swaps import Swaps
from policy.memory.ledger import Ledger
from policy.memory.memory import Memory
from policy.memory.sharing import Sharing
from policy.plan import CopyResult
from policy.pools.allocation import Pool
from policy.pools.catalog import make_pool
from policy.pools.prefix import PrefixPool
from policy.request import Move, Request
from policy.systems import System
from policy.views import Draw


class Parts(NamedTuple):
    """What an engine is made from. `draw` is the only randomness. `decisions`: in place of those that the
    system names, for an engine that has such."""

    desk: Desk
    system: System
    draw: Draw
    decisions: Decisions | None = None


class SwapEngine:
    """See the module. A subclass adds `name` and `decide`, and queues of its own if it has any."""

    def __init__(self, parts: Parts) -> None:
        self.desk = parts.desk
        self.desk.rates.reads_steps = parts.system.options.overlap == "adaptive"
        self.desk.rates.reads_prefills = parts.system.options.preemption == "cost"
        self.swaps = make_swaps(parts)

    # ------------------------------------------------------------------ what happened

    def enter(self, request: Request) -> None:
        """See Engine."""
        self.swaps.enter(request)

    def leave(self, request: Request, move: Move) -> None:
        """See Engine."""
        self.swaps.leave(request, move)

    def ranks_changed(self) -> None:
        """See Engine."""
        self.swaps.memory.ledger.keys_changed(self.desk.rerank)

    def computed(self, request: Request, tokens: int) -> None:
        """See Engine."""
        swaps = self.swaps
        swaps.memory.settle(request.context, tokens)
        if swaps.sharing is not None:
            swaps.sharing.publish(request.context)

    def copy_ended(self, result: CopyResult) -> int:
        """See Engine."""
        swaps = self.swaps
        flight = swaps.memory.complete(result.copy_id, ok=result.ok)
        self.desk.rates.saw_copy(flight, result.done_ns, ok=result.ok)
        if swaps.copy_ended(flight, ok=result.ok):
            assert flight.context is not None
            self._requeue(flight.context.owner)
        if not flight.to_host:
            return Event.LOADED
        return Event.STORED if result.ok else Event.LOST

    def _requeue(self, request: Request) -> None:
        """A copy failed and the request must recompute."""

    # ------------------------------------------------------------------ growth

    def grow(self, growing: Mapping[Request, None]) -> None:
        """See Engine."""
        self.swaps.grow(growing)

    @property
    def num_available(self) -> int:
        """See Engine."""
        return self.swaps.memory.device.num_available

    @property
    def num_coming(self) -> int:
        """See Engine."""
        return self.swaps.memory.num_coming

    # ------------------------------------------------------------------ what machines and people read

    def block_table(self, request_id: str) -> Sequence[int]:
        """See Engine."""
        device = self.desk.live[request_id].context.device
        assert device is not None
        return device.blocks

    def num_computed(self, request_id: str) -> int:
        """See Engine."""
        return self.desk.live[request_id].context.device_tokens

    def levels(self) -> Levels:
        """See Engine."""
        memory = self.swaps.memory
        return Levels(memory.device.num_free, memory.host.num_free)

    def pools(self) -> tuple[tuple[Pool, int], ...]:
        """See Engine."""
        memory, settings = self.swaps.memory, self.desk.settings
        beside = settings.host_increment if self.swaps.options.reuse else 0
        return ((memory.device, settings.growth_group - 1), (memory.host, beside))

    def facts(self) -> dict[str, Any]:
        """`contaminated_blocks`: of valid host copies given up. Where prefixes are shared, `hit_tokens`
        of `looked_up_tokens` (full blocks of prompts when they first came) were on the device."""
        swaps = self.swaps
        found: dict[str, Any] = {"contaminated_blocks": swaps.memory.ledger.num_contaminated}
        sharing = swaps.sharing
        if sharing is not None:
            tokens = sharing.blocks_each * swaps.settings.block_size
            found["prefixes"] = {
                "block_tokens": tokens,
                "hit_tokens": sharing.num_hits * tokens,
                "looked_up_tokens": sharing.num_lookups * tokens,
                "evicted_tokens": sharing.tree.num_evicted * tokens,
                "lost_host_copies": sharing.num_lost_copies,
            }
        return found

    def check(self, *, full: bool) -> None:
        """See Engine."""
        if full:
            swap_laws.check(self.swaps)
        else:
            swap_laws.check_counts(self.swaps)


def make_swaps(parts: Parts) -> Swaps:
    """Pools, ledger and memory as the system's switches say."""
    desk, options, draw = parts.desk, parts.system.options, parts.draw
    settings = desk.settings
    decisions = parts.decisions or named_decisions(options, settings, desk.order)
    size = settings.block_size
    device = make_pool(options.allocator, "device", settings.device_blocks, draw)
    host = make_pool(options.allocator, "host", settings.host_blocks, draw)
    ledger = Ledger(host, size, decisions.eviction, whole=options.contamination == "whole")
    increment = settings.host_increment if options.reuse else 0
    sharing = None
    if options.prefix_sharing:
        device = tree = PrefixPool(device, (settings.prefix_block or size) // size)
        sharing = Sharing(tree, size)
    memory = Memory(
        device,
        ledger,
        size,
        reuse=options.reuse,
        host_increment=increment,
        sharing=sharing,
    )
    return Swaps(desk, options, memory, decisions)
