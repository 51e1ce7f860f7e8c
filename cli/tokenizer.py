"""`fastswitch tokenizer`: a folder for clients that have no network."""

from __future__ import annotations

from pathlib import Path

import click

from cli.serve import needing_server


@click.command("tokenizer")
@click.argument("model", type=click.Choice(["smollm2"]))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder.")
def tokenizer_command(*, model: str, out: Path) -> None:
    """Write the tokenizer and chat template of SmolLM2 as clients and `serve --tokenizer` read them.

    \b
    Example:
      fastswitch tokenizer smollm2 --out tok
    """
    assert model == "smollm2"
    needing_server("tokenizers")
    path = needing_server("realrun.smollm2").smollm2_path()
    for written in needing_server("door.tokenizer").write_folder(path, out):
        click.echo(str(written))
