"""Options that several `trace` commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from cli.options import TO_WRITE
from policy.errors import ConfigError

if TYPE_CHECKING:
    from traces.readers.base import Aids

Command = Callable[..., Any]

_PRIORITIES = (
    click.option("--priority", metavar="SHARES", help="Static priorities, e.g. 0.1,0.9."),
    click.option(
        "--priority-by",
        type=click.Choice(["session", "client"]),
        default="session",
        show_default=True,
    ),
    click.option(
        "--priority-process",
        "process",
        help="The order that the workload is meant for, e.g. markov.",
    ),
)
_DRAWS = (
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
    click.option("--run", type=click.IntRange(min=0), default=0, show_default=True),
    click.option(
        "--out", type=TO_WRITE, required=True, help="NAME.jsonl, .jsonl.gz, .jsonl.zst or .parquet"
    ),
)


def priorities(command: Command) -> Command:
    """Static priorities of what is written."""
    for option in reversed(_PRIORITIES):
        command = option(command)
    return command


def draws(command: Command) -> Command:
    """What is drawn, and where it goes."""
    for option in reversed(_DRAWS):
        command = option(command)
    return command


def priority_of(shares: str | None, by: str) -> dict[str, Any] | None:
    """`0.1,0.9` as a workload's section. Raises ConfigError."""
    if shares is None:
        return None
    try:
        return {"shares": [float(share) for share in shares.split(",")], "by": by}
    except ValueError:
        raise ConfigError(f"--priority: {shares[:60]!r} must be like 0.1,0.9") from None


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What a trace file alone does not say: its format and `aids_of`'s arguments."""
    for option in reversed(
        (
            click.option(
                "--format", "name", help="The format; default: found from the first line."
            ),
            click.option(
                "--columns",
                metavar="A=B,...",
                help="Any CSV or JSON, e.g. arrival=ts:ms,input=prompt,output=reply,session=chat.",
            ),
            click.option(
                "--turns",
                type=click.Choice(["increments", "whole"]),
                help="Whether a later turn's prompt counts only what is new.",
            ),
            click.option(
                "--block-size", type=click.IntRange(min=1), help="Tokens of a block of prefix ids."
            ),
            click.option(
                "--companion",
                "companions",
                multiple=True,
                help="A file that the publisher keeps beside it: RAGPulse's lengths, Mooncake's"
                " sessions.",
            ),
        )
    ):
        command = option(command)
    return command


def aids_of(
    *,
    columns: str | None,
    turns: Literal["increments", "whole"] | None,
    block_size: int | None,
    companions: tuple[str, ...],
) -> Aids:
    """What `reading_options` gave, for `read_workload`."""
    from traces.readers.base import Aids

    files = tuple(Path(path) for path in companions)
    return Aids(None, files, columns, turns, block_size)


def parse_window(text: str) -> tuple[float, float]:
    """`600:1200`, in seconds. Raises ConfigError."""
    begin, _, end = text.partition(":")
    try:
        return float(begin), float(end)
    except ValueError:
        raise ConfigError(f"--window: {text[:60]!r} must be like 600:1200, in seconds") from None
