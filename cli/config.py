"""`fastswitch config`: the scenario format."""

from __future__ import annotations

import json

import click

from cli.options import load, set_option


@click.group()
def config() -> None:
    """The scenario format."""


@config.command("schema")
def _schema() -> None:
    """Print the JSON Schema of a scenario, for editors.

    \b
    Example:
      fastswitch config schema > scenario.schema.json
    """
    from runs.scenario import schema as make

    click.echo(json.dumps(make(), indent=1))


@config.command("validate")
@click.argument("scenario")
@set_option
def _validate(*, scenario: str, values: tuple[str, ...]) -> None:
    """Check a scenario and print it with every default written out.

    \b
    Examples:
      fastswitch config validate paper-8b-a10
      fastswitch config validate my.yaml --set system=vllm-0.3.3
    """
    loaded, _ = load(scenario, values)
    from sim.simulate import prepare

    setup = prepare(loaded)
    click.echo(loaded.as_yaml().rstrip())
    click.echo(
        f"# device {setup.settings.device_blocks} blocks, host {setup.settings.host_blocks} blocks,"
        f" profile {setup.profile.name} ({setup.profile.kind})"
    )
