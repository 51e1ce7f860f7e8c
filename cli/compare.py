"""`fastswitch compare`: the main job."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import click

from cli.options import (
    heed_compared,
    json_option,
    kept_when_stopped,
    load,
    order_option,
    overwrite_option,
    set_option,
)
from cli.progress import progress
from cli.show import refuse_nothing_served, show
from policy.errors import ConfigError

DEFAULT_SCENARIO = "paper-8b-a10"
DEFAULT_RUNS = 3


@click.command("compare")
@click.argument("scenario", default=DEFAULT_SCENARIO)
@click.option(
    "--systems",
    help="Comma-separated: names, or files of switches; default: the scenario's own list.",
)
@click.option("--seeds", "runs", default=DEFAULT_RUNS, show_default=True, help="Paired runs.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for JSON, CSV, figures, page.")
@overwrite_option
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core.")
@click.option(
    "--study",
    type=click.Choice(["terminating", "steady-state"]),
    default="terminating",
    show_default=True,
    help="Count whole runs, or what comes after a warm-up that is found first.",
)
@click.option("--until-precise", is_flag=True, help="More runs until intervals are narrow, to 50.")
@order_option
@set_option
@json_option
def compare_command(
    *,
    scenario: str,
    systems: str | None,
    runs: int,
    out: Path | None,
    overwrite: bool,
    workers: int | None,
    study: str,
    until_precise: bool,
    order: str | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run systems side by side on the same workload, priority trace and random streams.

    With --out every run is kept as it ends: Ctrl-C or a crash costs only those under way, and the same
    command goes on, or prints again what is there. More systems and seeds may be added. Results of
    another scenario or version are refused.

    \b
    Examples:
      fastswitch compare
      fastswitch compare paper-8b-a10 --systems paged-keep,fastswitch --seeds 5 --out out
      fastswitch compare my.yaml --set workload.rate=0.1 --order my_module:MyOrder
      fastswitch compare my.yaml --study steady-state --until-precise --out out
    """
    if runs < 1:
        raise ConfigError(f"--seeds: {runs} is below 1")
    loaded, own = load(scenario, values, order)
    names = [name.strip() for name in systems.split(",")] if systems is not None else None
    from explore.studies import compare as module
    from explore.studies import output, tables
    from runs.metrics.served import is_nothing_but_rejected

    heed_compared(loaded, module.systems_of(loaded, names), values, order, own)
    total = None if until_precise else module.num_trials(loaded, names, runs, study)
    going_on = nullcontext() if out is None else kept_when_stopped(out, "the same command goes on")
    with progress(total, "runs") as advance, going_on:
        found = module.compare(
            loaded,
            names,
            runs,
            workers,
            advance,
            own,
            study=study,
            until_precise=until_precise,
            out=out,
            overwrite=overwrite,
        )
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    show(lambda: tables.as_json(found), lambda: tables.as_text(found), as_json=as_json)
    if out is not None:
        command = "fastswitch " + " ".join(sys.argv[1:])
        output.write(found, out, command)
        click.echo(f"\nwritten: {out / 'compare.html'} and what it is made of", err=True)
    if all(is_nothing_but_rejected(metrics) for metrics in found.all_metrics):
        refuse_nothing_served(found.results[found.systems[0]][0])
