"""From a scenario to a scheduler with aged pools, and from a turn to a request.

Shared by every machine, so that both serve the same thing. Memory sizes come from the machine:
a profile's, or what a real device has left.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from policy.errors import ConfigError
from policy.integrity import check_counts, check_integrity
from policy.orders.base import Order
from policy.orders.catalog import make_order
from policy.pools.aging import CHURN_REQUESTS, churn, shuffle
from policy.pools.catalog import picker
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import PLANNERS, V1, System, served_under
from policy.views import BlockNames
from runs.scenario import Scenario
from runs.turns import Arrival, TurnDriver, Turns, Users
from traces.randomness import Streams
from traces.workload import Turn, Workload, repeats_all

#: Checks: none, the cheap counts after every step (a full sweep every FULL_EVERY), or all always.
CHECKS = ("off", "counts", "full")
FULL_EVERY = 4096
#: `max_num_batched_tokens` of chunked steps where the scenario is silent, and `max_num_seqs`.
CHUNKED_TOKENS = 2048
SEATS = 256
_GIB = 1 << 30


@dataclass(frozen=True)
class Serving:
    """What a scenario resolves to before anything runs, on any machine."""

    scenario: Scenario
    system: System
    settings: Settings
    streams: Streams
    workload: Workload


def v1_limits(device_bytes: float, machine: str) -> tuple[int, int]:
    """`max_num_batched_tokens` and `max_num_seqs` that vLLM 0.33.0's server takes for a device
    (`EngineArgs.get_batch_defaults`)."""
    if device_bytes >= 160 * _GIB:
        return 16384, 1024
    if device_bytes >= 70 * _GIB and "a100" not in machine.lower():
        return 8192, 1024
    return CHUNKED_TOKENS, SEATS


def settings_for(
    scenario: Scenario,
    *,
    device_blocks: int,
    host_blocks: int,
    max_model_len: int,
    v1: tuple[int, int] = (CHUNKED_TOKENS, SEATS),
) -> Settings:
    """Pool sizes and limits; the machine's where the scenario is silent, `v1` where the engine is V1.
    Raises ConfigError."""
    if scenario.replicas:
        raise ConfigError("replicas: one engine is asked for here, and the scenario has a fleet")
    pool, limits = scenario.pool, scenario.limits
    device = pool.device_blocks or device_blocks
    if device < 1:
        raise ConfigError("pool.device_blocks: the device has no room for KV blocks")
    length = limits.max_model_len or max_model_len
    system = scenario.resolve_system()
    step_tokens, seats, watermark = CHUNKED_TOKENS, SEATS, 0.01
    if system.engine == V1:
        (step_tokens, seats), watermark = v1, 0.0
    elif not system.is_chunked:
        step_tokens = max(length, 2048)
    steps, nanoseconds = scenario.update_period()
    return Settings(
        device_blocks=device,
        host_blocks=pool.host_blocks if pool.host_blocks is not None else host_blocks,
        block_size=pool.block_size,
        watermark=watermark if pool.watermark is None else pool.watermark,
        max_num_seqs=limits.max_num_seqs or seats,
        max_num_batched_tokens=limits.max_num_batched_tokens or step_tokens,
        max_paddings=limits.max_paddings,
        max_model_len=length,
        initial_group=scenario.groups.initial_blocks,
        growth_group=scenario.groups.growth_blocks,
        host_increment=scenario.groups.host_increment_blocks,
        update_every=steps,
        update_every_ns=nanoseconds,
        displacement_gap=scenario.hysteresis.gap,
        min_run_steps=scenario.hysteresis.min_run_steps,
        max_parkings=scenario.hysteresis.max_parkings,
        token_quantum=scenario.hysteresis.token_quantum,
        backup_every=scenario.movement.every,
        backup_blocks=scenario.movement.blocks,
        backup_depth=scenario.movement.depth,
        free_low=scenario.movement.low,
        free_high=scenario.movement.high,
        offload_chunk_blocks=pool.offload_chunk_blocks,
        reserve_full_isl=limits.scheduler_reserve_full_isl,
        long_prefill_token_threshold=limits.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=limits.long_prefill_token_threshold_adaptive,
    )


class Kept(OrderedDict[Any, Any]):
    """Aged pools by all that they come from, which runs of one process have in common. Of too many,
    those not used for longest go."""

    def __init__(self, most: int = 16) -> None:
        super().__init__()
        self._most = most

    def find(self, key: Any) -> Any:
        """What is kept, None if it is not there (any more)."""
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key]

    def add(self, key: Any, value: Any) -> None:
        """Keep it for the next run."""
        self[key] = value
        if len(self) > self._most:
            self.popitem(last=False)


def make_scheduler(
    serving: Serving, order: Order | None = None, kept: Kept | None = None
) -> Scheduler:
    """The scheduler of a scenario, its pools aged as the scenario says, or as they are `kept`. `order`:
    the user's own."""
    scenario, streams = serving.scenario, serving.streams
    if order is None:
        order = make_order(scenario.order_name, streams, scenario.order_settings())
    system = served_under(serving.system, is_fcfs=type(order) is Order)
    scheduler = Scheduler(serving.settings, system, order, streams, scenario.rates.start())
    age(scheduler, serving, kept)
    return scheduler


def planner_of(scheduler: Scheduler) -> str:
    """What run.json calls the engine that decided: the thirteen rules, or the release's own."""
    return PLANNERS.get(scheduler.engine.name, scheduler.engine.name)


