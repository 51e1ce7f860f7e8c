"""`fastswitch realrun`: the real machine."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from cli.options import (
    check_option,
    heed,
    json_option,
    load,
    needing_torch,
    order_option,
    say_aliases,
    set_option,
)
from cli.progress import progress
from cli.show import show_run


@click.command("realrun")
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
@click.option(
    "--temperature",
    type=float,
    help="0: greedy. Without any of these three: the model's own generation_config, else greedy.",
)
@click.option("--top-p", type=float, help="1: all tokens, the default.")
@click.option("--top-k", type=int, help="0: all tokens, the default.")
@click.option("--decisions", is_flag=True, help="Also write what a replay needs.")
@order_option
@check_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new, empty folder.")
@set_option
@json_option
def realrun_command(
    *,
    scenario: str,
    device: str,
    model: str,
    dtype: str | None,
    deterministic: bool,
    conversation: Path | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
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
      fastswitch realrun cpu-smoke --set system=paged --decisions --out run
      fastswitch realrun cpu-smoke --conversation talk.jsonl --deterministic --out run
    """
    loaded, own = load(scenario, values, order)
    say_aliases([str(loaded.system)], loaded.order_name if own is None else own.name)
    if conversation is None:
        heed([loaded], values, order, own)
    serve = needing_torch("realrun.serve")
    sampling = None
    if (temperature, top_p, top_k) != (None, None, None):
        top_p = 1.0 if top_p is None else top_p
        sampling = serve.SamplingParams(temperature or 0.0, top_p, top_k or 0, loaded.seed)
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
    show_run(recording.summary, as_json=as_json)
    if recording.summary["was_stopped"]:
        click.echo(f"interrupted; what had ended is in {out}", err=True)
        raise click.exceptions.Exit(130)


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
