"""`fastswitch serve`: a machine for real clients."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import click

from cli.options import check_option, load, needing_torch, order_option, say_aliases, set_option
from cli.show import show_run
from policy.errors import ConfigError

_HOW = "pip install -e '.[server]'"


@click.command("serve")
@click.argument("scenario")
@click.option(
    "--machine",
    type=click.Choice(["sim", "real"]),
    default="sim",
    show_default=True,
    help="The simulated machine at the speed of the clock, or the real one.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Of the real machine, as the next three.",
)
@click.option(
    "--model",
    default="smollm2",
    show_default=True,
    help="smollm2, random:NAME, a Hugging Face folder or a .gguf file.",
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--deterministic", is_flag=True, help="Same tokens under any swap schedule; slower.")
@click.option(
    "--scale",
    type=click.FloatRange(0.1, 1000),
    default=1.0,
    show_default=True,
    help="Simulated seconds in a second; of the simulated machine.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Others need --token-file.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="0: any that is free; the first line of output has the URL.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Folder with tokenizer.json and a chat template. Without: the model's, or a token is a byte.",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="What clients must show as `Authorization: Bearer`.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(1, 1 << 20),
    default=1024,
    show_default=True,
    help="Requests without a token yet; more get 429.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024, 1 << 30),
    default=4 << 20,
    show_default=True,
    help="Bytes of a request; larger ones get 413.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds in which requests may end after SIGTERM.",
)
@click.option(
    "--keep-prompts", is_flag=True, help="Also record what was said: prompts, real replies."
)
@order_option
@check_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new, empty folder.")
@set_option
def serve_command(
    *,
    scenario: str,
    machine: str,
    device: str,
    model: str,
    dtype: str | None,
    deterministic: bool,
    scale: float,
    host: str,
    port: int,
    tokenizer: Path | None,
    token_file: Path | None,
    max_waiting: int,
    max_body: int,
    grace: float,
    keep_prompts: bool,
    order: str | None,
    check: str,
    out: Path,
    values: tuple[str, ...],
) -> None:
    """Serve a machine to clients of OpenAI's interface until SIGTERM or Ctrl-C.

    It listens on loopback and nowhere else unless told to. Of the scenario's workload only the lengths
    of replies are used. The session is recorded: it replays, and `trace convert` makes a workload of it.

    \b
    Examples:
      fastswitch serve paper-8b-a10 --port 8000 --out session
      fastswitch serve paper-8b-a10 --scale 10 --tokenizer tok --set order=priority --out session
      fastswitch serve cpu-smoke --machine real --set order=priority --out session
    """
    door = needing_server("door.serve")
    loaded, own = load(scenario, values, order)
    say_aliases([str(loaded.system)], loaded.order_name if own is None else own.name)
    front = importlib.import_module("door.front")
    words = None
    if tokenizer is not None or machine == "sim":
        words = importlib.import_module("door.words").words_of(tokenizer)
    limits = front.Limits(waiting=max_waiting, body=max_body, grace_s=grace)
    token = None if token_file is None else door.token_in(token_file)
    options = door.Options(host, port, token, keep_prompts, limits)
    if machine == "sim":
        made = importlib.import_module("door.simulated").Simulated
        served = made(loaded, words, scale, own, check)
    else:
        if scale != 1.0:
            raise ConfigError("--scale: the real machine has its own speed")
        made = needing_torch("door.real")
        asked = made.Options(device, model, dtype, deterministic)
        served = made.Real(loaded, asked, words, own, check, keep_replies=keep_prompts)

    def say(url: str) -> None:
        click.echo(json.dumps({"url": url, "model": served.known.model}))

    recording = door.serve(served, options, out, say=say)
    show_run(recording.summary, as_json=False)


def needing_server(module: str) -> Any:
    """A module by its name. Raises ConfigError if the libraries it needs are not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve needs the package {error.name}: {_HOW}") from None
