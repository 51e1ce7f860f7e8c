"""`fastswitch trace describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.options import TO_WRITE, json_option
from cli.progress import progress
from cli.show import show
from cli.trace.options import aids_of, reading_options
from policy.errors import ConfigError


@click.command("describe")
@click.argument("files", nargs=-1, required=True, metavar="FILE [FILE2]")
@reading_options
@click.option("--cache", "sizes", metavar="BLOCKS", help="Sizes of LRU caches, e.g. 1000,50000.")
@click.option("--figure", "picture", type=TO_WRITE, help="NAME.png or NAME.svg")
@json_option
def describe_command(
    *,
    files: tuple[str, ...],
    name: str | None,
    sizes: str | None,
    picture: Path | None,
    as_json: bool,
    **said: Any,
) -> None:
    """Say what is in a workload file, or in two side by side: lengths, turns, gaps, arrivals,
    clients, and what a prefix cache could reuse.

    \b
    Examples:
      fastswitch trace describe chat.jsonl
      fastswitch trace describe AzureLLMInferenceTrace_conv.csv --json
      fastswitch trace describe conversation_trace.jsonl --cache 1000,10000,50000
      fastswitch trace describe chat.jsonl azure.csv --figure both.png
    """
    from traces.describing.describe import described, distances
    from traces.describing.text import as_text, distances_as_text
    from traces.figure_style import check_name
    from traces.readers.catalog import read_workload

    if len(files) > 2:
        raise ConfigError(f"trace describe: {len(files)} files; takes one or two")
    if picture is not None:
        check_name(picture)
    with progress(None, "requests") as advance:
        found = [
            described(
                read_workload(Path(file), name, aids_of(**said)), _cache_sizes(sizes), advance
            )
            for file in files
        ]
    both = distances(found[0][0], found[1][0]) if len(found) == 2 else None
    told = [one for _, one in found]
    show(
        lambda: told[0] if both is None else {"workloads": told, "distances": both},
        lambda: "\n".join([as_text(*told), *([] if both is None else [distances_as_text(both)])]),
        as_json=as_json,
    )
    if picture is not None:
        from traces.describing.figure import figure
        from traces.figure_style import save

        names = [Path(file).name.partition(".")[0] for file in files]
        save(figure([columns for columns, _ in found], names), picture)


def _cache_sizes(text: str | None) -> list[int]:
    """`1000,50000`. Raises ConfigError."""
    parts = text.split(",") if text else []
    if not all(part.isascii() and part.isdigit() and 0 < int(part) < 1 << 40 for part in parts):
        raise ConfigError(f"--cache: {str(text)[:60]!r} must be numbers of blocks, like 1000,50000")
    return [int(part) for part in parts]
