"""`simulate(scenario) -> Recording`: the one entry point of the simulated machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from calibrate import profile as profiles
from calibrate.profile import Profile
from policy.errors import ConfigError
from policy.integrity import check_counts, check_integrity
from policy.orders.base import Order
from policy.orders.catalog import make_order
from policy.pools.aging import CHURN_REQUESTS, churn, shuffle
from policy.scheduler import Scheduler, picker
from policy.settings import Settings
from policy.systems import System
from sim.clock import Clock
from sim.costs import CopyCosts, StepCosts
from sim.device import Device
from sim.engine import Engine
from sim.link import HostLink
from traces import recording
from traces.draw import Streams
from traces.metrics import summarise
from traces.provenance import provenance
from traces.recorder import Recorder
from traces.recording import Recording
from traces.scenario import Scenario
from traces.sources import open_workload
from traces.turns import TurnDriver
from traces.workload import Workload

#: Checks: none, the cheap counts after every step (a full sweep every FULL_EVERY), or all always.
CHECKS = ("off", "counts", "full")
FULL_EVERY = 4096


@dataclass(frozen=True)
class Setup:
    """What a scenario resolves to before anything runs."""

    scenario: Scenario
    system: System
    profile: Profile
    settings: Settings
    streams: Streams
    workload: Workload


def prepare(scenario: Scenario) -> Setup:
    """Resolve names, sizes and the workload. Raises ConfigError or InputError."""
    profile = profiles.load(scenario.profile)
    if scenario.profile_values:
        profile = profile.with_values(scenario.profile_values)
    streams = Streams(scenario.seed, scenario.run)
    return Setup(
        scenario,
        scenario.resolve_system(),
        profile,
        settings_for(scenario, profile),
        streams,
        open_workload(scenario.workload, streams),
    )


def settings_for(scenario: Scenario, profile: Profile) -> Settings:
    """Pool sizes and limits, with the profile's memory and model where the scenario is silent."""
    pool, limits = scenario.pool, scenario.limits
    size = pool.block_size
    device = pool.device_blocks or profile.device_blocks(size)
    if device < 1:
        raise ConfigError(f"pool.device_blocks: {profile.name} has no room for KV blocks")
    host = pool.host_blocks if pool.host_blocks is not None else profile.host_blocks(size)
    length = limits.max_model_len or profile.model.max_model_len
    steps, nanoseconds = scenario.update_period()
    return Settings(
        device_blocks=device,
        host_blocks=host,
        block_size=size,
        watermark=pool.watermark,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens or max(length, 2048),
        max_paddings=limits.max_paddings,
        max_model_len=length,
        initial_group=scenario.groups.initial_blocks,
        growth_group=scenario.groups.growth_blocks,
        host_increment=scenario.groups.host_increment_blocks,
        update_every=steps,
        update_every_ns=nanoseconds,
        min_run_steps=scenario.hysteresis.min_run_steps,
        max_parkings=scenario.hysteresis.max_parkings,
        token_quantum=scenario.hysteresis.token_quantum,
    )


def make_scheduler(setup: Setup, order: Order | None = None) -> Scheduler:
    """The scheduler of a scenario, its pools aged as the scenario says."""
    scenario, streams = setup.scenario, setup.streams
    if order is None:
        order = make_order(scenario.order_name, streams, scenario.order_settings())
    scheduler = Scheduler(setup.settings, setup.system, order, streams, scenario.rates.start())
    age(scheduler, setup)
    return scheduler


def age(scheduler: Scheduler, setup: Setup) -> None:
    """Use both pools before time zero (`pool.aging`)."""
    kind = setup.scenario.pool.aging
    if kind == "none":
        return
    memory, settings = scheduler.state.memory, setup.settings
    device_pick = picker(setup.streams, "age-device")
    host_pick = picker(setup.streams, "age-host")
    if kind == "shuffle":
        shuffle(memory.device, device_pick)
        shuffle(memory.host, host_pick)
        return
    blocks_for = memory.blocks_for
    lengths = list(_some_lengths(setup.workload))
    churn(
        memory.device,
        [(blocks_for(prompt), blocks_for(reply)) for prompt, reply in lengths],
        device_pick,
        settings.growth_group - 1,
    )
    churn(
        memory.host,
        [(blocks_for(prompt + reply), 0) for prompt, reply in lengths],
        host_pick,
        settings.host_increment if setup.system.reuse else 0,
    )


def _some_lengths(workload: Workload) -> Iterator[tuple[int, int]]:
    """Lengths of the workload's first turns, over again if they are few."""
    first = [(t.input_tokens, t.output_tokens) for t in islice(workload, CHURN_REQUESTS)]
    return islice(cycle(first), CHURN_REQUESTS)


