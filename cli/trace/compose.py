"""`fastswitch trace compose`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from cli.progress import progress
from cli.trace.options import aids_of, draws, parse_window, priorities, priority_of, reading_options


@click.command("compose")
@click.argument("lengths", type=click.Path(path_type=Path))
@reading_options
@click.option("--sample", type=float, help="Keep each session with this chance.")
@click.option(
    "--gaps", metavar="FILE|LAW", help="Think times: human, agent, none, exponential,mean=25."
)
@click.option("--arrivals", metavar="FILE|LAW", help="Session starts: as for generate.")
@click.option("--rate", type=float, help="Sessions per second, for a law.")
@click.option("--shuffle", is_flag=True, help="Deal the sessions out to the starts anew.")
@click.option("--scale-rate", type=float, help="Arrivals so many times as often.")
@click.option("--window", metavar="A:B", help="Sessions that begin in these seconds.")
@click.option("--scale-tokens", type=float, help="Prompts and replies so many times as long.")
@click.option("--cap", type=int, help="Stop sessions before a context of more tokens.")
@priorities
@click.option(
    "--merge", type=click.Path(path_type=Path), multiple=True, help="Another tenant's file."
)
@draws
def compose_command(
    *,
    lengths: Path,
    name: str | None,
    columns: str | None,
    turns: Literal["increments", "whole"] | None,
    block_size: int | None,
    companions: tuple[str, ...],
    window: str | None,
    priority: str | None,
    priority_by: str,
    process: str | None,
    seed: int,
    run: int,
    out: Path,
    **asked: Any,
) -> None:
    """Compose a workload: lengths from one file, gaps and arrivals from others or from laws, then
    changed. The header says what was done, in the order in which it is done, that of the options.

    \b
    Examples:
      fastswitch trace compose sharegpt_turn_lengths.csv --gaps human --rate 0.2 --out chat.jsonl
      fastswitch trace compose chat.jsonl --arrivals azure.csv --cap 8192 --out bursty.jsonl
      fastswitch trace compose chat.jsonl --merge agent.jsonl --out tenants.jsonl
    """
    from traces.randomness import Streams
    from traces.readers.native import write
    from traces.shaping.recipes import Recipe
    from traces.workload import watched
    from traces.workload_spec import build_spec

    given = {"priority": priority_of(priority, priority_by), "priority_process": process}
    spec = build_spec({"file": str(lengths), **given})
    recipe = Recipe(
        lengths,
        name,
        aids_of(columns=columns, turns=turns, block_size=block_size, companions=companions),
        window=None if window is None else parse_window(window),
        priority=spec.priority,
        priority_process=spec.priority_process,
        **asked,
    )
    made = recipe.workload(Streams(seed, run))
    with progress(None, "turns") as advance:
        count = write(watched(made, advance), out)
    click.echo(f"{count} turns written to {out}")
    for part in made.header.composed_from:
        click.echo(f"  {part}")
