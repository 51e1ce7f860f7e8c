"""`fastswitch calibrate`: this machine's cost profile."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import TO_WRITE, kept_when_stopped, needing_torch
from cli.progress import progress
from policy.errors import ConfigError


@click.command("calibrate")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--model", default="smollm2", show_default=True, help="As for realrun.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option(
    "--from",
    "points",
    type=click.Path(path_type=Path),
    help="Fit this points file again; nothing is measured.",
)
@click.option("--repeats", type=click.IntRange(min=5), default=20, show_default=True)
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    help="Seconds; no new round of samples after it.  [default: 180 on a CPU, 300 on a GPU]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=TO_WRITE, required=True, help="NAME.json")
def calibrate_command(
    *,
    device: str,
    model: str,
    dtype: str | None,
    points: Path | None,
    repeats: int,
    budget: float | None,
    seed: int,
    out: Path,
) -> None:
    """Time a machine's own steps and copies and fit a cost profile for the simulator.

    Samples go to NAME.points.jsonl beside the profile as they come; the same command goes on where
    it was stopped. NAME.png shows the fit against the points.

    \b
    Examples:
      fastswitch calibrate --out cpu.json
      fastswitch calibrate --from cpu.points.jsonl --out again.json
      fastswitch simulate cpu-smoke --set profile=cpu.json --out run
    """
    from calibrate import build, figure
    from traces import figure_style

    if out.suffix != ".json":
        raise ConfigError(f"--out: {out} does not end in .json")
    if points is None:
        points = out.with_suffix(".points.jsonl")
        _measure(device, model, dtype, points, repeats, budget)
    profile = build.refit(points, name=out.stem, seed=seed)
    build.save(profile, out)
    figure_style.save(figure.fit_figure(profile), out.with_suffix(".png"))
    click.echo("\n".join(build.summary(profile)))
    click.echo(f"written: {out}, {out.with_suffix('.png')}; samples in {points}", err=True)


def _measure(
    device: str, model: str, dtype: str | None, points: Path, repeats: int, budget: float | None
) -> None:
    machine = needing_torch("calibrate.machine")
    target = machine.prepare(model, device, dtype)
    click.echo("\n".join(machine.roofline(target)))
    seconds = machine.BUDGET_S[device] if budget is None else budget
    going_on = kept_when_stopped(points, "run it again to go on")
    with progress(target.num_samples(repeats), "samples") as advance, going_on:
        found = machine.run(target, points, repeats=repeats, budget_s=seconds, progress=advance)
    fewest = min(len(values) for values in found.samples.values())
    if fewest < repeats:
        click.echo(
            f"time ran out with {fewest} of {repeats} samples a point; run it again to go on",
            err=True,
        )
