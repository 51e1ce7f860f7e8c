"""Engines by name. One that is added is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable

from policy.choices.catalog import Decisions, named_decisions
from policy.choices.rates import Rates
from policy.desk import Desk
from policy.engines.base import Engine
from policy.engines.ranked import RankedEngine
from policy.engines.swapping import Parts
from policy.engines.vllm_033 import ReleaseEngine
from policy.orders.base import Order
from policy.settings import Settings
from policy.systems import System
from policy.views import Draw

ENGINES: dict[str, Callable[[Parts], Engine]] = {
    "ranked": RankedEngine,
    "vllm-0.3.3": ReleaseEngine,
}


def make_engine(
    settings: Settings,
    system: System,
    order: Order,
    draw: Draw,
    rates: Rates | None = None,
    decisions: Decisions | None = None,
    desk: Desk | None = None,
) -> Engine:
    """The engine of a system. `draw` is the only randomness (which tail a pool takes back).
    `decisions`: in place of those that the system names. Raises ConfigError."""
    decisions = decisions or named_decisions(system, settings, order)
    desk = desk or Desk(settings, order, rates)
    return ENGINES[engine_name(system, order)](Parts(desk, system, decisions, draw))


def engine_name(system: System, order: Order) -> str:
    """Which engine serves a system under an order."""
    follows_release = system.fcfs_planner == "release" and type(order) is Order
    return "vllm-0.3.3" if follows_release else "ranked"
