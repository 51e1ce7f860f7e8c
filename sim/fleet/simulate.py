"""`simulate_fleet(scenario) -> FleetRecording`: several simulated engines behind a router."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from calibrate import profile as profiles
from policy.errors import ConfigError
from policy.pools.aging import CHURN_REQUESTS
from policy.routing.base import Router
from policy.routing.catalog import make_router
from policy.routing.guard import GuardedRouter, router_maker_of
from policy.scheduler import Scheduler
from runs import fleet_recording, recording
from runs.fleet_lines import Lines
from runs.fleet_recording import FleetRecording
from runs.fleet_spec import ReplicaSpec, TelemetrySpec
from runs.lineages import Lineages, Names
from runs.metrics.fleet import summarise_fleet
from runs.provenance import provenance
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario
from runs.serving import Kept, aging_lengths, make_driver, make_scheduler
from runs.user_order import OrderLike, UserOrder, user_order
from sim.clock import Clock
from sim.fleet.fleet import Fleet, Member
from sim.fleet.inbox import Inbox
from sim.fleet.telemetry import Probe, ScrapeTimes
from sim.simulate import Setup, calm_collector, close, frontend_ns, make_engine, prepare
from traces.prefixes import keys_of
from traces.randomness import Streams
from traces.sources import open_workload
from traces.workload import Workload

_NS = 1_000_000_000
#: A router of the catalog by name, or a user's own: a Router, or what makes one.
RouterLike = str | Router | Callable[..., Router]


@dataclass
class Part:
    """One replica before it runs."""

    name: str
    group: ReplicaSpec
    setup: Setup
    scheduler: Scheduler
    recorder: Recorder


class _Recorder(Recorder):
    """A replica's recorder, which tells the gateway of first tokens."""

    tell: Callable[[str], None] | None = None

    def prefilled(self, request_id: str, step: int, tokens: int, *, produced: bool) -> None:
        super().prefilled(request_id, step, tokens, produced=produced)
        if produced and self.tell is not None:
            self.tell(request_id)


def member_scenarios(scenario: Scenario) -> Iterator[tuple[str, ReplicaSpec, Scenario]]:
    """Name, group and scenario of each replica, as of one engine alone."""
    number = 0
    groups = scenario.replicas or (ReplicaSpec(),)
    for at, group in enumerate(groups):
        for _ in range(group.count):
            changed: dict[str, Any] = {"replica": number}
            if group.profile is not None:
                changed["profile"] = group.profile
            if group.system is not None:
                changed["system"] = group.system
            alone = scenario.model_copy(update={**ALONE, **changed})
            label = group.name or (f"group-{at}" if len(groups) > 1 else "replica")
            yield f"{label}-{number}", group, alone
            number += 1


#: What a replica's own scenario does not say.
ALONE: dict[str, Any] = {
    name: Scenario.model_fields[name].get_default(call_default_factory=True)
    for name in ("replicas", "router", "telemetry")
}


def simulate_fleet(
    scenario: Scenario,
    *,
    out: Path | None = None,
    decisions: bool = False,
    check: str = "counts",
    order: OrderLike | None = None,
    router: RouterLike | None = None,
    progress: Callable[[int], None] | None = None,
    kept: Kept | None = None,
) -> FleetRecording:
    """Run a scenario with `replicas` on simulated machines.

    `router`: in place of the scenario's. Everything else as in `sim.simulate.simulate`. All replicas
    begin with pools aged alike; from then on each draws from random streams of its own. With `out` the
    folder has a recording of each replica (`r000`, ...) and the tables of the gateway. Raises ConfigError,
    InputError, or InvariantError from the checks.
    """
    own = None if order is None else user_order(order)
    chosen = scenario.router if router is None else router
    if out is None:
        return _run(scenario, own, chosen, None, decisions, check, progress, kept)
    with recording.claimed(out, fleet_recording.SUMMARY) as part:
        recording.begin(part, scenario)
        found = _run(scenario, own, chosen, part, decisions, check, progress, kept)
        fleet_recording.write_summary(part, found.summary)
    found.moved(out)
    return found


def _run(
    scenario: Scenario,
    own: UserOrder | None,
    chosen: RouterLike,
    folder: Path | None,
    decisions: bool,  # noqa: FBT001
    check: str,
    progress: Callable[[int], None] | None,
    kept: Kept | None,
) -> FleetRecording:
    streams = Streams(scenario.seed, scenario.run)
    router = router_of(chosen, streams)
    if scenario.telemetry != TelemetrySpec() and not router.reads_signals:
        raise ConfigError(f"telemetry: changes nothing, router {router.name} reads none of it")
    with ExitStack() as files:
        parts = list(parts_of(scenario, own, folder, decisions, kept or Kept(), files))
        lines = Lines(folder, decisions=decisions)
        files.callback(lines.stop)
        fleet = assembled(scenario, router, lines, parts, check, progress)
        with calm_collector():
            fleet.run()
        members = [
            _close(part, member, folder, own)
            for part, member in zip(parts, fleet.members, strict=True)
        ]
        tables = lines.close()
    found = FleetRecording({}, members, tables, lines.kept, folder)
    found.summary = {
        "format": fleet_recording.FORMAT,
        "machine": "simulated",
        "scenario": scenario.name,
        "router": router.name,
        "telemetry": scenario.telemetry.model_dump(mode="json") if router.reads_signals else None,
        "replicas": [_told(part, one) for part, one in zip(parts, members, strict=True)],
        "workload": {**members[0].summary["workload"], "rows": fleet.driver.num_rows},
        "system": " + ".join(dict.fromkeys(one.summary["system"] for one in members)),
        "order": members[0].summary["order"],
        "planner": " + ".join(dict.fromkeys(one.summary["planner"] for one in members)),
        "verdict": next(
            (one.summary["verdict"] for one in members if one.summary["verdict"]), None
        ),
        "warnings": list(
            dict.fromkeys(line for one in members for line in one.summary["warnings"])
        ),
        "rejected_because": next(
            (one.summary["rejected_because"] for one in members if one.summary["rejected_because"]),
            None,
        ),
        "metrics": {},
        "provenance": provenance(scenario, None, own),
    }
    found.summary["metrics"] = summarise_fleet(found)
    return found


