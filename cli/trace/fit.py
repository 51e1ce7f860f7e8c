"""`fastswitch trace fit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import TO_WRITE, json_option
from cli.progress import progress
from cli.show import show
from cli.trace.options import aids_of, reading_options
from policy.errors import ConfigError


@click.command("fit")
@click.argument("file", type=click.Path(path_type=Path))
@reading_options
@click.option("-o", "--out", type=TO_WRITE, required=True, help="GENERATOR.yaml")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@json_option
def fit_command(
    *, file: Path, name: str | None, out: Path, seed: int, as_json: bool, **said: Any
) -> None:
    """Fit a generator to a workload file and print how far from the data it is.

    A generator fitted on one random half of the sessions is compared with the other half; beside
    each distance stands that between the two halves. What is written is fitted on all sessions.

    \b
    Examples:
      fastswitch trace fit sharegpt_turn_lengths.csv -o mine.yaml
      fastswitch trace generate mine.yaml --rate 0.2 --think human --out mine.jsonl
    """
    from traces.describing.columns import collect
    from traces.generators import fit
    from traces.generators.files import save_generator
    from traces.readers.catalog import read_workload

    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out: {out} does not end in .yaml")
    with progress(None, "requests") as advance:
        columns = collect(read_workload(file, name, aids_of(**said)), advance=advance)
        fitted = fit.fit(columns, out.stem)
        found = fit.held_out_distances(columns, out.stem, seed)
    save_generator(fitted, out)
    show(
        lambda: {"fitted_on": fitted.fitted_on, "distances": found},
        lambda: fit.as_text(found),
        as_json=as_json,
    )
    for note in fitted.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"written: {out}, fitted on {fitted.conversations} sessions", err=True)
