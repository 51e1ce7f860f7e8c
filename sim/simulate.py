"""`simulate(scenario) -> Recording`: the one entry point of the simulated machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import simpy

from calibrate import profile as profiles
from calibrate.profile import Profile, TokenCost
from policy.scheduler import Scheduler
from runs import recording
from runs.lineages import Names, names_for
from runs.loop import facts_of
from runs.metrics.served import rejected_because
from runs.metrics.summary import summarise
from runs.obeyed import unread
from runs.provenance import provenance
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario
from runs.serving import (
    Kept,
    Serving,
    aging_lengths,
    assumptions,
    checker,
    make_driver,
    make_scheduler,
    settings_for,
    v1_limits,
)
from runs.turns import Turns
from runs.user_order import OrderLike, UserOrder, user_order
from sim.clock import Clock
from sim.costs import CopyCosts, step_costs
from sim.device import Device
from sim.engine import Engine
from sim.link import HostLink
from traces.prefixes import Keys, keys_from_ids, with_prefix_block
from traces.randomness import Streams
from traces.sources import open_workload


@dataclass(frozen=True)
class Setup(Serving):
    """What a scenario resolves to before anything runs on the simulated machine."""

    profile: Profile


def prepare(scenario: Scenario, profile: Profile | None = None) -> Setup:
    """Resolve names, sizes and the workload; `profile` in place of the scenario's.

    Raises ConfigError or InputError.
    """
    profile = profile or profiles.load(scenario.profile)
    profile = profile.drawn(scenario.profile_draw)
    if scenario.profile_values:
        profile = profile.with_values(scenario.profile_values)
    streams = Streams(scenario.seed, scenario.run, scenario.replica)
    settings = settings_for(
        scenario,
        device_blocks=profile.device_blocks(scenario.pool.block_size),
        host_blocks=profile.host_blocks(scenario.pool.block_size),
        max_model_len=profile.model.max_model_len,
        v1=v1_limits(profile.memory.device_bytes.value, profile.machine),
    )
    system = scenario.resolve_system()
    workload = open_workload(scenario.workload, Streams(scenario.seed, scenario.run))
    settings = with_prefix_block(settings, system, workload.header)
    return Setup(scenario, system, settings, streams, workload, profile)


def simulate(
    scenario: Scenario,
    *,
    out: Path | None = None,
    decisions: bool = False,
    check: str = "counts",
    order: OrderLike | None = None,
    profile: Profile | None = None,
    progress: Callable[[int], None] | None = None,
    kept: Kept | None = None,
) -> Recording:
    """Run a scenario on the simulated machine, or on that of `profile`.

    `order`: the user's own in place of the scenario's (`runs.user_order`); an Order is copied as it is.
    `kept`: what earlier runs of this process made and this one may use, which changes nothing else.
    With `out` the recording is a folder, written under a temporary name and renamed at the end;
    without, it is in memory. Where vLLM 0.3.3 would abort or stall for ever the run ends there and
    its summary has a `verdict`. Raises ConfigError, InputError, or InvariantError from the checks.
    """
    setup = prepare(scenario, profile)
    own = None if order is None else user_order(order)
    scheduler = make_scheduler(setup, None if own is None else own.make(setup.streams), kept)
    if out is None:
        return _record(setup, scheduler, own, None, decisions, check, progress)
    with recording.claimed(out) as part:
        recording.begin(part, scenario)
        recorded = _record(setup, scheduler, own, part, decisions, check, progress)
        recording.write_summary(part, recorded.summary)
    recorded.folder = out
    return recorded


def _record(
    setup: Setup,
    scheduler: Scheduler,
    own: UserOrder | None,
    folder: Path | None,
    decisions: bool,  # noqa: FBT001
    check: str,
    progress: Callable[[int], None] | None,
) -> Recording:
    aging = aging_lengths(setup) if decisions else []
    header = setup.workload.header
    with Recorder(folder, decisions=decisions, aging=aging, header=header) as recorder:
        engine = make_engine(setup, scheduler, recorder, check, progress)
        with calm_collector():
            engine.env.run(until=engine.env.process(engine.run()))
        return close(setup, scheduler, engine, recorder, own)


def close(
    setup: Setup, scheduler: Scheduler, engine: Engine, recorder: Recorder, own: UserOrder | None
) -> Recording:
    """The recording of a run that is over, with its summary."""
    recorded = recorder.close(_facts(setup, scheduler, engine))
    recorded.summary["metrics"] = summarise(recorded)
    if own is not None and setup.scenario.drawn == "nothing":
        recorded.summary["workload"]["drawn"] = "priorities"  # a user's own order may draw
    recorded.summary["rejected_because"] = rejected_because(recorded)
    recorded.summary["provenance"] = provenance(setup.scenario, setup.profile, own)
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
    *,
    watch: Callable[[Scheduler], None] | None = None,
    env: Clock | None = None,
    driver: Turns | None = None,
    pushed: Callable[[], simpy.Event] | None = None,
    keys: Keys | None = None,
    names: Names | None = None,
) -> Engine:
    """The engine of a scenario with its machine, ready to run. `watch`, `env`, `driver`, `pushed`: of a
    fleet or a door; the first is called after every plan and update. `keys`, `names`: of what the driver
    hands out, where the workload does not say."""
    env = Clock() if env is None else env
    system = setup.system
    if keys is None:
        keys = keys_from_ids(setup.workload.header, system)
    copies = CopyCosts(setup.profile, system, setup.settings.block_size)
    workers = system.transport.workers
    link = HostLink(env, copies, worker_threads=workers)
    device = Device(step_costs(setup.profile), scheduler)
    return Engine(
        env,
        scheduler,
        make_driver(setup) if driver is None else driver,
        device,
        link,
        recorder,
        submits_itself=workers is None,
        last_turn_known=setup.scenario.last_turn_known,
        keys=keys,
        names=names or names_for(system, setup.settings, keys),
        plans_ahead=system.transport.async_scheduling,
        frontend_ns=frontend_ns(setup.profile),
        check=_both(checker(check), watch),
        progress=progress,
        pushed=pushed,
    )


def _both(
    one: Callable[[Scheduler], None] | None, other: Callable[[Scheduler], None] | None
) -> Callable[[Scheduler], None] | None:
    """One after the other, as far as there are."""
    if one is None or other is None:
        return one or other
    first, second = one, other

    def both(scheduler: Scheduler) -> None:
        first(scheduler)
        second(scheduler)

    return both


def frontend_ns(profile: Profile) -> int:
    """What lies between a client and the engine, ns."""
    return round(profile.step.first_token.value) if isinstance(profile.step, TokenCost) else 0


def _facts(setup: Setup, scheduler: Scheduler, engine: Engine) -> dict[str, Any]:
    """What the tables do not say about a run."""
    transfer = setup.profile.transfer
    device = engine.device
    return {
        "format": recording.FORMAT,
        "machine": "simulated",
        **facts_of(setup, engine, drawn=setup.scenario.drawn),
        "profile": setup.profile.name,
        "profile_kind": f"{'changed ' * bool(setup.scenario.profile_values)}{setup.profile.kind}",
        "assumptions": sorted(setup.profile.assumptions()),
        "frontend_ns": frontend_ns(setup.profile),
        "link_bytes_per_s": {
            "h2d": transfer.to_device.value,
            "d2h": transfer.to_host.value,
        },
        "largest": {
            "batch": device.largest_batch,
            "kv_tokens": device.largest_kv_tokens,
            "prefill_tokens": device.largest_prefill,
        },
        "warnings": _warnings(setup, scheduler, engine),
    }


def _too_long(setup: Setup) -> list[str]:
    """A context that was asked for and that the model was not made for, or the pool cannot hold."""
    asked = setup.scenario.limits.max_model_len
    if asked is None:
        return []
    own, pool = setup.profile.model.max_model_len, setup.settings.device_blocks
    room = pool * setup.settings.block_size
    found = []
    if asked > own:
        found.append(f"limits.max_model_len: {asked} tokens, the model has {own}: extrapolated")
    if asked > room:
        found.append(
            f"limits.max_model_len: {asked} tokens, the device holds {room}: longer contexts are rejected"
        )
    return found


def _warnings(setup: Setup, scheduler: Scheduler, engine: Engine) -> list[str]:
    """What is wrong with its profile, where the run left the range that is valid in, and what was
    assumed of the workload."""
    valid, device = setup.profile.valid, engine.device
    found = setup.profile.warnings() + assumptions(setup.workload, engine.driver)
    is_own = scheduler.order.name != setup.scenario.order_name
    asked = unread(setup.scenario, own_order=is_own)
    found.extend(f"{field}: {why}" for field, why in asked.items())
    prefixes = scheduler.engine.facts().get("prefixes")
    if prefixes is not None and not prefixes["looked_up_tokens"]:
        found.append("prefix_sharing: no prompt has hash_ids of full blocks, so nothing was shared")
    found.extend(_too_long(setup))
    for what, seen, limit in (
        ("batch", device.largest_batch, valid.max_batch),
        ("KV tokens of a step", device.largest_kv_tokens, valid.max_kv_tokens),
        ("prefill tokens of a step", device.largest_prefill, valid.max_prefill_tokens),
    ):
        if seen > limit:
            found.append(f"{what} reached {seen}, the profile is valid to {limit}: extrapolated")
    return found
