"""`fastswitch plan`: how many replicas of which machine keep a service level."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cli.options import TO_WRITE, json_option, load, set_option
from cli.progress import progress
from policy.errors import ConfigError
from traces.atomic import whole


@click.command("plan")
@click.argument("scenario", default="chat-users")
@click.option("--users", type=click.IntRange(1, 100_000), help="People in conversation at a time.")
@click.option(
    "--slo", "limits", multiple=True, required=True, metavar="METRIC=S", help="ttft_p99_s=2, ..."
)
@click.option("--machines", default="", metavar="A,B", help="Profiles, as NAME or NAME@tp2.")
@click.option("--gpus", default="", metavar="A,B", help="GPUs, each tried with every model.")
@click.option("--models", default="", metavar="M,N", help="Models of --gpus.")
@click.option(
    "--price", "prices", multiple=True, metavar="GPU=P", help="Of a GPU (or machine) for an hour."
)
@click.option("--seeds", "runs", type=click.IntRange(1, 50), default=3, show_default=True)
@click.option("--warm-up", type=click.FloatRange(min=0), default=300.0, show_default=True)
@click.option("--most", type=click.IntRange(1, 1024), default=64, show_default=True)
@click.option("--out", type=TO_WRITE, help="Also write the plan, as JSON.")
@set_option
@json_option
def plan_command(
    *,
    scenario: str,
    users: int | None,
    limits: tuple[str, ...],
    machines: str,
    gpus: str,
    models: str,
    prices: tuple[str, ...],
    runs: int,
    warm_up: float,
    most: int,
    out: Path | None,
    values: tuple[str, ...],
    as_json: bool,
) -> None:
    """How many replicas a load needs, on each machine: the answer, its spread over runs, what is short,
    one less, one more, and what was assumed.

    With --users the load is so many people, each in one conversation at a time (three conversations a
    user, unless the scenario says more); without, the scenario's workload. A number that is not known
    is said to be so.

    \b
    Examples:
      fastswitch plan --users 500 --slo ttft_p99_s=2 --gpus h100-sxm,h200-sxm,l40s,a10 \\
          --models llama-3.1-8b,llama-3.1-70b
      fastswitch plan --users 500 --slo ttft_p99_s=2 --machines h100-sxm-llama-3.1-70b@tp4 \\
          --price h100-sxm-llama-3.1-70b@tp4=2.5 --set router=llm-d-affinity
    """
    from explore.plan import page
    from explore.plan.candidates import candidates
    from explore.plan.size import Asked, size
    from runs.serving import Kept

    loaded, _ = load(scenario, values)
    if loaded.replicas:
        raise ConfigError("plan: says how many replicas; take `replicas` out")
    if users is not None:
        taken = dict.fromkeys(("workload.rate", "workload.arrivals", "workload.concurrency"))
        count = max(loaded.workload.conversations or 0, 3 * users, users + 200)
        over = {**taken, "workload.users": users}
        if loaded.workload.generator is not None:
            over["workload.conversations"] = count
        loaded = loaded.with_values(over)
    asked = Asked(loaded, _numbers("--slo", limits), runs, warm_up, most)
    context = loaded.limits.max_model_len or loaded.workload.context_cap or 8192
    found = candidates(
        _split(machines), _split(gpus), _split(models), _numbers("--price", prices), context
    )
    kept, sized = Kept(), []
    with progress(None, "simulations") as advance:
        for one in found:
            sized.append(size(asked, one, advance, kept))
    told = page.as_json(asked, sized)
    if out is not None:
        with whole(out) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(told, indent=1) if as_json else page.as_text(asked, sized))


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


def _numbers(option: str, pairs: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 < number < 1e9:
            raise ConfigError(f"{option}: {pair[:80]!r} must be like name=2, a number above 0")
        found[name] = number
    return found
