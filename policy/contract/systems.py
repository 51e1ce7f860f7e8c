"""What every system, and every small decision in it, must keep to.

`check_system` serves the crowd of `policy.contract.crowd` under several orders, each twice, and asks:

* **form**: every decision answers in its kind's form and raises nothing;
* **no mutation**: decisions see read-only views;
* **a decision is a question**: asked twice at one moment, it has one answer, and proposing is not
  doing;
* **determinism**: same events, same plans, in another process too;
* **safety**: around every plan all laws of `policy.integrity` hold;
* **progress**: once arrivals stop, everybody is served. A system that follows vLLM 0.3.3 may end with
  the release's own verdict under FCFS;
* **bounded parkings**: as rule 10 allows, unless the system switches that rule off.

Switches without an object of their own (batch shape, movement, pools, ...) are asked the last four.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from policy.choices.catalog import Decisions, named_decisions
from policy.contract.crowd import SETTINGS, Machine, Salted, crowd, draw
from policy.contract.witness import (
    WitnessedDisplacement,
    WitnessedEviction,
    WitnessedOverlap,
    WitnessedPreemption,
    WitnessedVictim,
)
from policy.errors import ConfigError, FastSwitchError, ProgressError, ReleaseVerdict
from policy.orders.catalog import OrderSettings, make_order
from policy.plan import Plan
from policy.scheduler import Scheduler
from policy.systems import System, served_under

#: Without numbers, and two whose keys change in every step, by chance and by what was served.
ORDERS = ("fcfs", "random", "vtc")

_WITNESSES: dict[str, Callable[[Any], Any]] = {
    "overlap": WitnessedOverlap,
    "displacement": WitnessedDisplacement,
    "preemption": WitnessedPreemption,
    "eviction": WitnessedEviction,
    "victim": WitnessedVictim,
}


def check_system(system: System, **parts: Callable[[], Any]) -> None:
    """Raise ConfigError naming every promise that a system breaks, in at most five lines.

    `parts`: makers of decisions in place of those that the system names, by field of
    `policy.choices.catalog.Decisions`.
    """
    found = system_violations(system, **parts)
    if found:
        raise ConfigError("\n".join(found[:5]))


def system_violations(system: System, **parts: Callable[[], Any]) -> list[str]:
    """Every promise that a system breaks, in words; an empty list if it keeps them all."""
    found: list[str] = []
    for order in ORDERS:
        for problem in _violations_under(order, system, parts):
            if problem not in found:
                found.append(problem)
    return found


def _violations_under(order: str, system: System, parts: dict[str, Callable[[], Any]]) -> list[str]:
    try:
        first = _served(order, system, parts, str)
        second = _served(order, system, parts, Salted)
    except ConfigError as error:
        return [str(error)]
    except FastSwitchError as error:
        promise = "progress" if isinstance(error, ProgressError) else "safety"
        return [f"system {system.name}: {promise} is lost under {order}: {error}"]
    for step, (one, other) in enumerate(zip_longest(first, second)):
        if one != other:
            return [
                f"system {system.name}: it is not deterministic under {order}: serving the same crowd"
                f" twice, plan {step} was {_shown(one)} and then {_shown(other)}; a decision must not"
                " hang on id(), hash(), the order of a set, a clock, or chance"
            ]
    return []


def _shown(plan: Plan | None) -> str:
    """What differs most often, in few words."""
    if plan is None:
        return "none"
    parked = ", ".join(f"{name} by {mode.value}" for name, mode in plan.preempt)
    return f"(parks {parked or 'nobody'}, {len(plan.copies)} copies, {len(plan.prefill)} prefills)"


def _served(
    order_name: str,
    system: System,
    parts: dict[str, Callable[[], Any]],
    text: Callable[[str], str],
) -> list[Plan]:
    """All plans until everybody was served. Raises FastSwitchError for a broken promise."""
    order = make_order(order_name, draw, OrderSettings())
    system = served_under(system, is_fcfs=order_name == "fcfs")
    made: dict[str, Any] = named_decisions(system.options, SETTINGS, order)._asdict()
    for kind, maker in parts.items():
        try:
            made[kind] = maker()
        except Exception as error:
            raise ConfigError(f"{kind}: making it raised {error!r}") from error
    for kind, part in made.items():
        made[kind] = None if part is None else _WITNESSES[kind](part)
    witnessed = Decisions(**made)
    scheduler = Scheduler(SETTINGS, system, order, draw, decisions=witnessed)
    machine = Machine(scheduler, crowd(text), checks=text is str)
    try:
        machine.serve()
    except ReleaseVerdict:
        if scheduler.engine.name == "ranked":
            raise
    return machine.plans
