"""`fastswitch compare`: the main job."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from explore.studies.comparison import Comparison

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
@click.option(
    "--draws",
    type=click.IntRange(min=8),
    help="Judge the finding on so many machines within the profile's ranges too.",
)
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
    draws: int | None,
    order: str | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run systems side by side on the same workload, priority trace and random streams.

    With --out every run is kept as it ends: Ctrl-C or a crash costs only those under way, and the same
    command goes on, or prints again what is there. More systems and seeds may be added. Results of
    another scenario or version are refused. With --draws the page says whether the finding survives what is
    not known about the machine, and which two numbers it hangs on most (`fastswitch machine doubt`).

    \b
    Examples:
      fastswitch compare
      fastswitch compare paper-8b-a10 --systems paged-keep,fastswitch --seeds 5 --out out
      fastswitch compare my.yaml --set workload.rate=0.1 --order my_module:MyOrder
      fastswitch compare my.yaml --study steady-state --until-precise --out out
      fastswitch compare --draws 20
    """
    if runs < 1:
        raise ConfigError(f"--seeds: {runs} is below 1")
    if draws is not None and order is not None:
        raise ConfigError("--draws: a verdict over drawn machines is not known under an --order")
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
    if draws is not None:
        found.notes.extend(_doubts(found, draws))
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    show(lambda: tables.as_json(found), lambda: tables.as_text(found), as_json=as_json)
    if out is not None:
        command = "fastswitch " + " ".join(sys.argv[1:])
        output.write(found, out, command)
        click.echo(f"\nwritten: {out / 'compare.html'} and what it is made of", err=True)
    if all(is_nothing_but_rejected(metrics) for metrics in found.all_metrics):
        refuse_nothing_served(found.results[found.systems[0]][0])


def _doubts(found: Comparison, draws: int) -> list[str]:
    """Whether the finding survives what is not known about the machine, for the page."""
    from explore import uncertain
    from explore.report.figures import HEADLINE, headline_pair

    pair = headline_pair(found)
    if pair is None:
        return ["--draws: no baseline to judge against"]
    ours, baseline = pair
    told = (
        metric
        for metric in HEADLINE
        if None not in {found.estimate(name, metric).value for name in pair}
    )
    metric = next(told, HEADLINE[0])
    with progress(2 * (draws + 1), "runs on drawn machines") as advance:
        try:
            verdict = uncertain.judge(found.scenario, (baseline, ours), metric, draws, advance)
        except ConfigError as error:  # what was compared is not lost by it
            return [f"Over drawn machines nothing can be said: {error}"]
    first, *others = uncertain.as_text(verdict).splitlines()
    return [f"One whole run on each machine, {first}", *others]
