"""`fastswitch trace convert` and `fastswitch trace schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cli.options import TO_WRITE
from cli.trace.options import aids_of, reading_options


@click.command("convert")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(path_type=Path),
)
@click.option(
    "-o",
    "--out",
    type=TO_WRITE,
    required=True,
    help="NAME.jsonl, .jsonl.gz, .jsonl.zst or .parquet",
)
@reading_options
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="A tokenizer.json, for traces that are text.",
)
def convert_command(
    *,
    files: tuple[Path, ...],
    out: Path,
    name: str | None,
    tokenizer: Path | None,
    **said: Any,
) -> None:
    """Turn a trace of any known format into a workload file.

    Rows are streamed; none is dropped. What the source lacks stays missing and is named in the
    header and here. Several files become one where each holds sessions without a clock.

    \b
    Examples:
      fastswitch trace convert AzureLLMInferenceTrace_conv.csv -o conv.jsonl.zst
      fastswitch trace convert 0_trace.jsonl --companion 1_sys_prompt.jsonl -o rag.parquet
      fastswitch trace convert talk.json --tokenizer tokenizer.json -o talk.jsonl.gz
    """
    from cli.progress import progress
    from traces import tokenizer as tokenizers
    from traces.shaping.convert import convert

    encode = None if tokenizer is None else tokenizers.from_file(tokenizer)
    with progress(None, "rows") as advance:
        found = convert(
            files,
            out,
            name=name,
            aids=aids_of(**said)._replace(tokenizer=encode),
            tokenizer_name="" if tokenizer is None else tokenizer.name,
            progress=advance,
        )
    click.echo(found.as_text(out))


@click.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of a workload file's lines, for other tools.

    \b
    Example:
      fastswitch trace schema > workload.schema.json
    """
    from traces.schema import schema

    click.echo(json.dumps(schema(), indent=1))
