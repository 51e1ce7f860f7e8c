"""`fastswitch machine`: profiles of machines, built, listed, shown and compared."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import heed_compared, load, set_option
from cli.progress import progress
from policy.errors import ConfigError


@click.group("machine")
def machine_group() -> None:
    """Machines: cost profiles of GPUs and models."""


@machine_group.command("build")
@click.option("--gpu", required=True, help="As listed by `machine list`: h100-sxm, a10, ...")
@click.option("--model", required=True, help="A model that ships, or a Hugging Face config.json.")
@click.option("--tables", help="Folder of op tables; {tp} in it stands for the number of GPUs.")
@click.option("--points", type=click.Path(path_type=Path), help="CSV of measured steps, or points.")
@click.option(
    "--all-reduce",
    "reduce_from",
    type=click.Path(path_type=Path),
    help="Folder that has its table.",
)
@click.option("--tp", "shards", type=click.IntRange(1, 64), multiple=True, default=(1,))
@click.option("--date", default=None, help="Kept in the profile.  [default: today]")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="NAME.json")
def build_command(
    *,
    gpu: str,
    model: str,
    tables: str | None,
    points: Path | None,
    reduce_from: Path | None,
    shards: tuple[int, ...],
    date: str | None,
    out: Path,
) -> None:
    """Make a profile from measured op tables, or from a data sheet and a model's config.

    Without --tables the profile is derived, with the error that such profiles have on cards left
    out; --points corrects it by measured steps. See docs/machines.md.

    \b
    Examples:
      fastswitch machine build --gpu h200-sxm --model config.json --out h200.json
      fastswitch machine build --gpu l4 --model qwen3-8b --points steps.csv --out l4.json
      fastswitch machine build --gpu h100-sxm --model llama-3.1-70b --tables h100_sxm-0.24.0 \\
          --tp 2 --tp 4 --out h100-70b.json
    """
    from datetime import date as calendar

    from calibrate import build
    from calibrate.machines import make
    from explore import machines

    if out.suffix != ".json":
        raise ConfigError(f"--out: {out} does not end in .json")
    if tables is not None and points is not None:
        raise ConfigError("--points: corrects a derived profile; --tables are measured themselves")
    asked = make.Asked(
        gpu=gpu,
        model=model,
        date=date or calendar.today().isoformat(),
        tables=tables,
        points=points,
        reduce_from=reduce_from,
        shards=tuple(sorted(set(shards))),
    )
    profile = make.profile(asked, out.stem)
    build.save(profile, out)
    click.echo("\n".join(machines.shown(profile)))
    click.echo(f"written: {out}", err=True)


@machine_group.command("list")
def list_command() -> None:
    """Profiles that ship, GPUs whose data sheets are known, and models.

    \b
    Example:
      fastswitch machine list
    """
    from calibrate import profile
    from calibrate.machines import gpus, shapes

    for name in profile.names():
        found = profile.load(name)
        shares = "".join(f" @tp{count}" for count in found.shares or {})
        click.echo(f"{name:<32} {found.kind:<10} {found.machine}, {found.model.name}{shares}")
    click.echo("\nGPUs:   " + ", ".join(gpus.GPUS))
    click.echo("models: " + ", ".join(shapes.known()))


@machine_group.command("show")
@click.argument("name")
def show_command(*, name: str) -> None:
    """What a machine's steps and copies take, and how each of its numbers is known.

    \b
    Example:
      fastswitch machine show h100-sxm-llama-3.1-8b
    """
    from calibrate import profile
    from explore import machines

    click.echo("\n".join(machines.shown(profile.load(name))))


@machine_group.command("compare")
@click.argument("first")
@click.argument("second")
def compare_command(*, first: str, second: str) -> None:
    """Two machines side by side: memory, steps, copies.

    \b
    Example:
      fastswitch machine compare a100-sxm-llama-3.1-8b h100-sxm-llama-3.1-8b
    """
    from calibrate import profile
    from explore import machines

    click.echo("\n".join(machines.compared(profile.load(first), profile.load(second))))


@machine_group.command("doubt")
@click.argument("scenario")
@click.option("--systems", required=True, metavar="A,B", help="Two systems.")
@click.option("--metric", default="ttft_p99_s", show_default=True, help="As in run.json's metrics.")
@click.option("--draws", type=click.IntRange(min=1), default=20, show_default=True)
@set_option
def doubt_command(
    *, scenario: str, systems: str, metric: str, draws: int, values: tuple[str, ...]
) -> None:
    """Whether a verdict survives what is not known about the machine.

    Both systems run on the profile and on machines drawn from the ranges of its numbers, the same
    for both; it says how often the same one is ahead, and which two numbers that hangs on most.

    \b
    Example:
      fastswitch machine doubt paper-8b-a10 --systems paged-keep,fastswitch --draws 20
    """
    from explore import uncertain

    names = tuple(systems.split(","))
    if len(names) != 2:
        raise ConfigError(f"--systems: {systems!r}: two, as paged-keep,fastswitch")
    loaded, _ = load(scenario, values)
    heed_compared(loaded, {name: name for name in names}, values)
    with progress(2 * (draws + 1), "runs") as advance:
        verdict = uncertain.judge(loaded, (names[0], names[1]), metric, draws, advance)
    click.echo(uncertain.as_text(verdict))
