"""What a gateway decided: rows of routing.parquet, and the lines of routing.jsonl from which its router
can be asked again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa

from policy.routing.view import Choice, ReplicaState, ReplicaView, RoutedView, Seen
from runs.recording import Table

_INT, _STR, _FLOAT = pa.int64(), pa.string(), pa.float64()

ROUTING = pa.schema(
    [
        ("request_id", _STR),
        ("attempt", _INT),
        ("arrival_ns", _INT),
        ("routed_ns", _INT),
        ("replica", _INT),
        ("second", _INT),
        ("score", _FLOAT),
        ("second_score", _FLOAT),
        ("why", _STR),
        ("oldest_signal_ns", _INT),
        ("lost_tokens", _INT),
    ]
)
REPLICAS = pa.schema([("replica", _INT), ("time_ns", _INT), ("state", _STR)])


class Row(NamedTuple):
    """A row of routing.parquet."""

    request_id: str
    attempt: int
    arrival_ns: int
    routed_ns: int
    replica: int | None
    second: int | None
    score: float | None
    second_score: float | None
    why: str
    oldest_signal_ns: int | None
    lost_tokens: int


class Lines:
    """Rows and, with `decisions`, lines as they come, in a folder or in memory."""

    def __init__(self, folder: Path | None, *, decisions: bool) -> None:
        self.routing = Table("routing", folder, schema=ROUTING)
        self.replicas = Table("replicas", folder, schema=REPLICAS)
        self.kept: list[str] = []
        self._decides = decisions
        self._last_state: str | None = None
        self._file: IO[str] | None = None
        if decisions and folder is not None:
            self._file = (folder / "routing.jsonl").open("w", encoding="utf-8")

    def routed(
        self, row: Row, request: RoutedView, views: Sequence[ReplicaView], choice: Choice
    ) -> None:
        """A decision. What replicas looked like is written where it changed."""
        self.routing.append(row)
        self.routing.flush_if_full()
        if not self._decides:
            return
        state = json.dumps([_view(view) for view in views], separators=(",", ":"))
        if state != self._last_state:
            self._last_state = state
            self._write(f'{{"replicas":{state}}}')
        self._write(routed_line(row.routed_ns, request, choice))

    def happened(self, what: str, whom: str | int, now_ns: int) -> None:
        """Something else that the router was told."""
        if self._decides:
            self._write(
                json.dumps({"now_ns": now_ns, "told": what, "of": whom}, separators=(",", ":"))
            )

    def _write(self, line: str) -> None:
        if self._file is None:
            self.kept.append(line)
        else:
            self._file.write(line + "\n")

    def close(self) -> dict[str, pa.Table]:
        """Tables that are in memory."""
        self.stop()
        found = {"routing": self.routing.close(), "replicas": self.replicas.close()}
        return {name: table for name, table in found.items() if table is not None}

    def stop(self) -> None:
        """Close the file of a run that fails."""
        if self._file is not None:
            self._file.close()


def routed_line(now_ns: int, request: RoutedView, choice: Choice) -> str:
    """A decision, as a line of routing.jsonl."""
    told = {
        "now_ns": now_ns,
        "route": [*request[:5], list(request.blocks), request.attempt],
        "to": choice.replica,
        "why": choice.why,
        "scores": choice.scores,
    }
    return json.dumps(told, separators=(",", ":"))


def _view(view: ReplicaView) -> list[Any]:
    return [*view[:3], view.state.value, *map(list, view[4:])]


def view_of(cells: list[Any]) -> ReplicaView:
    """A view as a line has it."""
    number, name, group, state, *signals = cells
    return ReplicaView(number, name, group, ReplicaState(state), *[Seen(*one) for one in signals])
