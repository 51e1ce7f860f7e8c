"""What a scenario asks for and a run cannot read: nothing asked for is ignored.

A field is asked for where its value is not the default. Each field that not every run reads has a
line here: who reads it. A study refuses what none of its runs reads, before the first; a single run
that was started all the same warns of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from policy.errors import ConfigError
from policy.systems import V1, System, served_under
from runs.scenario import Scenario
from traces.sources import refuse_times
from traces.workload_spec import WorkloadSpec


class _Asked(NamedTuple):
    """A scenario as far as readers of fields look at it. `order`: None for a user's own, of which
    nothing is known."""

    scenario: Scenario
    system: System
    order: str | None


_Reads = Callable[[_Asked], bool]


def _orders(*names: str) -> _Reads:
    return lambda asked: asked.order is None or asked.order in names


def _systems(**switches: Any) -> _Reads:
    """Systems one of whose switches is as given, or is among those given."""

    def reads(asked: _Asked) -> bool:
        return any(
            getattr(asked.system.options, name, None)
            in (wanted if isinstance(wanted, tuple) else (wanted,))
            for name, wanted in switches.items()
        )

    return reads


def _engines(*names: str) -> _Reads:
    return lambda asked: asked.system.engine in names


def _both(one: _Reads, other: _Reads) -> _Reads:
    return lambda asked: one(asked) and other(asked)


_GROUPS = _both(_systems(allocator=("groups", "buddy")), lambda asked: asked.system.engine != V1)
_BACKUPS = _systems(movement=("write_through", "incremental"))
_PATTERN = _orders("random", "markov")
_SWAPS = _systems(preemption="swap")
_OFFLOADS = _systems(offload=("prompt", "all"))
_COSTS = _systems(preemption="cost")
_RULE_10 = _both(_engines("ranked"), _systems(caps_parkings=True))

UNREAD = "changes nothing: "
#: Field -> which runs read it, and in words what the others lack.
READ_BY: dict[str, tuple[_Reads, str]] = {
    "workload.think_mean_s": (
        lambda asked: (
            asked.scenario.workload.think == "exponential"
            or asked.scenario.workload.users is not None
        ),
        "is the mean of think: exponential, and users' pause between conversations",
    ),
    "workload.priority": (_orders("priority"), "is read by order priority"),
    "workload.hash_block": (
        _systems(prefix_sharing=True),
        "gives prompts ids, which systems with prefix_sharing read",
    ),
    "priority.pattern": (
        lambda asked: asked.order is None or asked.order == asked.scenario.priority.pattern,
        "is an order, and another one is asked for",
    ),
    "priority.frequency": (_PATTERN, "is read by orders random and markov"),
    "priority.period_s": (_PATTERN, "is read by orders random and markov"),
    "priority.share": (_orders("markov"), "is read by order markov"),
    "priority.stay": (_orders("markov"), "is read by order markov"),
    "pool.host_blocks": (
        lambda asked: asked.system.engine != V1 or _OFFLOADS(asked) or _SWAPS(asked),
        "is read by systems that swap or offload",
    ),
    "pool.offload_chunk_blocks": (_OFFLOADS, "is read by systems that offload"),
    "limits.scheduler_reserve_full_isl": (_engines(V1), "is read by the engine vllm-v1"),
    "limits.long_prefill_token_threshold": (_engines(V1), "is read by the engine vllm-v1"),
    "limits.long_prefill_token_threshold_adaptive": (_engines(V1), "is read by the engine vllm-v1"),
    "limits.max_paddings": (
        _systems(shape="prefill_only"),
        "bounds the padding of shape prefill_only",
    ),
    "groups.initial_blocks": (
        _GROUPS,
        "is read by the allocators groups and buddy, but not vllm-v1",
    ),
    "groups.growth_blocks": (
        _GROUPS,
        "is read by the allocators groups and buddy, but not vllm-v1",
    ),
    "groups.host_increment_blocks": (_systems(reuse=True), "is read by systems with reuse"),
    "hysteresis.gap": (_systems(displacement="gap"), "is read by systems that displace by gap"),
    "hysteresis.min_run_steps": (_engines("ranked"), "is a rule of the engine ranked"),
    "hysteresis.max_parkings": (
        _RULE_10,
        "is rule 10, which this system does not keep",
    ),
    "hysteresis.token_quantum": (
        _RULE_10,
        "is rule 10, which this system does not keep",
    ),
    "movement.every": (_systems(movement="incremental"), "is read by movement incremental"),
    "movement.blocks": (_BACKUPS, "is read by movement incremental and write_through"),
    "movement.depth": (_systems(movement="incremental"), "is read by movement incremental"),
    "movement.low": (_systems(movement="proactive"), "is read by movement proactive"),
    "movement.high": (_systems(movement="proactive"), "is read by movement proactive"),
    "vtc": (_orders("vtc"), "is read by order vtc"),
    "rates.step_ns": (_systems(overlap="adaptive"), "is read by overlap adaptive"),
    "rates.load_ns_per_block": (
        _systems(overlap="adaptive", preemption="cost"),
        "is read by overlap adaptive and preemption cost",
    ),
    "rates.store_ns_per_block": (_COSTS, "is read by preemption cost"),
    "rates.prefill_ns_per_token": (
        _systems(preemption="cost", victim="least_cost"),
        "is read by preemption cost and victim least_cost",
    ),
    "last_turn_known": (
        _systems(between_turns=("keep_host", "keep_device")),
        "is read by systems that keep KV between turns",
    ),
}


def asked_for(scenario: Scenario) -> dict[str, Any]:
    """Fields whose value is not the default, by dotted name. A section without a default, and one
    that READ_BY names as a whole, is one field."""
    found: dict[str, Any] = {}

    def look(section: Any, before: str) -> None:
        for name, field in type(section).model_fields.items():
            value, path = getattr(section, name), f"{before}{name}"
            if value == field.get_default(call_default_factory=True):
                continue
            if path in READ_BY or not hasattr(type(value), "model_fields"):
                found[path] = value
            else:
                look(value, f"{path}.")

    look(scenario, "")
    return found


def unread(scenario: Scenario, *, own_order: bool = False) -> dict[str, str]:
    """Fields that are asked for and that a run of the scenario does not read, and why."""
    order = None if own_order else scenario.order_name
    system = served_under(scenario.resolve_system(), is_fcfs=order == "fcfs")
    asked = _Asked(scenario, system, order)
    return {
        field: f"{UNREAD}{READ_BY[field][1]}"
        for field in asked_for(scenario)
        if field in READ_BY and not READ_BY[field][0](asked)
    }


class Heeded:
    """The runs of a study, one by one, as far as something asked for may change none of them.

    `chosen`: fields that were put over a scenario's file. Where an order or a system is among them,
    what the file says for another one is not asked for any more.
    """

    def __init__(self, *, own_order: bool = False, chosen: Iterable[str] = ()) -> None:
        self._own_order = own_order
        self._chosen = tuple(chosen)
        self._is_other = any(path.split(".")[0] in ("order", "system") for path in self._chosen)
        self._common: dict[str, str] | None = None
        self._workloads: list[WorkloadSpec] = []

    def add(self, scenario: Scenario) -> None:
        """One run. Raises ConfigError for arrivals or think times that its workload has already."""
        found = unread(scenario, own_order=self._own_order)
        if self._common is not None:
            found = {field: why for field, why in self._common.items() if field in found}
        self._common = found
        if scenario.workload not in self._workloads:
            self._workloads.append(scenario.workload)
            refuse_times(scenario.workload)

    @property
    def unread(self) -> dict[str, str]:
        """What is asked for and none of the runs reads, and why."""
        return {
            field: why
            for field, why in (self._common or {}).items()
            if not self._is_other
            or any(path == field or path.startswith(f"{field}.") for path in self._chosen)
        }


def refuse_unread(
    scenarios: Iterable[Scenario], *, own_order: bool = False, chosen: Iterable[str] = ()
) -> None:
    """Raise ConfigError for what is asked for and changes none of these runs (see Heeded)."""
    heeded = Heeded(own_order=own_order, chosen=chosen)
    for scenario in scenarios:
        heeded.add(scenario)
    for field, why in heeded.unread.items():
        raise ConfigError(in_vain(field, why))


def in_vain(field: str, why: str) -> str:
    """What to say of a field that is asked for and that nothing reads."""
    return f"{field}: {why}; take it out, or ask for what reads it"
