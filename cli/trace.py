"""The `fastswitch trace` commands: make workloads, and say what is in them.

As in `fastswitch.py`, a command imports what it needs when it runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from cli.options import aids_of, json_option, parse_window, reading_options
from cli.progress import progress
from cli.trace_clients import clients_command
from cli.trace_convert import convert_command, schema_command
from policy.errors import ConfigError


@click.group()
def trace() -> None:
    """Make workloads and say what is in them."""


@trace.command("generate")
@click.argument("generator")
@click.option("--conversations", type=int, help="Sessions; default 1000, or a fitted file's own.")
@click.option("--rate", type=float, help="Sessions per second; default 0.2, or the file's own.")
@click.option(
    "--arrivals",
    metavar="LAW",
    help="poisson; gamma,cv=3; weibull,cv=3; modulated,swing=0.24,memory_s=600; clients,clients=50.",
)
@click.option("--context-cap", type=int, help="Tokens; default 8192 (agent: 131072).")
@click.option("--uncapped", is_flag=True, help="Let sessions grow without limit.")
@click.option("--think", help="human, agent, exponential or none; default: the generator's own.")
@click.option("--think-mean", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--system-tokens", type=int, help="A shared system prompt before every session.")
@click.option("--hash-block", type=int, help="Give prefix ids of blocks of so many tokens.")
@click.option("--priority", metavar="SHARES", help="Static priorities, e.g. 0.1,0.9.")
@click.option(
    "--priority-by", type=click.Choice(["session", "client"]), default="session", show_default=True
)
@click.option("--priority-process", help="The order that the workload is meant for, e.g. markov.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--run", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="NAME.jsonl or .jsonl.gz"
)
def _generate(
    *,
    generator: str,
    conversations: int | None,
    rate: float | None,
    arrivals: str | None,
    context_cap: int | None,
    uncapped: bool,
    think: str | None,
    think_mean: float,
    system_tokens: int | None,
    hash_block: int | None,
    priority: str | None,
    priority_by: str,
    priority_process: str | None,
    seed: int,
    run: int,
    out: Path,
) -> None:
    """Write a generated workload: chat, agent, code, or a file that `trace fit` wrote.

    \b
    Examples:
      fastswitch trace generate chat --conversations 200 --out chat.jsonl
      fastswitch trace generate agent --rate 0.01 --hash-block 64 --out agent.jsonl.gz
      fastswitch trace generate code --rate 2.5 --arrivals gamma,cv=13 --out code.jsonl
    """
    from traces.generators.catalog import make_generator
    from traces.randomness import Streams
    from traces.readers.native import write
    from traces.workload import watched
    from traces.workload_spec import build_spec, is_generator_file, parse_law

    from_file = is_generator_file(generator)
    spec = build_spec(
        {
            "generator": generator,
            "conversations": conversations if conversations or from_file else 1000,
            "rate": rate if rate is not None or from_file else 0.2,
            "arrivals": None if arrivals is None else parse_law(arrivals),
            "context_cap": context_cap,
            "uncapped": uncapped,
            "think": think,
            "think_mean_s": think_mean,
            "system_tokens": system_tokens,
            "hash_block": hash_block,
            "priority": _priority(priority, priority_by),
            "priority_process": priority_process,
        }
    )
    made = make_generator(spec)
    with progress(None, "turns") as advance:
        count = write(watched(made.workload(Streams(seed, run)), advance), out)
    click.echo(
        f"{count} turns in {made.conversations} conversations written to {out} ({generator})"
    )


def _priority(shares: str | None, by: str) -> dict[str, Any] | None:
    """`0.1,0.9` as a workload's section. Raises ConfigError."""
    if shares is None:
        return None
    try:
        return {"shares": [float(share) for share in shares.split(",")], "by": by}
    except ValueError:
        raise ConfigError(f"--priority: {shares[:60]!r} must be like 0.1,0.9") from None


@trace.command("compose")
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
@click.option("--priority", metavar="SHARES", help="Static priorities, e.g. 0.1,0.9.")
@click.option(
    "--priority-by", type=click.Choice(["session", "client"]), default="session", show_default=True
)
@click.option(
    "--priority-process", "process", help="The order that the workload is meant for, e.g. markov."
)
@click.option(
    "--merge", type=click.Path(path_type=Path), multiple=True, help="Another tenant's file."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--run", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="NAME.jsonl or .jsonl.gz"
)
def _compose(
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

    given = {"priority": _priority(priority, priority_by), "priority_process": process}
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


@trace.command("fit")
@click.argument("file", type=click.Path(path_type=Path))
@reading_options
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="GENERATOR.yaml")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@json_option
def _fit(*, file: Path, name: str | None, out: Path, seed: int, as_json: bool, **said: Any) -> None:
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
    if as_json:
        click.echo(json.dumps({"fitted_on": fitted.fitted_on, "distances": found}, indent=1))
    else:
        click.echo(fit.as_text(found))
    for note in fitted.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"written: {out}, fitted on {fitted.conversations} sessions", err=True)


@trace.command("describe")
@click.argument("files", nargs=-1, required=True, metavar="FILE [FILE2]")
@reading_options
@click.option("--cache", "sizes", metavar="BLOCKS", help="Sizes of LRU caches, e.g. 1000,50000.")
@click.option("--figure", "picture", type=click.Path(path_type=Path), help="NAME.png or NAME.svg")
@json_option
def _describe(
    *,
    files: tuple[str, ...],
    name: str | None,
    sizes: str | None,
    picture: Path | None,
    as_json: bool,
    **said: Any,
) -> None:
    """Say what is in a workload file, or in two side by side: lengths, turns, gaps, arrivals,
    clients, and what a prefix cache could reuse.

    \b
    Examples:
      fastswitch trace describe chat.jsonl
      fastswitch trace describe AzureLLMInferenceTrace_conv.csv --json
      fastswitch trace describe conversation_trace.jsonl --cache 1000,10000,50000
      fastswitch trace describe chat.jsonl azure.csv --figure both.png
    """
    from traces.describing.describe import described, distances
    from traces.describing.text import as_text, distances_as_text
    from traces.figure_style import check_name
    from traces.readers.catalog import read_workload

    if len(files) > 2:
        raise ConfigError(f"trace describe: {len(files)} files; takes one or two")
    if picture is not None:
        check_name(picture)
    with progress(None, "requests") as advance:
        found = [
            described(
                read_workload(Path(file), name, aids_of(**said)), _cache_sizes(sizes), advance
            )
            for file in files
        ]
    both = distances(found[0][0], found[1][0]) if len(found) == 2 else None
    if as_json:
        shown = [one for _, one in found]
        data = shown[0] if both is None else {"workloads": shown, "distances": both}
        click.echo(json.dumps(data, indent=1))
    else:
        click.echo(as_text(*(one for _, one in found)))
        if both is not None:
            click.echo(distances_as_text(both))
    if picture is not None:
        from traces.describing.figure import figure
        from traces.figure_style import save

        names = [Path(file).name.partition(".")[0] for file in files]
        save(figure([columns for columns, _ in found], names), picture)


def _cache_sizes(text: str | None) -> list[int]:
    """`1000,50000`. Raises ConfigError."""
    parts = text.split(",") if text else []
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 40 for part in parts):
        raise ConfigError(f"--cache: {str(text)[:60]!r} must be numbers of blocks, like 1000,50000")
    return [int(part) for part in parts]


trace.add_command(convert_command)
trace.add_command(schema_command)
trace.add_command(clients_command)
