"""The sections of a scenario that make it a fleet: groups of replicas, and what the gateway hears of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from policy.errors import ConfigError
from policy.routing.catalog import ROUTERS
from traces.strict import MAX_SECONDS, quoted
from traces.workload_spec import Positive, Section

DEFAULT_ROUTER = "sticky-least"
#: Most replicas of a fleet.
MAX_REPLICAS = 1024


class ReplicaSpec(Section):
    """A group of equal replicas. `profile` and `system`: the scenario's where not given. `gpus`: of one
    replica, for GPU hours; `price_per_hour`: of one replica, in whatever currency."""

    count: Annotated[int, Field(ge=1, le=MAX_REPLICAS)] = 1
    name: str | None = None
    profile: str | None = None
    system: str | dict[str, Any] | None = None
    gpus: Positive = 1
    price_per_hour: Annotated[float, Field(ge=0, le=1e9)] | None = None


class TelemetrySpec(Section):
    """What the gateway hears: every replica is read each `period_s`, from a drawn moment on (`drawn`) or
    all at once (`aligned`); a value is known `delay_s` later, a share `loss` of readings never."""

    period_s: Annotated[float, Field(ge=1e-6, le=MAX_SECONDS)] = 0.05
    delay_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 0.0
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    phase: Literal["drawn", "aligned"] = "drawn"


def groups_of(value: Any) -> Any:
    """`replicas: 4` is one group of four."""
    return [{"count": value}] if isinstance(value, int) and not isinstance(value, bool) else value


def check_fleet(
    replicas: tuple[ReplicaSpec, ...], order: str, router: str, telemetry: TelemetrySpec
) -> None:
    """Raise ConfigError for a fleet that cannot be, or for what only a fleet reads where there is none."""
    if router not in ROUTERS:
        raise ConfigError(f"router: {quoted(router)} is not one of {', '.join(ROUTERS)}")
    if not replicas:
        if router != DEFAULT_ROUTER or telemetry != TelemetrySpec():
            field = "telemetry" if router == DEFAULT_ROUTER else "router"
            raise ConfigError(
                f"{field}: changes nothing without replicas; say how many, replicas: 4"
            )
        return
    count = sum(group.count for group in replicas)
    if count > MAX_REPLICAS:
        raise ConfigError(f"replicas: {count} in all, at most {MAX_REPLICAS}")
    if count > 1 and order in ("random", "markov"):
        raise ConfigError(
            f"order {order}: its priorities change with the steps of one engine, and {count} replicas"
            " count their own; take fcfs, priority or vtc (each replica's own)"
        )
