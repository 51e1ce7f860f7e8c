"""The `fastswitch trace` commands: make workloads, and say what is in them.

As in `fastswitch.py`, a command imports what it needs when it runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")


@click.group()
def trace() -> None:
    """Make workloads and say what is in them."""


@trace.command("generate")
@click.argument("generator", type=click.Choice(["chat"]))
@click.option("--conversations", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option(
    "--rate", type=float, default=0.2, show_default=True, help="Conversations per second."
)
@click.option("--context-cap", type=click.IntRange(min=2), default=8192, show_default=True)
@click.option("--uncapped", is_flag=True, help="Let conversations grow without limit.")
@click.option(
    "--think",
    type=click.Choice(["human", "none", "exponential"]),
    default="human",
    show_default=True,
)
@click.option("--think-mean", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--run", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="NAME.jsonl or .jsonl.gz"
)
def _generate(
    *,
    generator: str,
    conversations: int,
    rate: float,
    context_cap: int,
    uncapped: bool,
    think: str,
    think_mean: float,
    seed: int,
    run: int,
    out: Path,
) -> None:
    """Write a generated workload.

    \b
    Examples:
      fastswitch trace generate chat --conversations 200 --out chat.jsonl
      fastswitch trace generate chat --think none --seed 7 --out chat.jsonl.gz
    """
    from traces.draw import Streams
    from traces.generators.chat import Chat
    from traces.readers.native import write

    chat = Chat(
        conversations, rate, None if uncapped else context_cap, think=think, think_mean_s=think_mean
    )
    count = write(chat.workload(Streams(seed, run)), out)
    click.echo(f"{count} turns in {conversations} conversations written to {out} ({generator})")


@trace.command("describe")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--format", "name", help="The file's format; default: found from its first line.")
@_json
def _describe(*, file: Path, name: str | None, as_json: bool) -> None:
    """Say what is in a workload file: lengths, turns, gaps, arrivals.

    \b
    Examples:
      fastswitch trace describe chat.jsonl
      fastswitch trace describe AzureLLMInferenceTrace_conv.csv --json
    """
    from traces.describe import as_text
    from traces.describe import describe as statistics
    from traces.readers.catalog import read_workload

    found = statistics(read_workload(file, name))
    click.echo(json.dumps(found, indent=1) if as_json else as_text(found))
