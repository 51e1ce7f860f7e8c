"""`fastswitch trace`: make workloads and say what is in them."""

from __future__ import annotations

import click

from cli.trace.clients import clients_command
from cli.trace.compose import compose_command
from cli.trace.convert import convert_command, schema_command
from cli.trace.describe import describe_command
from cli.trace.fit import fit_command
from cli.trace.generate import generate_command


@click.group()
def trace() -> None:
    """Make workloads and say what is in them."""


for _command in (
    generate_command,
    compose_command,
    fit_command,
    describe_command,
    convert_command,
    schema_command,
    clients_command,
):
    trace.add_command(_command)