def simulate(
    scenario: Scenario,
    *,
    out: Path | None = None,
    decisions: bool = False,
    check: str = "counts",
    order: Order | None = None,
    progress: Callable[[int], None] | None = None,
) -> Recording:
    """Run a scenario on the simulated machine.

    With `out` the recording is a folder, written under a temporary name and renamed at the end;
    without, it is in memory. Where vLLM 0.3.3 would abort or stall for ever the run ends there and
    its summary has a `verdict`. Raises ConfigError, InputError, or InvariantError from the checks.
    """
    setup = prepare(scenario)
    scheduler = make_scheduler(setup, order)
    if out is None:
        return _record(setup, scheduler, None, decisions, check, progress)
    with recording.claimed(out) as part:
        recorded = _record(setup, scheduler, part, decisions, check, progress)
        recording.write_summary(part, scenario, recorded.summary)
    recorded.folder = out
    return recorded


def _record(
    setup: Setup,
    scheduler: Scheduler,
    folder: Path | None,
    decisions: bool,  # noqa: FBT001
    check: str,
    progress: Callable[[int], None] | None,
) -> Recording:
    recorder = Recorder(folder, decisions=decisions)
    engine = make_engine(setup, scheduler, recorder, check, progress)
    with calm_collector():
        engine.env.run(until=engine.env.process(engine.run()))
    recorded = recorder.close(_facts(setup, scheduler, engine))
    recorded.summary["metrics"] = summarise(recorded)
    recorded.summary["provenance"] = provenance(setup.scenario, setup.profile)
    return recorded


@contextmanager
def calm_collector() -> Iterator[None]:
    """Look for reference cycles rarely: a run allocates many rows that live to its end, and going
    over them again and again costs a tenth of it."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def make_engine(
    setup: Setup,
    scheduler: Scheduler,
    recorder: Recorder,
    check: str,
    progress: Callable[[int], None] | None = None,
) -> Engine:
    """The engine of a scenario with its machine, ready to run."""
    env = Clock()
    system = setup.system
    copies = CopyCosts(setup.profile, system, setup.settings.block_size)
    main_thread = system.dispatch == "main_thread"
    link = HostLink(env, copies, worker_threads=None if main_thread else system.threads)
    device = Device(StepCosts(setup.profile), scheduler)
    return Engine(
        env,
        scheduler,
        TurnDriver(setup.workload),
        device,
        link,
        recorder,
        submits_itself=main_thread,
        last_turn_known=setup.scenario.last_turn_known,
        check=checker(check),
        progress=progress,
    )


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


def _facts(setup: Setup, scheduler: Scheduler, engine: Engine) -> dict[str, Any]:
    """What the tables do not say about a run."""
    memory = scheduler.state.memory
    transfer = setup.profile.transfer
    device = engine.device
    return {
        "format": "fastswitch-run/1",
        "machine": "simulated",
        "scenario": setup.scenario.name,
        "system": setup.system.name,
        "switches": setup.system.switches(),
        "order": scheduler.order.name,
        "planner": "release" if scheduler.follows_release else "rules",
        "workload": {
            "source": setup.workload.header.source,
            "composed_from": list(setup.workload.header.composed_from),
            "rows": engine.driver.num_rows,
            "waited_for_parent": engine.driver.num_waited,
            "waited_for_parent_s": engine.driver.waited_ns / 1e9,
        },
        "profile": setup.profile.name,
        "profile_kind": setup.profile.kind,
        "assumptions": sorted(setup.profile.assumptions()),
        "device_blocks": memory.device.num_blocks,
        "host_blocks": memory.host.num_blocks,
        "block_size": setup.settings.block_size,
        "max_model_len": setup.settings.max_model_len,
        "priority_updates": scheduler.num_updates,
        "contaminated_blocks": memory.ledger.num_contaminated,
        "link_bytes_per_s": {
            "h2d": transfer.to_device.value,
            "d2h": transfer.to_host.value,
        },
        "largest": {
            "batch": device.largest_batch,
            "kv_tokens": device.largest_kv_tokens,
            "prefill_tokens": device.largest_prefill,
        },
        "warnings": _warnings(setup, device),
        "verdict": engine.verdict,
    }


def _warnings(setup: Setup, device: Device) -> list[str]:
    """Where the run left the range its profile is valid in."""
    valid = setup.profile.valid
    found = []
    for what, seen, limit in (
        ("batch", device.largest_batch, valid.max_batch),
        ("KV tokens of a step", device.largest_kv_tokens, valid.max_kv_tokens),
        ("prefill tokens of a step", device.largest_prefill, valid.max_prefill_tokens),
    ):
        if seen > limit:
            found.append(f"{what} reached {seen}, the profile is valid to {limit}: extrapolated")
    return found
