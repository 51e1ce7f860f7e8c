"""`fastswitch export`: a recording in the words of other tools."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import TO_WRITE

FORMATS = ("perfetto", "vllm", "aiperf", "llm-d")


@click.command("export")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--format", "name", type=click.Choice(FORMATS), required=True)
@click.option("--out", type=TO_WRITE, required=True, help="A file; .gz packs it.")
def export_command(*, run: Path, name: str, out: Path) -> None:
    """Write a recording, simulated or real, in the format of another tool.

    perfetto: a timeline for ui.perfetto.dev and chrome://tracing. vllm: the result file of `vllm bench
    serve`. aiperf: records as in profile_export.jsonl. llm-d: a Benchmark Report v0.2, YAML if the
    file's name says so. What a recording does not know is null or absent.

    \b
    Examples:
      fastswitch export run --format perfetto --out run.json.gz
      fastswitch export run --format llm-d --out report.yaml
    """
    from explore.exports.export import export
    from runs import recording

    export(recording.load(run), name, out)
    click.echo(f"written: {out}", err=True)
