"""What commands print: text, or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from policy.errors import InputError


def show(data: Callable[[], Any], text: Callable[[], str], *, as_json: bool) -> None:
    """What was found, on stdout."""
    click.echo(json.dumps(data(), indent=1) if as_json else text())


def show_run(summary: dict[str, Any], *, as_json: bool) -> None:
    """What a run came to, on stdout; its warnings on stderr. Exit code 5 with a verdict, 3 where every
    turn was rejected."""
    for line in summary["warnings"]:
        click.echo(f"warning: {line}", err=True)
    show(lambda: summary, lambda: _run_as_text(summary), as_json=as_json)
    if summary["verdict"]:
        click.echo(f"verdict: {summary['verdict']}", err=True)
        raise click.exceptions.Exit(5)
    refuse_nothing_served(summary)


def show_fleet(summary: dict[str, Any], *, as_json: bool) -> None:
    """What a fleet came to; exit codes as of one engine."""
    for line in summary["warnings"]:
        click.echo(f"warning: {line}", err=True)
    show(lambda: summary, lambda: _fleet_as_text(summary), as_json=as_json)
    if summary["verdict"]:
        click.echo(f"verdict: {summary['verdict']}", err=True)
        raise click.exceptions.Exit(5)
    refuse_nothing_served(summary)


def _fleet_as_text(summary: dict[str, Any]) -> str:
    from explore import words

    metrics, replicas = summary["metrics"], summary["replicas"]
    kinds: dict[str, int] = {}
    for one in replicas:
        kind = f"{one['system']} on {one['profile']}"
        kinds[kind] = kinds.get(kind, 0) + 1
    told = " + ".join(f"{count} x {kind}" for kind, count in kinds.items())
    lines = [
        f"{summary['scenario']}: {told} behind {summary['router']}",
        f"  rows {metrics['rows']}: {metrics['finished']} finished, {metrics['rejected']} rejected,"
        f" {metrics['cancelled']} cancelled, {metrics['unfinished']} unfinished",
    ]
    names = [name for name in words.HEADINGS if name in metrics]
    for name in words.shown(names, [metrics]):
        lines.append(f"  {words.HEADINGS[name][0]}: {words.value(metrics, name)}")
    return "\n".join(lines + [f"  {line}" for line in _of_fleets(metrics)])


def _of_fleets(metrics: dict[str, Any]) -> list[str]:
    """What only a fleet has."""
    lost = metrics["lost_by_routing_tokens"]
    lines = [
        f"cached share of prompts: {metrics['cached_share'] or 0:.3f};"
        f" {lost:,} prompt tokens lay at another replica",
        f"busiest replica: {metrics['imbalance'] or 0:.2f} times the mean work; a replica idle while"
        f" another had turns waiting: {100 * metrics['idle_while_others_wait']:.1f} % of the run",
        f"GPU hours: {metrics['gpu_hours']:.3f}",
    ]
    cost = metrics["cost_per_million_tokens"]
    return lines if cost is None else [*lines, f"cost per million output tokens: {cost:.4g}"]


def refuse_nothing_served(summary: dict[str, Any]) -> None:
    """A run whose turns were all rejected answers nothing: exit code 3, why on stderr."""
    from runs.metrics.served import is_nothing_but_rejected

    if is_nothing_but_rejected(summary["metrics"]):
        because = summary.get("rejected_because") or "no reason was given"
        rows = summary["metrics"]["rows"]
        click.echo(f"error: all {rows} turns were rejected: {because}", err=True)
        raise click.exceptions.Exit(InputError.exit_code)


def _run_as_text(summary: dict[str, Any]) -> str:
    """A run in a few lines."""
    from explore import words
    from runs.metrics.served import little_served

    metrics = summary["metrics"]
    machine = (
        f"{summary['model']} on {summary['device']}"
        if summary["machine"] == "real"
        else f"{summary['profile_kind']} profile {summary['profile']}"
    )
    little = little_served(metrics, summary.get("rejected_because"))
    lines = [] if little is None else [little]
    lines += [
        f"{summary['scenario']}, {summary['system']} under {summary['order']}"
        f" ({summary['planner']} planner), {machine}",
        f"  rows {metrics['rows']}: {metrics['finished']} finished, {metrics['rejected']} rejected,"
        f" {metrics['cancelled']} cancelled, {metrics['unfinished']} unfinished",
    ]
    queued = summary["workload"].get("queued_at_client")
    if queued is not None:
        waited = summary["workload"]["queued_at_client_s"]
        lines.append(
            f"  client's own queue: {queued} turns waited {words.significant(waited)} s in all, which"
            " only latencies from the due time count"
        )
    for name in words.shown(list(words.HEADINGS), [metrics]):
        lines.append(f"  {words.HEADINGS[name][0]}: {words.value(metrics, name)}")
    lines += [f"  {line}" for line in words.explained(list(words.HEADINGS))]
    return "\n".join(lines)
