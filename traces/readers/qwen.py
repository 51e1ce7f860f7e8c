"""Qwen-Bailian: chat_id, parent_chat_id, timestamp (s), lengths, type, turn, hash_ids of 16 tokens.

Source: alibaba-edu/qwen-bailian-usagetraces-anon (Apache-2.0). A conversation is a chain of
`parent_chat_id`, -1 at its root; each row's prompt is all that the service received, history
included. What it repeats of its parent's prompt is read from the block ids, which are global. The
publisher strips think tags between turns and says that the last block of a prompt may hash
differently, so reuse stops up to one block early. Where a parent is not in the file, which was cut
from a longer record, the conversation begins at the first row that is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traces.readers.base import Prompts, id_of, json_rows, json_stamp_of, within_reach
from traces.rules import check_blocks
from traces.strict import Place, block_ids_of, json_count_of, text_of
from traces.workload import Header, Turn

BLOCK = 16
_REQUIRED = ("chat_id", "timestamp", "input_length", "output_length")
_OPTIONAL = ("parent_chat_id", "type", "turn", "hash_ids")


class QwenReader:
    """Rows are ordered by time; a turn is numbered by its place in the conversation."""

    name = "qwen-bailian"

    def claims(self, head: str) -> bool:
        """A JSON object with a chat and a length."""
        return '"chat_id"' in head and '"input_length"' in head

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        header = Header(
            source="Qwen-Bailian usage trace",
            licence="Apache-2.0",
            timing="open",
            time_resolution_s=1e-3,
            block_size=BLOCK,
            hash_scope="global",
            lost=("turns from before the record began, and how many they were",),
        )
        place = Place(path)
        return header, within_reach(self._turns(place), place)

    def _turns(self, place: Place) -> Iterator[Turn]:
        roots: dict[str, str] = {}  # chat -> the session it belongs to
        reached: dict[str, int] = {}  # session of several turns -> its turns
        prompts = Prompts(BLOCK)
        before = 0
        for row in json_rows(place.path, place):
            turn, parent = _turn_of(row, place)
            name = turn["request_id"]
            if name in roots:
                place.fail(f"{name!r} came before", "chat_id")
            if turn["arrival_ns"] < before:
                place.fail("time runs backwards", "timestamp")
            before = turn["arrival_ns"]
            is_child = parent in roots
            session = roots[name] = roots[parent] if parent is not None and is_child else name
            number, shared = 1, None
            if parent is not None and is_child:
                number = reached[session] = reached.get(session, 1) + 1
                if turn["hash_ids"] is not None:
                    shared = prompts.shared(parent, turn["input_tokens"], turn["hash_ids"])
            if turn["hash_ids"] is not None:
                prompts.keep(name, turn["input_tokens"], turn["hash_ids"])
            yield Turn(
                session_id=session,
                turn=number,
                parent_id=parent if is_child else None,
                parent_prefix_tokens=shared,
                **turn,
            )


def _turn_of(row: dict[str, Any], place: Place) -> tuple[dict[str, Any], str | None]:
    """What a row says by itself, and the chat it follows."""
    for key in row:
        if key not in _REQUIRED and key not in _OPTIONAL:
            place.fail("unknown key", key)
    for key in _REQUIRED:
        if row.get(key) is None:
            place.fail("missing", key)
    tokens = json_count_of(row["input_length"], "input_length", place)
    ids = row.get("hash_ids")
    if ids is not None:
        ids = block_ids_of(ids, "hash_ids", place)
        check_blocks(ids, tokens, BLOCK, "hash_ids", place, may_lack_last=False)
    parent = row.get("parent_chat_id")
    if row.get("turn") is not None:
        json_count_of(row["turn"], "turn", place, low=1)
    kind = row.get("type")
    turn = {
        "request_id": id_of(row["chat_id"], "chat_id", place),
        "input_tokens": tokens,
        "output_tokens": json_count_of(row["output_length"], "output_length", place),
        "arrival_ns": json_stamp_of(row["timestamp"], "timestamp", place),
        "kind": None if kind is None else text_of(kind, "type", place),
        "hash_ids": ids,
    }
    is_root = parent is None or (type(parent) is int and parent == -1)
    return turn, None if is_root else id_of(parent, "parent_chat_id", place)
