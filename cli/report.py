"""`fastswitch report`: one self-contained HTML page of a folder of results."""

from __future__ import annotations

from pathlib import Path

import click

from cli.progress import progress


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Another file than the one in the folder."
)
def report_command(*, folder: Path, out: Path | None) -> None:
    """Write the report of a run, a comparison, a sweep or a validation: one HTML file, for any browser,
    without a network.

    FOLDER is what simulate, realrun, compare, sweep run or validate wrote to --out. The page of a run
    shows every request on one time axis with pools, link and fairness, and what the slowest waited for.

    \b
    Examples:
      fastswitch report run
      fastswitch report sweep --out sweep.html
    """
    from explore.report.folder import report
    from explore.studies import output

    with progress(None, "requests") as advance:
        found = report(folder, advance)
    path = out if out is not None else folder / found.name
    output.write_texts({path.name: found.text}, path.parent)
    click.echo(f"written: {path}, {len(found.text.encode()) / 1e6:.2f} MB", err=True)
