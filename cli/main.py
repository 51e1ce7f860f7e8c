"""The `fastswitch` command: one file a subcommand beside this one."""

from __future__ import annotations

import errno
from typing import Any

import click

from cli.calibrate import calibrate_command
from cli.compare import compare_command
from cli.config import config
from cli.export import export_command
from cli.listing import (
    glossary_command,
    metrics_command,
    orders_command,
    routers_command,
    scenarios_command,
    systems_command,
)
from cli.machine import machine_group
from cli.plan import plan_command
from cli.realrun import realrun_command
from cli.report import report_command
from cli.reproduce import reproduce_command
from cli.search import search_command
from cli.serve import serve_command
from cli.simulate import simulate_command
from cli.sweep import group as sweep_group
from cli.tokenizer import tokenizer_command
from cli.trace.group import trace
from cli.validate import validate_command
from policy.errors import FastSwitchError, FaultError

VERSION = "0.1.0"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


class _Group(click.Group):
    """Turns our errors into at most five lines and an exit code; `--debug` shows the traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FastSwitchError as error:
            if ctx.params.get("debug"):
                raise
            lines = f"error: {error}".splitlines()[:5]
            click.echo("\n".join(lines), err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            # a disk that is full between two writes of a run, which each command keeps as far as it got
            if ctx.params.get("debug") or error.errno not in _OF_THE_DISK:
                raise
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"error: {where}cannot be written: {error.strerror}", err=True)
            ctx.exit(FaultError.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


GREETING = """\
What does preemption cost an LLM server, and which policy pays?

Which system is best for this load?     fastswitch compare paper-8b-a10 --out out
And for my own trace?                   fastswitch trace describe my.csv
                                        fastswitch compare paper-8b-a10 --set workload.file=my.csv
Which setting keeps my limit?           fastswitch search --help
Why was this request slow?              fastswitch simulate paper-8b-a10 --out run
                                        fastswitch report run
On which machine?                       fastswitch machine list
Is the simulator right about mine?      fastswitch calibrate --help, fastswitch validate --help
What is there by name?                  fastswitch systems | orders | scenarios | metrics
What does a word mean?                  fastswitch glossary parking

All commands: fastswitch --help
"""


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(VERSION)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, *, debug: bool) -> None:  # noqa: ARG001  _Group reads it
    """What does preemption cost an LLM server, and which policy pays?"""
    if ctx.invoked_subcommand is None:
        click.echo(GREETING, nl=False)


for _command in (
    calibrate_command,
    compare_command,
    config,
    systems_command,
    orders_command,
    routers_command,
    scenarios_command,
    metrics_command,
    glossary_command,
    export_command,
    machine_group,
    plan_command,
    realrun_command,
    report_command,
    reproduce_command,
    search_command,
    serve_command,
    simulate_command,
    sweep_group,
    tokenizer_command,
    trace,
    validate_command,
):
    main.add_command(_command)
