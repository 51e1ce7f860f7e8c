"""`fastswitch systems`, `orders`, `scenarios`, `metrics` and `glossary`: what there is, a sentence each."""

from __future__ import annotations

import json
from typing import Any

import click

_json = click.option("--json", "as_json", is_flag=True, help="For machines.")


@click.command("systems")
@click.argument("names", nargs=-1)
@_json
def systems_command(*, names: tuple[str, ...], as_json: bool) -> None:
    """Named systems: what each is, its switches, what it is equal to and where that was shown.

    With NAMES, these alone and with all their switches.

    \b
    Examples:
      fastswitch systems
      fastswitch systems vllm-v1 vllm-v1+swap
    """
    from policy.systems import named_system
    from runs.known import system_told, systems_told

    told = [system_told(named_system(name)) for name in names] or systems_told()
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    _print(told)
    for one in told:
        if names:
            click.echo(f"\n{one['name']}, engine {one['engine']}")
            for switch, value in one["switches"].items():
                click.echo(f"  {switch}: {value}")
        if one["equal_to"]:
            click.echo(f"{one['name']} equals {one['equal_to']}")


@click.command("orders")
@_json
def orders_command(*, as_json: bool) -> None:
    """Built-in orders: who is served first.

    \b
    Example:
      fastswitch orders
    """
    from runs.known import orders_told

    told = orders_told()
    click.echo(json.dumps(told, indent=1)) if as_json else _print(told)


@click.command("scenarios")
@_json
def scenarios_command(*, as_json: bool) -> None:
    """Scenarios that ship: what each is of. Every command that takes SCENARIO takes these names.

    \b
    Example:
      fastswitch scenarios
    """
    from runs.scenario import read_mapping, shipped_names

    files = shipped_names().items()
    told = [{"name": n, "sentence": read_mapping(path)[0]["description"]} for n, path in files]
    click.echo(json.dumps(told, indent=1)) if as_json else _print(told)


@click.command("glossary")
@click.argument("term", required=False)
@_json
def glossary_command(*, term: str | None, as_json: bool) -> None:
    """What a word of tables and pages means; without TERM, every word.

    \b
    Examples:
      fastswitch glossary
      fastswitch glossary parking
    """
    from runs.glossary import entries, lookup

    found = entries() if term is None else lookup(term)
    told = [{"name": one.word, "sentence": one.meaning} for one in found]
    click.echo(json.dumps(told, indent=1)) if as_json else _print(told)


@click.command("routers")
@_json
def routers_command(*, as_json: bool) -> None:
    """Routers of a fleet: which replica serves a request.

    \b
    Example:
      fastswitch routers
    """
    from policy.routing.catalog import ROUTERS

    told = [{"name": one.name, "sentence": one.sentence} for one in ROUTERS.values()]
    click.echo(json.dumps(told, indent=1)) if as_json else _print(told)


@click.command("metrics")
@_json
def metrics_command(*, as_json: bool) -> None:
    """Metrics: their names in run.json and results, how they are headed, and what to know of them.

    \b
    Example:
      fastswitch metrics
    """
    from explore import words

    told = [
        {"name": name, "sentence": "; ".join([words.heading(name), *words.explained([name])])}
        for name in words.HEADINGS
    ]
    click.echo(json.dumps(told, indent=1)) if as_json else _print(told)


def _print(told: list[dict[str, Any]]) -> None:
    width = max(len(one["name"]) for one in told)
    for one in told:
        click.echo(f"{one['name']:{width}}  {one['sentence']}")
