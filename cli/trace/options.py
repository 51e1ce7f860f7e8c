"""Options that several `trace` commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cli.options import TO_WRITE
from policy.errors import ConfigError

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
    click.option("--out", type=TO_WRITE, required=True, help="NAME.jsonl or .jsonl.gz"),
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
