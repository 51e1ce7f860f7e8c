"""A look inside the engine of a scheduler: what machines never see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from policy.engines.base import Engine, Until
from policy.engines.swapping import SwapEngine
from policy.engines.swaps import Swaps
from policy.memory.memory import Memory
from policy.memory.transfers import Fate, Transfer
from policy.plan import Plan
from policy.scheduler import Scheduler


def swaps_of(scheduler: Scheduler) -> Swaps:
    """Contexts and copies of an engine that swaps."""
    engine = scheduler.engine
    if isinstance(engine, Wrapped):
        engine = engine.inner
    assert isinstance(engine, SwapEngine)
    return engine.swaps


def memory_of(scheduler: Scheduler) -> Memory:
    """Its pools, ledger and copies in flight."""
    return swaps_of(scheduler).memory


def is_cancelled(transfer: Transfer) -> bool:
    """Its source was kept, or nobody wants it."""
    return transfer.fate in (Fate.KEPT, Fate.UNWANTED)


class Wrapped:
    """An engine around another one, to decide otherwise or to be watched: `scheduler.engine = ...`."""

    def __init__(self, engine: Engine) -> None:
        self.inner = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def decide(self) -> tuple[Plan, Until]:
        return self.inner.decide()


def wrap(scheduler: Scheduler, wrapped: Callable[[Engine], Wrapped]) -> Scheduler:
    """The scheduler, its engine wrapped."""
    scheduler.engine = cast(Engine, wrapped(scheduler.engine))
    return scheduler
