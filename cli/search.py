"""`fastswitch search`. Everything heavy is imported by the command."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import (
    json_option,
    kept_when_stopped,
    order_option,
    overwrite_option,
    resume_option,
    set_option,
    settings_of,
)
from cli.progress import progress
from cli.show import show
from cli.sweep import engine_options

if TYPE_CHECKING:
    from explore.search.run import Study

_folder = click.Path(path_type=Path)


@click.command("search")
@click.argument("search")
@click.option("--out", type=_folder, required=True, help="Folder for results and the answer.")
@click.option("--dry-run", is_flag=True, help="Say what would run; write nothing.")
@resume_option
@click.option("--extend", is_flag=True, help="The search has changed: keep what still applies.")
@overwrite_option
@engine_options
@order_option
@set_option
@json_option
def search_command(
    *,
    search: str,
    out: Path,
    dry_run: bool,
    extend: bool,
    overwrite: bool,
    engine: Any,
    workers: int | None,
    address: str | None,
    start_cluster: bool,
    seconds: float | None,
    memory_mb: int | None,
    order: str | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Find the point of a space that serves best (a file, or one of scenarios/searches by name).

    Recipes: max-goodput-under-slo, max-rate-under-sla, pareto. A small space is run whole; a large
    one is sampled by Sobol points or by Optuna. The same command goes on with a killed search and
    gives the same answer. If no point keeps all limits, the answer says so and names the nearest.

    \b
    Examples:
      fastswitch search rate --out search --dry-run
      fastswitch search rate --out search
      fastswitch search rate --out search --workers 2
      fastswitch search front --out front --order my_module:MyOrder
    """
    study = importlib.import_module("explore.search.run")
    settled, own = settings_of(values, order)
    made = study.Study(study.load(search), settled, own)
    if dry_run:
        _show_plan(made, as_json=as_json)
        return
    settings = study.WorkerSettings(engine, workers, address, start_cluster)
    spec = made.search.spec
    going_on = kept_when_stopped(out, "the same command goes on")
    with progress(spec.budget * spec.runs, "trials") as advance, going_on:
        found = made.run(
            out,
            settings,
            study.Limits(seconds, memory_mb),
            extend=extend,
            overwrite=overwrite,
            progress=advance,
        )
    for note in found.sweep.notes:
        click.echo(f"warning: {note}", err=True)
    answer = importlib.import_module("explore.search.answer")
    show(
        lambda: answer.as_json(found.answer), lambda: answer.as_text(found.answer), as_json=as_json
    )
    click.echo(f"written: {out / answer.WORDS}, .csv, .json and the sweep's tables", err=True)
    if found.sweep.failed:
        click.echo(
            f"{found.sweep.failed} trials failed; their points say why, and the same command tries them again",
            err=True,
        )
        raise click.exceptions.Exit(5)


def _show_plan(study: Study, *, as_json: bool) -> None:
    spec = study.search.spec
    facts = {
        "name": spec.name,
        "recipe": spec.recipe,
        "method": spec.how,
        "space": spec.size,
        "points": spec.budget,
        "runs": spec.runs,
        "trials": spec.budget * spec.runs,
    }
    size = "without end" if spec.size is None else f"of {spec.size} points"
    text = (
        f"{spec.name}: {spec.recipe} over a space {size}: {spec.budget} tried ({spec.how}),"
        f" {spec.runs} runs each, {spec.budget * spec.runs} trials; nothing was written"
    )
    show(lambda: facts, lambda: text, as_json=as_json)
