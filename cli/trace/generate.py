"""`fastswitch trace generate`."""

from __future__ import annotations

from pathlib import Path

import click

from cli.progress import progress
from cli.trace.options import draws, priorities, priority_of


@click.command("generate")
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
@priorities
@draws
def generate_command(
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
    process: str | None,
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
            "priority": priority_of(priority, priority_by),
            "priority_process": process,
        }
    )
    made = make_generator(spec)
    with progress(None, "turns") as advance:
        count = write(watched(made.workload(Streams(seed, run)), advance), out)
    click.echo(
        f"{count} turns in {made.conversations} conversations written to {out} ({generator})"
    )
