"""`fastswitch trace clients`: requests of clients that somebody measured."""

from __future__ import annotations

from pathlib import Path

import click

from cli.progress import progress
from cli.trace.options import draws, parse_window
from policy.errors import ConfigError


@click.command("clients")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--window", default="0:3600", show_default=True, metavar="A:B", help="Seconds.")
@click.option("--scale", type=float, default=1.0, show_default=True, help="So many times as many.")
@draws
def clients_command(
    *, sources: tuple[Path, ...], window: str, scale: float, seed: int, run: int, out: Path
) -> None:
    """Draw the requests of ServeGen's clients, from a folder of its chunk files, or from two tables:
    rates and lengths. `docs/workloads.md` says where to get them.

    \b
    Examples:
      fastswitch trace clients ServeGen/data/reason/deepseek-r1 --window 3600:7200 --out r1.jsonl.gz
      fastswitch trace clients rates.csv lengths.csv --scale 0.01 --out some.jsonl
    """
    from traces.generators.measured import MeasuredClients, is_told
    from traces.randomness import Streams
    from traces.readers import servegen
    from traces.readers.native import write
    from traces.workload import watched

    if len(sources) > 2:
        raise ConfigError(
            f"trace clients: {len(sources)} sources; give a folder, or rates and lengths"
        )
    halves: tuple[str, ...] = ()
    if len(sources) == 2:
        clients = servegen.read_tables(*sources)
    else:
        clients, halves = servegen.read_folder(sources[0])
    for half in halves:
        click.echo(f"left out: the client of {half}, whose other file is missing", err=True)
    begin_s, end_s = parse_window(window)
    known = [client for client in clients if is_told(client)]
    others = [client.client_id for client in clients if not is_told(client)]
    if others:
        names = ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")
        click.echo(f"left out: {len(others)} clients without rates or lengths: {names}", err=True)
    made = MeasuredClients(
        known, end_s, begin_s, scale, f"ServeGen clients: {sources[0].name}", "Apache-2.0"
    )
    with progress(None, "requests") as advance:
        count = write(watched(made.workload(Streams(seed, run)), advance), out)
    click.echo(f"{count} requests of {len(known)} clients written to {out}")
