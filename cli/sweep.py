"""`fastswitch sweep run | merge | status`. Everything heavy is imported by the command."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    json_option,
    kept_when_stopped,
    order_option,
    overwrite_option,
    resume_option,
    say_aliases,
    set_option,
    settings_of,
)
from cli.progress import progress
from cli.show import show
from policy.errors import ConfigError

if TYPE_CHECKING:
    from explore.studies.plan import Plan
    from explore.studies.sweep import Sweep

_folder = click.Path(path_type=Path)

_ENGINE = (
    click.option(
        "--engine", type=click.Choice(["local", "dask", "ray"]), default="local", show_default=True
    ),
    click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core."),
    click.option("--address", help="An existing Dask or Ray cluster."),
    click.option("--start-cluster", is_flag=True, help="Start a Dask or Ray cluster here."),
    click.option(
        "--seconds", type=click.FloatRange(min=0, min_open=True), help="Time limit of a trial."
    ),
    click.option("--memory-mb", type=click.IntRange(min=64), help="Its memory limit, in MiB."),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where trials run, and limits of each."""
    for option in reversed(_ENGINE):
        command = option(command)
    return command


@click.group("sweep")
def group() -> None:
    """Many scenarios: grids, lists, Sobol points, with paired runs."""


@group.command("run")
@click.argument("sweep")
@click.option("--out", type=_folder, required=True, help="Folder for results and tables.")
@click.option("--dry-run", is_flag=True, help="Say what would run; write nothing.")
@resume_option
@click.option("--extend", is_flag=True, help="The sweep has changed: keep what still applies.")
@overwrite_option
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts; put together by merge.")
@engine_options
@click.option(
    "--until-precise", is_flag=True, help="More runs of a point until intervals are narrow."
)
@order_option
@set_option
@json_option
def _run(
    *,
    sweep: str,
    out: Path,
    dry_run: bool,
    extend: bool,
    overwrite: bool,
    shard: str | None,
    engine: Any,
    workers: int | None,
    address: str | None,
    start_cluster: bool,
    seconds: float | None,
    memory_mb: int | None,
    until_precise: bool,
    order: str | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run a sweep file (or one of scenarios/sweeps by name) into a folder.

    A killed run loses only the trials under way: the same command goes on. A trial that fails is a row
    with its reason, is tried again by the next run, and makes the exit code 5.

    \b
    Examples:
      fastswitch sweep run load --out sweep --dry-run
      fastswitch sweep run load --out sweep
      fastswitch sweep run load --out sweep --seconds 600 --memory-mb 4096
      fastswitch sweep run load --out part1 --shard 1/2
      fastswitch sweep run load --out sweep --engine ray --address auto
      fastswitch sweep run load --out sweep --order my_module:MyOrder --until-precise
    """
    part = None if shard is None else _parsed_shard(shard)
    study = importlib.import_module("explore.studies.sweep")
    settled, own = settings_of(values, order)
    source = study.spec.load(sweep)
    plan, grow = study.planned(source, settled, own, until_precise=until_precise)
    for name, systems in _systems_by_order(plan, None if own is None else own.name).items():
        say_aliases(systems, name)
    keys = plan.keys if part is None else plan.shard(*part)
    if dry_run:
        _show_plan(plan, keys, out, as_json=as_json)
        return
    settings = study.WorkerSettings(engine, workers, address, start_cluster)
    limits = study.Limits(seconds, memory_mb)
    going_on = kept_when_stopped(out, "the same command goes on")
    with progress(len(keys) if grow is None else None, "trials") as advance, going_on:
        found = study.run(
            plan,
            out,
            settings,
            limits,
            extend=extend,
            overwrite=overwrite,
            shard=part,
            progress=advance,
            grow=grow,
        )
    _show(found, as_json=as_json)


def _systems_by_order(plan: Plan, own: str | None) -> dict[str, list[str]]:
    """Which systems a plan asks for under which order; `own`: the user's, in place of all."""
    found: dict[str, list[str]] = {}
    for trial in plan.trials:
        pattern = trial.scenario.get("priority", {}).get("pattern", "none")
        order = trial.scenario.get("order") or ("fcfs" if pattern == "none" else pattern)
        names = found.setdefault(own or order, [])
        if trial.system not in names:
            names.append(trial.system)
    return found


@group.command("merge")
@click.argument("folders", nargs=-1, required=True, type=_folder, metavar="FOLDER...")
@click.option("--out", type=_folder, required=True, help="Folder for all results together.")
@json_option
def _merge(*, folders: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Put shards of one sweep together. The folders are only read.

    \b
    Example:
      fastswitch sweep merge part1 part2 --out sweep
    """
    _show(importlib.import_module("explore.studies.merge").merge(folders, out), as_json=as_json)


@group.command("status")
@click.argument("folder", type=_folder)
@json_option
def _status(*, folder: Path, as_json: bool) -> None:
    """Say how far a sweep is, also while it runs.

    \b
    Example:
      fastswitch sweep status sweep
    """
    found = importlib.import_module("explore.studies.merge").status(folder)
    show(lambda: found, lambda: _status_as_text(found), as_json=as_json)


def _status_as_text(found: dict[str, Any]) -> str:
    state = "running" if found["is_running"] else "not running"
    lines = [
        f"{found['name']}: {found['done']} of {found['trials']} trials done, {found['failed']}"
        f" failed, {found['missing']} missing, {found['corrupt']} corrupt; {state}"
    ]
    if found["last"]:
        lines.append(f"  sessions {found['sessions']}, last event {found['last']} (UTC)")
    if not found["is_current"]:
        lines.append(f"  made under semantics version {found['semantics']}: results are not reused")
    return "\n".join([*lines, f"  digest {found['digest']}"])


def _parsed_shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--shard: {text!r} must be I/N, from 1/N to N/N")
    return int(found[1]), int(found[2])


def _show_plan(plan: Plan, keys: tuple[str, ...], out: Path, *, as_json: bool) -> None:
    held = importlib.import_module("explore.studies.store").Store(out)
    done = sum(held.has(key) for key in keys)
    facts = {
        "name": plan.name,
        "plan": plan.digest,
        "points": len({trial.point for trial in plan.trials}),
        "systems": list(dict.fromkeys(trial.system for trial in plan.trials)),
        "runs": len({trial.run for trial in plan.trials}),
        "rows": len(plan.trials),
        "trials": len(keys),
        "done": done,
    }
    text = (
        f"{plan.name}: {facts['points']} points, {len(facts['systems'])} systems"
        f" ({', '.join(facts['systems'])}), {facts['runs']} runs\n"
        f"  {len(keys)} trials to have, {done} of them in {out}; nothing was written"
    )
    show(lambda: facts, lambda: text, as_json=as_json)


def _show(found: Sweep, *, as_json: bool) -> None:
    for note in found.notes:
        click.echo(f"warning: {note}", err=True)
    facts = {
        name: getattr(found, name) for name in ("trials", "done", "failed", "missing", "digest")
    }
    text = (
        f"{found.done} of {found.trials} trials done, {found.failed} failed,"
        f" {found.missing} missing: {found.folder / 'results.csv'}\n  digest {found.digest}"
    )
    show(lambda: facts, lambda: text, as_json=as_json)
    if found.failed:
        click.echo(
            f"{found.failed} trials failed; their rows say why, and the same command tries them again",
            err=True,
        )
        raise click.exceptions.Exit(5)
