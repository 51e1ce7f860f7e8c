"""What a fleet leaves behind: a folder of ordinary recordings, and what its gateway did.

fleet.json                  summary and provenance
scenario.yaml               resolved
routing.parquet             a row a decision
replicas.parquet            replicas that came and went
routing.jsonl               what a replay of the router needs, with decisions
r000/ r001/ ...             the recording of each replica, which replays by itself
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from policy.errors import ConfigError, InputError
from runs import recording
from runs.fleet_lines import REPLICAS, ROUTING
from runs.recording import Recording
from traces.strict import quoted, reason, shown_path

SUMMARY = "fleet.json"
LINES = "routing.jsonl"
FORMAT = "fastswitch-fleet/1"
_SCHEMAS = {"routing": ROUTING, "replicas": REPLICAS}


def member_folder(number: int) -> str:
    """`r007`."""
    return f"r{number:03}"


@dataclass
class FleetRecording:
    """A finished run of a fleet, in memory or in a folder."""

    summary: dict[str, Any]
    members: list[Recording]
    tables: dict[str, pa.Table] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    folder: Path | None = None

    def table(self, name: str) -> pa.Table:
        """`routing` or `replicas`. Raises InputError if the folder lacks it."""
        if name in self.tables:
            return self.tables[name]
        assert self.folder is not None
        path = self.folder / f"{name}.parquet"
        try:
            found = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
        if not found.schema.equals(_SCHEMAS[name]):
            raise InputError(f"{shown_path(path)}: has other columns than this program's")
        return found

    def routing_lines(self) -> Iterator[str]:
        """Lines of routing.jsonl. Raises InputError if the run was made without."""
        if self.folder is None:
            yield from self.lines
            return
        path = self.folder / LINES
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    yield line.rstrip("\n")
        except FileNotFoundError:
            raise InputError(f"{shown_path(path)}: the run was made without --decisions") from None
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None

    def moved(self, folder: Path) -> None:
        """It is there now."""
        self.folder = folder
        for number, member in enumerate(self.members):
            member.folder = folder / member_folder(number)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """fleet.json, with which the folder is complete. Raises ConfigError if it cannot be written."""
    path = folder / SUMMARY
    try:
        path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{shown_path(path)}: cannot be written: {reason(error)}") from None


def is_fleet(folder: Path) -> bool:
    """Whether a folder is a fleet's."""
    return (folder / SUMMARY).is_file()


def load(folder: Path) -> FleetRecording:
    """A fleet from its folder. Raises InputError naming what is missing."""
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    made = summary.get("format") if isinstance(summary, dict) else None
    if made != FORMAT:
        raise InputError(f"{shown_path(path)}: its format is {quoted(made)}, not {FORMAT}")
    count = len(summary.get("replicas") or ())
    members = [recording.load(folder / member_folder(number)) for number in range(count)]
    return FleetRecording(summary, members, folder=folder)
