"""The front door: `import fastswitch` in Python, `fastswitch` on the command line.

Everything heavy is imported by the command that needs it, so that `fastswitch --help` is quick.
"""

from __future__ import annotations

import importlib
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from explore import sweep_commands
from explore.export_command import export_command
from explore.options import check_option, kept_when_stopped, load, order_option, set_option
from explore.report_command import report_command
from explore.reproduce_command import reproduce_command
from explore.search_command import search_command
from policy.errors import ConfigError, FastSwitchError
from traces.commands import trace
from traces.options import json_option
from traces.progress import progress

__version__ = "0.1.0"

_API = {
    "Scenario": ("traces.scenario", "Scenario"),
    "compare": ("explore.compare", "compare"),
    "describe": ("traces.describe", "describe"),
    "in_words": ("explore.words", "in_words"),
    "load_scenario": ("traces.scenario", "load"),
    "mean_of_runs": ("explore.sweep.answers", "mean_of_runs"),
    "ratio_of_runs": ("explore.sweep.answers", "ratio_of_runs"),
    "read_workload": ("traces.readers.catalog", "read_workload"),
    "replay": ("explore.validate", "replay"),
    "search": ("explore.search.run", "search"),
    "serve": ("realrun.serve", "serve"),
    "simulate": ("sim.simulate", "simulate"),
    "sweep": ("explore.sweep.run", "sweep"),
}


