"""Mooncake JSONL: timestamp (ms), input_length, output_length, hash_ids of 512-token blocks.

Source: kvcache-ai/Mooncake, FAST25-release/traces (Apache-2.0). The same keys are used by AIPerf,
guidellm, Dynamo and SGLang; `session_id` and `delay` are theirs. Rows without a session are
conversations of one turn, named by their row, `r0000000`; a session that the file itself calls so
gets an `s` before its name. Prefix ids are global.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.readers.base import check_blocks
from traces.strict import (
    Place,
    block_ids_of,
    json_count_of,
    json_nanoseconds_of,
    open_lines,
    parse_json,
    text_of,
)
from traces.workload import Header, Turn

BLOCK = 512
_KEYS = {"timestamp", "input_length", "output_length", "hash_ids", "session_id", "delay"}
#: Names of rows, and what stands for such names of sessions: one `s` more keeps all apart.
_ROW_NAME = re.compile(r"s*r[0-9]{7,}")


class MooncakeReader:
    """Timestamps of the published conversation trace sit on a 3 s grid; nothing smooths them."""

    name = "mooncake"

    def claims(self, first_line: str) -> bool:
        """A JSON object with the two lengths."""
        return '"input_length"' in first_line and '"output_length"' in first_line

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        header = Header(
            source="Mooncake trace (FAST'25)",
            licence="Apache-2.0",
            timing="open",
            time_resolution_s=1e-3,
            block_size=BLOCK,
            hash_scope="global",
        )
        return header, self._turns(path)

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        before = 0
        turns: dict[str, int] = {}
        for number, line in enumerate(open_lines(path, place)):
            row = parse_json(line, place)
            if not isinstance(row, dict):
                place.fail("not a JSON object")
            for key in row:
                if key not in _KEYS:
                    place.fail("unknown key", key)
            turn = self._turn(row, number, turns, place)
            arrival = turn.arrival_ns or 0
            if arrival < before:
                place.fail("time runs backwards", "timestamp")
            before = arrival
            yield turn
        if not place.line:
            place.fail("empty file")

    @staticmethod
    def _turn(row: dict[str, Any], number: int, turns: dict[str, int], place: Place) -> Turn:
        for key in ("timestamp", "input_length", "output_length"):
            if key not in row:
                place.fail("missing", key)
        tokens = json_count_of(row["input_length"], "input_length", place)
        ids = row.get("hash_ids")
        if ids is not None:
            ids = block_ids_of(ids, "hash_ids", place)
            check_blocks(ids, tokens, BLOCK, "hash_ids", place, may_lack_last=False)
        request_id = f"r{number:07d}"
        session, turn = request_id, 1
        if row.get("session_id") is not None:
            session = _session_name(row["session_id"], place)
            turn = turns[session] = turns.get(session, 0) + 1
        return Turn(
            request_id,
            session,
            turn,
            tokens,
            json_count_of(row["output_length"], "output_length", place),
            arrival_ns=json_nanoseconds_of(row["timestamp"], "timestamp", place, 1_000_000),
            hash_ids=ids,
        )


def _session_name(value: Any, place: Place) -> str:
    """A session's name; other tools write whole numbers too."""
    name = str(value) if type(value) is int else value
    if isinstance(name, str) and _ROW_NAME.fullmatch(name):
        name = f"s{name}"
    return text_of(name, "session_id", place)
