"""`fastswitch reproduce`. Everything heavy is imported by the command."""

from __future__ import annotations

import importlib
from pathlib import Path

import click

from cli.options import json_option, kept_when_stopped, set_option
from cli.progress import progress
from cli.show import show

PARTS = ("ttft", "tbt", "throughput", "breakdown", "groups", "async", "reuse", "sensitivity")


@click.command("reproduce")
@click.argument("part", type=click.Choice(["all", *PARTS]), default="all")
@click.option("--full", is_flag=True, help="Also other readings, loads, ablations and sweeps.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reproduce"),
    show_default=True,
    help="Folder for results; of an earlier run it is gone on with.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core.")
@set_option
@json_option
def reproduce_command(
    *,
    part: str,
    full: bool,
    out: Path,
    workers: int | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """The paper's claims, ours beside theirs, and a verdict in words.

    Operating points are files (scenarios/reproduce), fixed before the first run. Ctrl-C keeps what was
    finished; the same command goes on.

    \b
    Examples:
      fastswitch reproduce
      fastswitch reproduce ttft --out ttft
      fastswitch reproduce all --full --workers 2
      fastswitch reproduce reuse --set workload.conversations=100 --out quick
    """
    study = importlib.import_module("explore.reproduce.run")
    words = importlib.import_module("explore.reproduce.text")
    parts = PARTS if part == "all" else (part,)
    settings = importlib.import_module("runs.scenario").parse_settings(values)
    planned = study.plan(parts, full=full, values=settings)
    going_on = kept_when_stopped(out, "the same command goes on")
    with progress(study.missing(planned, out), "trials") as advance, going_on:
        found = study.reproduce(planned, parts, out, full=full, workers=workers, progress=advance)
    show(lambda: words.as_json(found), lambda: words.as_text(found), as_json=as_json)
    importlib.import_module("explore.reproduce.output").write(found, out)
    click.echo(f"\nwritten: {out / 'claims.md'} and what it is made of", err=True)