def router_of(given: RouterLike, streams: Streams) -> Router:
    """A fresh router. Raises ConfigError."""
    if isinstance(given, str):
        return make_router(given, streams)
    kind = type(given) if isinstance(given, Router) else given
    name = getattr(kind, "__qualname__", "own")
    return GuardedRouter(name, router_maker_of(given)(streams))


def parts_of(
    scenario: Scenario,
    own: UserOrder | None,
    folder: Path | None,
    decisions: bool,  # noqa: FBT001
    kept: Kept,
    files: ExitStack,
) -> Iterator[Part]:
    """Every replica before it runs; `files` closes what they write to."""
    known: dict[str, Any] = {}
    first: Workload | None = None
    for number, (name, group, alone) in enumerate(member_scenarios(scenario)):
        if alone.profile not in known:
            known[alone.profile] = profiles.load(alone.profile)
        setup = prepare(alone, known[alone.profile])
        if first is None:  # what pools are aged with is read once for all
            turns = list(islice(setup.workload, CHURN_REQUESTS))
            first = Workload.of(turns, setup.workload.header)
        setup = replace(setup, workload=first)
        inside = None if folder is None else folder / fleet_recording.member_folder(number)
        if inside is not None:
            recording.begin(inside, alone)
        scheduler = make_scheduler(setup, None if own is None else own.make(setup.streams), kept)
        aging = aging_lengths(setup) if decisions else []
        recorder = _Recorder(inside, decisions=decisions, aging=aging, header=first.header)
        yield Part(name, group, setup, scheduler, files.enter_context(recorder))


def assembled(
    scenario: Scenario,
    router: Router,
    lines: Lines,
    parts: list[Part],
    check: str,
    progress: Callable[[int], None] | None,
) -> Fleet:
    """Gateway and replicas on one clock, ready to run."""
    clock, streams = Clock(), Streams(scenario.seed, scenario.run)
    front = replace(parts[0].setup, workload=open_workload(scenario.workload, streams))
    times = scenario.telemetry
    fleet = Fleet(
        clock,
        make_driver(replace(front, scenario=scenario)),
        router,
        lines,
        names=_names(front) if router.remembers is not None else None,
        block_tokens=front.settings.block_size,
        delay_ns=round(times.delay_s * _NS),
        is_checked=check != "off",
    )
    scrape = ScrapeTimes(
        max(1, round(times.period_s * _NS)),
        round(times.delay_s * _NS),
        times.loss,
        times.phase == "aligned",
    )
    ended = 0

    def advance(_count: int) -> None:
        nonlocal ended
        ended += 1
        if progress is not None:
            progress(ended)

    for number, part in enumerate(parts):
        inbox = Inbox(clock, fleet, number, frontend_ns(part.setup.profile))
        probe = None
        if router.reads_signals:
            probe = Probe(clock, part.scheduler, part.name, scrape, streams)
        engine = make_engine(
            part.setup,
            part.scheduler,
            part.recorder,
            check,
            advance,
            watch=None if probe is None else probe.watch,
            env=clock,
            driver=inbox,
            pushed=inbox.pushed,
        )
        assert isinstance(part.recorder, _Recorder)
        part.recorder.tell = fleet.first_token
        label = part.group.name or part.setup.profile.name
        fleet.members.append(Member(number, part.name, label, inbox, engine, probe))
    return fleet


def _names(front: Setup) -> Names:
    """What a router calls the blocks of prompts: by what they repeat of their conversation, and by the
    workload's ids where it has them."""
    header, size = front.workload.header, front.settings.block_size
    settings = front.settings
    if header.block_size is None or header.block_size % size:
        return Lineages(settings, lambda _turn: ())
    return Lineages(replace(settings, prefix_block=header.block_size), keys_of(header))


def _close(part: Part, member: Member, folder: Path | None, own: UserOrder | None) -> Recording:
    recorded = close(part.setup, part.scheduler, member.engine, part.recorder, own)
    if folder is not None:
        assert recorded.folder is not None
        recording.write_summary(recorded.folder, recorded.summary)
    return recorded


def _told(part: Part, recorded: Recording) -> dict[str, Any]:
    """A replica, for fleet.json."""
    group = part.group
    return {
        "name": part.name,
        "profile": recorded.summary["profile"],
        "system": recorded.summary["system"],
        "gpus": group.gpus,
        "price_per_hour": group.price_per_hour,
        "device_blocks": recorded.summary["device_blocks"],
        "verdict": recorded.summary["verdict"],
    }
