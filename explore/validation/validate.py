"""Is a recording what the simulator says it must be? So far: replay, every decision made again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from policy.errors import ConfigError, InvariantError
from policy.routing.catalog import make_router
from runs import fleet_recording, recording, scenario
from runs.user_order import OrderLike
from sim.fleet.replay import replay_router
from sim.replay import Replayed
from sim.replay import replay as run_again
from traces.randomness import Streams
from traces.strict import shown, shown_path


def replay(run: Path, order: OrderLike | None = None) -> Replayed:
    """Replay the recording in the folder `run`. `order`: the user's own, if it was made with one.

    Raises ConfigError if it has no decisions, InputError if it cannot be read.
    """
    if fleet_recording.is_fleet(run):
        return _replay_fleet(run, order)
    recorded = recording.load(run)
    if not recorded.summary.get("is_complete", True):
        raise ConfigError(f"{shown_path(run)}: the run was killed; it cannot be replayed")
    for name in ("decisions.jsonl", "replay.jsonl"):
        if not (run / name).is_file():
            raise ConfigError(
                f"{shown_path(run)}: has no {name}; record it again with --decisions to replay it"
            )
    return run_again(recorded, scenario.load(str(run / "scenario.yaml")), order)


def _replay_fleet(run: Path, order: OrderLike | None) -> Replayed:
    """The router asked again, then every replica replayed; up to the first difference."""
    fleet = fleet_recording.load(run)
    settled = scenario.load(str(run / "scenario.yaml"))
    made_with = fleet.summary["router"]
    if made_with != settled.router:
        raise ConfigError(
            f"{shown_path(run)}: was made with a router of the user's own, {made_with}"
        )
    router = make_router(made_with, Streams(settled.seed, settled.run))
    found = replay_router(fleet.routing_lines(), router, settled.pool.block_size)
    equal = found.equal_lines
    for number in range(len(fleet.members)):
        if found.difference is not None:
            break
        inside = fleet_recording.member_folder(number)
        found = replay(run / inside, order)
        equal += found.equal_lines
        if found.difference is not None:
            where = f"{inside}: {found.difference.where}"
            found = replace(found, difference=replace(found.difference, where=where))
    return replace(found, equal_lines=equal)


def check(name: str, replayed: Replayed) -> None:
    """Raise InvariantError, showing both versions, if anything came out otherwise."""
    found = replayed.difference
    if found is None:
        return
    fields = _fields_that_differ(found.recorded, found.replayed)
    raise InvariantError(
        f"{shown(name, 1000)}: {found.where} differs{fields};"
        f" {replayed.equal_lines} lines before it are equal\n"
        f"  recorded: {found.recorded}\n"
        f"  replayed: {found.replayed}"
    )


def as_text(name: str, replayed: Replayed) -> str:
    """A sentence about a recording that came out equal."""
    what = "decisions" if fleet_recording.is_fleet(Path(name)) else "decisions.jsonl"
    return f"{name}: replayed, all {replayed.equal_lines} lines of {what} are equal"


def as_json(found: Iterable[tuple[str, Replayed]]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [{"run": name, **asdict(replayed)} for name, replayed in found]


def _fields_that_differ(recorded: str, replayed: str) -> str:
    """Named, since a line may be long."""
    try:
        left, right = json.loads(recorded), json.loads(replayed)
    except ValueError:
        return ""
    if not isinstance(left, dict) or not isinstance(right, dict):
        return ""
    names = [name for name in right if left.get(name) != right[name]]
    names += [name for name in left if name not in right]
    return f" in {shown(', '.join(names), 200)}" if names else ""
