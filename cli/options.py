"""Options and loading that several commands share. Imports nothing heavy: `--help` is quick."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from policy.errors import ConfigError
from traces.atomic import tried

if TYPE_CHECKING:
    from runs.scenario import Scenario
    from runs.user_order import UserOrder


class _ToWrite(click.Path):
    """A file that is written at the end: one that cannot be is told before the work for it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        path = Path(os.fspath(value))
        tried(path)
        return super().convert(value, param, ctx)


TO_WRITE = _ToWrite()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
set_option = click.option(
    "--set",
    "values",
    multiple=True,
    metavar="A.B=C",
    help="Put a value over the scenario's, e.g. --set pool.aging=none. May be repeated.",
)
check_option = click.option(
    "--check",
    type=click.Choice(["off", "counts", "full"]),
    default="counts",
    show_default=True,
    help="Conservation laws checked after every step.",
)
overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Delete what the folder has of another study."
)
#: Results of the same study are gone on with anyway; scripts of earlier versions say so.
resume_option = click.option("--resume", is_flag=True, hidden=True, expose_value=False)
order_option = click.option(
    "--order",
    metavar="NAME",
    help="Who is served first: a built-in order, your module:MyOrder or path/to/file.py:MyOrder.",
)


def load(
    scenario: str, values: tuple[str, ...], order: str | None = None
) -> tuple[Scenario, UserOrder | None]:
    """A scenario under `--set` and `--order`; with it the user's own order if that names one, which
    has then passed the contract suite. Raises ConfigError."""
    from runs.scenario import load as read

    settled, own = settings_of(values, order)
    return read(scenario, settled), own


def heed(
    scenarios: list[Scenario], values: tuple[str, ...], order: str | None, own: UserOrder | None
) -> None:
    """Raise ConfigError for what `--set` or the scenario's file asks for and none of these runs reads."""
    from runs.obeyed import refuse_unread

    chosen = [pair.partition("=")[0] for pair in values] + ["order"] * (order is not None)
    refuse_unread(scenarios, own_order=own is not None, chosen=chosen)


def heed_compared(
    scenario: Scenario,
    systems: Mapping[str, str | dict[str, Any]],
    values: tuple[str, ...],
    order: str | None = None,
    own: UserOrder | None = None,
) -> None:
    """`heed`, and a line on old names, for systems side by side, by name. Raises ConfigError too where
    `--set` chooses a system."""
    chosen = [pair for pair in values if pair.partition("=")[0].split(".")[0] == "system"]
    if chosen:
        raise ConfigError(f"--set {chosen[0][:80]}: systems are compared; name them by --systems")
    say_aliases(systems, scenario.order_name if own is None else own.name)
    compared = [scenario.model_copy(update={"system": asked}) for asked in systems.values()]
    heed(compared, values, order, own)


def settings_of(
    values: tuple[str, ...], order: str | None
) -> tuple[dict[str, Any], UserOrder | None]:
    """What `--set` and `--order` put over a scenario; with it the user's own order if that names
    one, which has then passed the contract suite. Raises ConfigError."""
    from policy.orders.catalog import ORDERS
    from runs.scenario import parse_settings

    settled = parse_settings(values)
    if order is None:
        return settled, None
    if order in ORDERS:
        return {**settled, "order": order}, None
    from runs.user_order import user_order

    return settled, user_order(order)


def say_aliases(names: Iterable[str], order: str) -> None:
    """One line to stderr, where vLLM 0.3.3's systems are asked for under another order than its own."""
    from policy.systems import SYSTEMS, aliases

    known = [n for n in names if n in SYSTEMS or f"vllm-0.3.3{n}" in SYSTEMS]
    found = aliases(known, is_fcfs=order == "fcfs")
    if found:
        told = ", ".join(f"{name} is {paged}" for name, paged in found.items())
        click.echo(f"under {order}, which vLLM 0.3.3 does not know: {told}", err=True)


@contextmanager
def kept_when_stopped(where: Path, how: str) -> Iterator[None]:
    """Ctrl-C tells where the finished part is and `how` to go on, before it goes on its way."""
    try:
        yield
    except KeyboardInterrupt:
        kept = (
            f"what was finished is in {where}, {how}" if where.exists() else "nothing was finished"
        )
        click.echo(f"stopped; {kept}", err=True)
        raise


def needing_torch(module: str) -> Any:
    """A module by its name. Raises ConfigError if the libraries it needs are not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the real machine needs the package {error.name}: pip install -e '.[real]'"
            " (without a GPU, first PyTorch's CPU wheel; see README.md)"
        ) from None
