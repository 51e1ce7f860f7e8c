"""A run as text."""

from __future__ import annotations

import json
from typing import Any

import click


def show_run(summary: dict[str, Any], *, as_json: bool) -> None:
    """What a run came to, on stdout; its warnings on stderr. Exit code 5 with a verdict."""
    for line in summary["warnings"]:
        click.echo(f"warning: {line}", err=True)
    click.echo(json.dumps(summary, indent=1) if as_json else _run_as_text(summary))
    if summary["verdict"]:
        click.echo(f"verdict: {summary['verdict']}", err=True)
        raise click.exceptions.Exit(5)


def _run_as_text(summary: dict[str, Any]) -> str:
    """A run in a few lines."""
    from explore.words import HEADINGS, TOO_SMALL, significant

    metrics = summary["metrics"]
    machine = (
        f"{summary['model']} on {summary['device']}"
        if summary["machine"] == "real"
        else f"{summary['profile_kind']} profile {summary['profile']}"
    )
    lines = [
        f"{summary['scenario']}, {summary['system']} under {summary['order']}"
        f" ({summary['planner']} planner), {machine}",
        f"  rows {metrics['rows']}: {metrics['finished']} finished, {metrics['rejected']} rejected,"
        f" {metrics['cancelled']} cancelled, {metrics['unfinished']} unfinished",
    ]
    for name, (title, unit, factor) in HEADINGS.items():
        value = metrics.get(name)
        text = TOO_SMALL if value is None else f"{significant(value * factor)} {unit}".strip()
        lines.append(f"  {title}: {text}")
    return "\n".join(lines)