def __getattr__(name: str) -> Any:
    """The public Python API, loaded when it is first asked for."""
    if name in _API:
        module, attribute = _API[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'fastswitch' has no attribute {name!r}")


DEFAULT_SCENARIO = "paper-8b-a10"
DEFAULT_RUNS = 3


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
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(130)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(*, debug: bool) -> None:
    """What does preemption cost an LLM server, and which policy pays?"""


main.add_command(trace)
main.add_command(export_command)
main.add_command(report_command)
main.add_command(sweep_commands.group)
main.add_command(search_command)
main.add_command(reproduce_command)


@main.command("compare")
@click.argument("scenario", default=DEFAULT_SCENARIO)
@click.option("--systems", help="Comma-separated systems; default: the scenario's own list.")
@click.option("--seeds", "runs", default=DEFAULT_RUNS, show_default=True, help="Paired runs.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for JSON, CSV, figures, page.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core.")
@click.option(
    "--study",
    type=click.Choice(["terminating", "steady-state"]),
    default="terminating",
    show_default=True,
    help="Count whole runs, or what comes after a warm-up that is found first.",
)
@click.option("--until-precise", is_flag=True, help="More runs until intervals are narrow, to 50.")
@order_option
@set_option
@json_option
def _compare(
    *,
    scenario: str,
    systems: str | None,
    runs: int,
    out: Path | None,
    workers: int | None,
    study: str,
    until_precise: bool,
    order: str | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Run systems side by side on the same workload, priority trace and random streams.

    \b
    Examples:
      fastswitch compare
      fastswitch compare paper-8b-a10 --systems vllm-0.3.3-keep,fastswitch --seeds 5 --out out
      fastswitch compare my.yaml --set workload.rate=0.1 --order my_module:MyOrder
      fastswitch compare my.yaml --study steady-state --until-precise --out out
    """
    if runs < 1:
        raise ConfigError(f"--seeds: {runs} is below 1")
    loaded, own = load(scenario, values, order)
    from explore import compare as module
    from explore import output, tables

    names = [name.strip() for name in systems.split(",")] if systems else None
    total = None if until_precise else module.num_jobs(loaded, names, runs, study)
    with progress(total, "runs") as advance:
        found = module.compare(
            loaded,
            names,
            runs,
            workers,
            advance,
            own,
            study=study,
            until_precise=until_precise,
        )
    click.echo(json.dumps(tables.as_json(found), indent=1) if as_json else tables.as_text(found))
    if out is not None:
        command = "fastswitch " + " ".join(sys.argv[1:])
        output.write(found, out, command)
        click.echo(f"\nwritten: {out / 'compare.html'} and what it is made of", err=True)


@main.command("simulate")
@click.argument("scenario")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to record to.")
@click.option("--decisions", is_flag=True, help="Also write decisions.jsonl, one line per step.")
@click.option(
    "--perfetto", type=click.Path(path_type=Path), help="Also write a timeline, .json.gz."
)
@order_option
@check_option
@set_option
@json_option
def _simulate(
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
    """Simulate one system and record everything it did.

    \b
    Examples:
      fastswitch simulate paper-8b-a10 --out run --perfetto run.json.gz
      fastswitch simulate paper-8b-a10 --set system=vllm-0.3.3 --set order=fcfs --decisions --out run
    """
    loaded, own = load(scenario, values, order)
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
        from explore.export import export

        export(recording, "perfetto", perfetto)
    _show_run(recording.summary, as_json=as_json)


def _show_run(summary: dict[str, Any], *, as_json: bool) -> None:
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


@main.command("realrun")
@click.argument("scenario")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--model",
    default="smollm2",
    show_default=True,
    help="smollm2, random:NAME, a Hugging Face folder or a .gguf file.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--deterministic", is_flag=True, help="Same tokens under any swap schedule; slower.")
@click.option(
    "--conversation",
    type=click.Path(path_type=Path),
    help="Serve the text of this JSONL file instead of the scenario's workload.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: greedy.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--top-k", type=int, default=0, show_default=True, help="0: all tokens.")
@click.option("--decisions", is_flag=True, help="Also write what a replay needs.")
@order_option
@check_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new, empty folder.")
@set_option
@json_option
def _realrun(
    *,
    scenario: str,
    device: str,
    model: str,
    dtype: str | None,
    deterministic: bool,
    conversation: Path | None,
    temperature: float,
    top_p: float,
    top_k: int,
    decisions: bool,
    order: str | None,
    check: str,
    out: Path,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Serve a scenario with a real model, real KV memory and real copies.

    The policies are those that the simulator runs, and so is the recording. Ctrl-C stops serving,
    waits for copies under way and keeps what was recorded.

    \b
    Examples:
      fastswitch realrun cpu-smoke --out run
      fastswitch realrun cpu-smoke --set system=vllm-0.3.3 --decisions --out run
      fastswitch realrun cpu-smoke --conversation talk.jsonl --deterministic --out run
    """
    loaded, own = load(scenario, values, order)
    serve = _needing_torch("realrun.serve")
    sampling = serve.SamplingParams(temperature, top_p, top_k, loaded.seed)
    options = serve.Options(device, model, dtype, deterministic, sampling, conversation)
    with progress(None, "turns") as advance, _stopping_on_interrupt() as interruptible:
        recording = serve.serve(
            loaded,
            options,
            out=out,
            decisions=decisions,
            check=check,
            order=own,
            progress=lambda _: advance(),
            interruptible=interruptible,
        )
    _show_run(recording.summary, as_json=as_json)
    if recording.summary["was_stopped"]:
        click.echo(f"interrupted; what had ended is in {out}", err=True)
        raise click.exceptions.Exit(130)


def _needing_torch(module: str) -> Any:
    """A module by its name. Raises ConfigError if the libraries it needs are not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the real machine needs the package {error.name}: pip install -e '.[real]'"
            " (without a GPU, first PyTorch's CPU wheel; see README.md)"
        ) from None


@contextmanager
def _stopping_on_interrupt() -> Iterator[Callable[[Callable[[], None]], None]]:
    """The first Ctrl-C calls the function that is handed over; the second ends the process."""
    before = signal.getsignal(signal.SIGINT)

    def arm(stop: Callable[[], None]) -> None:
        def first(*_: object) -> None:
            signal.signal(signal.SIGINT, before)
            click.echo("stopping; once more to abort", err=True)
            stop()

        signal.signal(signal.SIGINT, first)

    try:
        yield arm
    finally:
        signal.signal(signal.SIGINT, before)


@main.command("calibrate")
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
@click.option("--out", type=click.Path(path_type=Path), required=True, help="NAME.json")
def _calibrate(
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
    from traces import drawing

    if out.suffix != ".json":
        raise ConfigError(f"--out: {out} does not end in .json")
    if points is None:
        points = out.with_suffix(".points.jsonl")
        _measure(device, model, dtype, points, repeats, budget)
    profile = build.refit(points, name=out.stem, seed=seed)
    build.save(profile, out)
    drawing.save(figure.fit_figure(profile), out.with_suffix(".png"))
    click.echo("\n".join(build.summary(profile)))
    click.echo(f"written: {out}, {out.with_suffix('.png')}; samples in {points}", err=True)


def _measure(
    device: str, model: str, dtype: str | None, points: Path, repeats: int, budget: float | None
) -> None:
    machine = _needing_torch("calibrate.machine")
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


@main.command("validate")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--replay", is_flag=True, help="Make every decision again; all must be equal.")
@click.option("--profile", help="Predict these real runs with this profile.")
@click.option(
    "--order", metavar="NAME", help="With --replay: the user's own order they were made with."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for page, tables and figures.")
@json_option
def _validate_runs(
    *,
    runs: tuple[str, ...],
    replay: bool,
    profile: str | None,
    order: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Check recordings against the simulator.

    With --replay the simulated machine runs again with only the recorded times. Every line of
    decisions.jsonl must come out equal; if not, the first that differs is shown, and the exit code
    is 4. With --profile what real runs served is simulated, and prediction and measurement are laid
    side by side; runs of one scenario and system are repeats. Every recorded step and copy goes through
    the cost model too, so that an error can be laid at its door or at queueing's.

    \b
    Examples:
      fastswitch validate run --replay
      fastswitch validate runs/vllm runs/fastswitch --replay --json
      fastswitch validate runs/vllm-* runs/fastswitch-* --profile cpu.json --out checked
    """
    if replay == (profile is not None):
        raise ConfigError("validate: say what to check, --replay or --profile P")
    if replay and out is not None:
        raise ConfigError("--out: a replay writes nothing; it goes with --profile")
    if profile is not None and order is not None:
        raise ConfigError("--order: goes with --replay")
    if profile is not None:
        _predict(runs, profile, out, as_json=as_json)
        return
    from explore import validate

    found = []
    with progress(len(runs), "runs") as advance:
        for run in runs:
            found.append((run, validate.replay(Path(run), order)))
            advance()
    if as_json:
        click.echo(json.dumps(validate.as_json(found), indent=1))
    for run, replayed in found:
        validate.check(run, replayed)
        if not as_json:
            click.echo(validate.as_text(run, replayed))


def _predict(runs: tuple[str, ...], profile: str, out: Path | None, *, as_json: bool) -> None:
    from explore import output, predict, predict_text

    with progress(None, "systems") as advance:
        found = predict.predict([Path(run) for run in runs], profile, advance)
    as_text = predict_text.as_text(found)
    click.echo(json.dumps(predict_text.as_json(found), indent=1) if as_json else as_text)
    if out is not None:
        command = "fastswitch " + " ".join(sys.argv[1:])
        output.write_validation(found, out, command)
        click.echo(f"written: {out / 'validation.html'}, .txt, .json and figures", err=True)


# ---------------------------------------------------------------------- config


@main.group()
def config() -> None:
    """The scenario format."""


@config.command("schema")
def _schema() -> None:
    """Print the JSON Schema of a scenario, for editors.

    \b
    Example:
      fastswitch config schema > scenario.schema.json
    """
    from traces.scenario import schema as make

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


if __name__ == "__main__":
    main()
