"""Engines by name. One that is added is a file beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable

from policy.choices.catalog import Decisions
from policy.choices.rates import Rates
from policy.desk import Desk
from policy.engines.base import Engine
from policy.engines.ranked import RankedEngine
from policy.engines.swapping import Parts
from policy.engines.vllm_033 import ReleaseEngine
from policy.engines.vllm_v1 import V1Engine
from policy.engines.vllm_v1_async import V1AsyncSwapEngine
from policy.engines.vllm_v1_offload import V1OffloadEngine
from policy.engines.vllm_v1_swap import V1SwapEngine
from policy.errors import ConfigError
from policy.orders.base import Order
from policy.settings import Settings
from policy.systems import ALIASES, RELEASE, V1, System
from policy.views import Draw


def v1_engine(parts: Parts) -> Engine:
    """V1, with its offloading connector or preemption by swap where the system says so."""
    options = parts.system.options
    if options.preemption == "swap":
        return V1SwapEngine(parts) if options.overlap == "sync" else V1AsyncSwapEngine(parts)
    return V1Engine(parts) if options.offload == "none" else V1OffloadEngine(parts)


ENGINES: dict[str, Callable[[Parts], Engine]] = {
    "ranked": RankedEngine,
    RELEASE: ReleaseEngine,
    V1: v1_engine,
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
    if system.engine not in ENGINES:
        raise ConfigError(f"system.engine: {system.engine!r} is not one of {', '.join(ENGINES)}")
    if system.engine == RELEASE and type(order) is not Order:
        raise ConfigError(
            f"system {system.name}: vLLM 0.3.3 knows no order but fcfs, and this is {order.name}; its"
            f" memory under other orders is called {ALIASES.get(system.name, 'paged-keep')}"
        )
    desk = desk or Desk(settings, order, rates)
    return ENGINES[system.engine](Parts(desk, system, draw, decisions))
