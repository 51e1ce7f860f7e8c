"""`fastswitch validate`: recordings against the simulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from cli.options import json_option, set_option
from cli.progress import progress
from cli.show import show
from policy.errors import ConfigError
from traces.atomic import tried_folder


@click.command("validate")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--replay", is_flag=True, help="Make every decision again; all must be equal.")
@click.option("--profile", help="Predict these real runs with this profile.")
@click.option(
    "--order", metavar="NAME", help="With --replay: the user's own order they were made with."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder for page, tables and figures.")
@click.option(
    "--scenario",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="With runs of others: their system, limits, workload.",
)
@set_option
@json_option
def validate_command(
    *,
    runs: tuple[str, ...],
    replay: bool,
    profile: str | None,
    order: str | None,
    out: Path | None,
    scenario: Path | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """Check recordings against the simulator.

    With --replay the simulated machine runs again with only the recorded times. Every line of
    decisions.jsonl must come out equal; if not, the first that differs is shown, and the exit code
    is 4. With --profile what real runs served is simulated, and prediction and measurement are laid
    side by side; runs of one scenario and system are repeats. Every recorded step and copy goes through
    the cost model too, so that an error can be laid at its door or at queueing's.

    A RUN that is a file holds per-request records of vllm bench, LLMServingSim, BLIS TraceV2, AIPerf
    or inference-perf: what was served is simulated on the profile, under the limits that were
    recorded, those of --scenario and --set. Of several such runs it is told up to which load the
    prediction holds.

    \b
    Examples:
      fastswitch validate requests.jsonl --profile rtx-4090-llama-3.1-8b
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
    others = [run for run in runs if Path(run).is_file()]
    if others:
        if profile is None or len(others) < len(runs) or out is not None:
            raise ConfigError(
                "validate: files of others' runs go with --profile, and with no folder"
            )
        _beside(others, profile, scenario, values, as_json=as_json)
        return
    if scenario is not None or values:
        raise ConfigError("--scenario, --set: go with files of others' runs")
    if profile is not None:
        _predict(runs, profile, out, as_json=as_json)
        return
    from explore.validation import validate

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
    from explore.studies import output
    from explore.validation import predict, predict_text

    if out is not None:
        tried_folder(out)
    with progress(None, "systems") as advance:
        found = predict.predict([Path(run) for run in runs], profile, advance)
    show(lambda: predict_text.as_json(found), lambda: predict_text.as_text(found), as_json=as_json)
    if out is not None:
        command = "fastswitch " + " ".join(sys.argv[1:])
        output.write_validation(found, out, command)
        click.echo(f"written: {out / 'validation.html'}, .txt, .json and figures", err=True)


def _beside(
    files: list[str],
    profile: str,
    scenario: Path | None,
    values: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    from explore.validation import beside, others
    from runs.scenario import parse_settings

    runs = [others.read(Path(file)) for file in files]
    found = beside.lay(runs, profile, scenario, parse_settings(values))
    click.echo(json.dumps(beside.as_json(found), indent=1) if as_json else beside.as_text(found))
