"""The small decisions of one scheduler, made from the names in its system."""

from __future__ import annotations

from typing import NamedTuple

from policy.choices.displacement import DISPLACEMENTS, Displacement
from policy.choices.host_eviction import HOST_EVICTIONS, HostEviction
from policy.choices.overlap import OVERLAPS, Overlap
from policy.choices.preemption import PREEMPTIONS, Preemption
from policy.choices.victim import VICTIMS, Victim
from policy.orders.base import Order
from policy.settings import Settings
from policy.systems import SwapOptions


class Decisions(NamedTuple):
    """One of each. They nominate; planner, state and ledger keep the safety rules. `victim`: None where
    the engine has a choice of its own."""

    overlap: Overlap
    displacement: Displacement
    preemption: Preemption
    eviction: HostEviction
    victim: Victim | None = None


def named_decisions(options: SwapOptions, settings: Settings, order: Order) -> Decisions:
    """The decisions that a system's options name, fresh."""
    return Decisions(
        OVERLAPS[options.overlap](),
        DISPLACEMENTS[options.displacement](
            settings.displacement_gap * order.unit, settings.block_size
        ),
        PREEMPTIONS[options.preemption](),
        HOST_EVICTIONS[options.host_eviction](settings.host_blocks),
        None if (victim := VICTIMS[options.victim]) is None else victim(),
    )
