"""`fastswitch simulate`: one system, everything it did."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import (
    TO_WRITE,
    check_option,
    heed,
    json_option,
    load,
    order_option,
    say_aliases,
    set_option,
)
from cli.progress import progress
from cli.show import show_fleet, show_run
from policy.errors import ConfigError

if TYPE_CHECKING:
    from runs.scenario import Scenario
    from runs.user_order import UserOrder


@click.command("simulate")
@click.argument("scenario")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to record to.")
@click.option("--decisions", is_flag=True, help="Also write decisions.jsonl, one line per step.")
@click.option("--perfetto", type=TO_WRITE, help="Also write a timeline, .json.gz.")
@order_option
@check_option
@set_option
@json_option
def simulate_command(
    *,
    scenario: str,
    out: Path,
    decisions: bool,
    perfetto: Path | None,
    order: str | None,
    check: str,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Simulate one system, or a fleet of replicas behind a router, and record everything it did.

    \b
    Examples:
      fastswitch simulate paper-8b-a10 --out run --perfetto run.json.gz
      fastswitch simulate paper-8b-a10 --set system=vllm-0.3.3 --set order=fcfs --decisions --out run
      fastswitch simulate paper-8b-a10 --set order=fcfs --set replicas=4 --set router=llm-d-default --out fleet
    """
    loaded, own = load(scenario, values, order)
    say_aliases([str(loaded.system)], loaded.order_name if own is None else own.name)
    heed([loaded], values, order, own)
    if loaded.replicas:
        _fleet(loaded, out, decisions, perfetto, own, check, as_json=as_json)
        return
    from sim.simulate import simulate as run

    with progress(None, "turns") as advance:
        recording = run(
            loaded,
            out=out,
            decisions=decisions,
            check=check,
            order=own,
            progress=lambda _: advance(),
        )
    if perfetto is not None:
        from explore.exports.export import export

        export(recording, "perfetto", perfetto)
    show_run(recording.summary, as_json=as_json)


def _fleet(
    scenario: Scenario,
    out: Path,
    decisions: bool,  # noqa: FBT001
    perfetto: Path | None,
    own: UserOrder | None,
    check: str,
    *,
    as_json: bool,
) -> None:
    from sim.fleet.simulate import simulate_fleet

    if perfetto is not None:
        raise ConfigError("--perfetto: is of one engine; fastswitch export r000 of the folder")
    with progress(None, "turns") as advance:
        found = simulate_fleet(
            scenario,
            out=out,
            decisions=decisions,
            check=check,
            order=own,
            progress=lambda _: advance(),
        )
    show_fleet(found.summary, as_json=as_json)