def age(scheduler: Scheduler, serving: Serving, kept: Kept | None = None) -> None:
    """Use both pools before time zero (`pool.aging`)."""
    kind, streams = serving.scenario.pool.aging, serving.streams
    if kind == "none":
        return
    if streams.replica:  # all replicas of a fleet begin alike: as the first one
        first = replace(serving, streams=Streams(streams.seed, streams.run))
        same = Scheduler(serving.settings, scheduler.system, Order(), first.streams)
        age(same, first, kept)
        both = zip(scheduler.engine.pools(), same.engine.pools(), strict=True)
        for (pool, _), (used, _) in both:
            pool.wear(used.worn())
        return
    lengths: tuple[tuple[int, int], ...] = ()
    if kind == "churn":
        lengths = tuple(islice(cycle(aging_lengths(serving)), CHURN_REQUESTS))

    def blocks_for(tokens: int) -> int:
        return -(-tokens // serving.settings.block_size)

    for pool, reserve in scheduler.engine.pools():
        contexts = tuple((blocks_for(prompt + reply), 0) for prompt, reply in lengths)
        if pool.name == "device":
            contexts = tuple((blocks_for(prompt), blocks_for(reply)) for prompt, reply in lengths)
        key = (
            *(kind, pool.kind, pool.name, pool.num_blocks),
            *(streams.seed, streams.run, reserve, contexts),
        )
        worn = None if kept is None else kept.find(key)
        if worn is not None:
            pool.wear(worn)
            continue
        pick = picker(streams, f"age-{pool.name}")
        if kind == "shuffle":
            shuffle(pool, pick)
        else:
            churn(pool, contexts, pick, reserve)
        if kept is not None:
            kept.add(key, pool.worn())


def aging_lengths(serving: Serving) -> list[tuple[int, int]]:
    """Lengths of the workload's first turns, which `churn` ages with, over again if they are few."""
    if serving.scenario.pool.aging != "churn":
        return []
    return [(t.input_tokens, t.output_tokens) for t in islice(serving.workload, CHURN_REQUESTS)]


def checker(kind: str) -> Callable[[Scheduler], None] | None:
    """The function called after every schedule and update. Raises ConfigError for a bad name."""
    if kind == "off":
        return None
    if kind == "full":
        return check_integrity
    if kind != "counts":
        raise ConfigError(f"check: {kind!r} is not one of {', '.join(CHECKS)}")
    calls = 0

    def counts(scheduler: Scheduler) -> None:
        nonlocal calls
        calls += 1
        if calls % FULL_EVERY:
            check_counts(scheduler)
        else:
            check_integrity(scheduler)

    return counts


# ---------------------------------------------------------------------- turns


def make_driver(serving: Serving) -> TurnDriver:
    """Who arrives when, as the scenario says."""
    scenario = serving.scenario
    return TurnDriver(
        serving.workload,
        last_turn_known=scenario.last_turn_known,
        concurrency=scenario.workload.concurrency,
        users=users_of(scenario),
    )


def users_of(scenario: Scenario) -> Users | None:
    """Who begins the sessions, where the scenario says how many people there are."""
    workload = scenario.workload
    if workload.users is None:
        return None
    return Users(workload.users, round(workload.think_mean_s * 1_000_000_000))


def client_facts(driver: Turns) -> dict[str, float]:
    """Turns that waited in the client's own queue, and for how long in all; nothing of a client that
    has none."""
    if not driver.has_queue:
        return {}
    return {"queued_at_client": driver.num_queued, "queued_at_client_s": driver.queued_ns / 1e9}


def assumptions(workload: Workload, driver: Turns) -> list[str]:
    """What a run took for granted of its workload, and the workload does not say."""
    found = list(workload.header.assumed)
    if driver.num_unsaid:
        found.append(repeats_all(driver.num_unsaid))
    return [f"assumed: {what}" for what in found]


def unservable(turn: Turn) -> str | None:
    """Why a row can never be served, whatever the system: it is recorded as rejected."""
    if turn.input_tokens == 0:
        return "empty prompt"
    if turn.output_tokens == 0:
        return "no output tokens in the source: it failed or was cancelled there"
    return None


def output_target(turn: Turn, longest: int) -> int:
    """Output tokens until the turn is done, in a context of at most `longest` tokens."""
    return min(turn.output_tokens, max(1, longest - turn.input_tokens))


def longest_context(settings: Settings, system: System) -> int:
    """Tokens at which a context stops: V1 at `max_model_len`, vLLM 0.3.3 (`_check_stop`) one later."""
    return settings.max_model_len + (system.engine != V1)


def make_request(
    arrival: Arrival,
    *,
    last_turn_known: bool,
    prefix_keys: tuple[int | str, ...] = (),
    block_names: BlockNames | None = None,
) -> Request:
    """What the scheduler may know of a turn."""
    turn = arrival.turn
    return Request(
        turn.request_id,
        arrival_ns=arrival.arrival_ns,
        input_tokens=turn.input_tokens,
        session_id=turn.session_id,
        turn=turn.turn,
        client_id=turn.client_id,
        parent_id=arrival.parent_id,
        parent_prefix_tokens=turn.parent_prefix_tokens,
        priority=turn.priority,
        is_last_turn=arrival.is_last and last_turn_known,
        prefix_keys=prefix_keys,
        block_names=block_names,
    )
