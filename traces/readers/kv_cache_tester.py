"""kv-cache-tester: real coding-agent sessions, as JSON (one session a file) or as a table.

Source: callanjfox/kv-cache-tester, traces/trace_*.json (Apache-2.0). Rows carry the time since the
session's start, the think time before the request, and hashes of the prompt's 64-token blocks,
unique within a session. What a prompt shares with its predecessor is read from the hashes; whether
it also repeats the reply cannot be seen in them and is not assumed. Sub-agents are sessions of
their own, launched by the main request before them, with no context of it. When sessions begin is
not recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from traces.readers.base import column_indexes
from traces.strict import (
    MAX_DOCUMENT,
    Place,
    count_of,
    csv_rows,
    nanoseconds_of,
    open_lines,
    parse_json,
    text_of,
)
from traces.workload import Header, Turn

#: Most blocks of one prompt.
MAX_BLOCKS = 1 << 20

COLUMNS = (
    "id",
    "turn",
    "t",
    "type",
    "model",
    "in",
    "out",
    "api_time",
    "think_time",
    "stop",
    "block_size",
    "tool_tokens",
    "system_tokens",
    "n_blocks",
    "shared_prefix_blocks",
    "hash_id_ranges",
)
_HEADER = {
    "source": "kv-cache-tester",
    "licence": "Apache-2.0",
    "timing": "closed",
    "time_resolution_s": 1e-3,
    "block_size": 64,
    "hash_scope": "session",
}


class _Launch(NamedTuple):
    """The request that started a sub-agent, and how long after its reply."""

    request_id: str
    think_ns: int


class KvCacheTesterTableReader:
    """The table: one row per request of the main conversations, hash ids run-length coded."""

    name = "kv-cache-tester-table"

    def claims(self, first_line: str) -> bool:
        """The header line is the format."""
        return first_line.split(",") == list(COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        return Header(**_HEADER), self._turns(path)  # type: ignore[arg-type]

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        rows = csv_rows(open_lines(path, place), place)
        names = next(rows, None)
        if names is None:
            place.fail("empty file")
        column_indexes(names, COLUMNS, place)
        session, turn, before = "", 0, 0
        seen: set[str] = set()
        for row in rows:
            if len(row) != len(names):
                place.fail(f"{len(row)} fields, the header has {len(names)}")
            cell = dict(zip(names, row, strict=True))
            name = text_of(cell["id"], "id", place)
            if name != session:
                if name in seen:
                    place.fail(f"{name!r} came before, its rows must be together", "id")
                seen.add(name)
                session, turn, before = name, 0, 0
            turn += 1
            if count_of(cell["turn"], "turn", place) != turn:
                place.fail(f"{cell['turn']} where {turn} was due", "turn")
            tokens = count_of(cell["in"], "in", place)
            size = count_of(cell["block_size"], "block_size", place, limit=1 << 16, low=1)
            shared = count_of(cell["shared_prefix_blocks"], "shared_prefix_blocks", place)
            yield Turn(
                f"{name}/{turn}",
                name,
                turn,
                tokens,
                count_of(cell["out"], "out", place),
                think_ns=nanoseconds_of(cell["think_time"], "think_time", place)
                if turn > 1
                else None,
                parent_prefix_tokens=min(shared * size, before) if turn > 1 else None,
                service_ns=nanoseconds_of(cell["api_time"], "api_time", place)
                if cell["api_time"]
                else None,
                model=cell["model"] or None,
                kind="agent",
                stop=cell["stop"] or None,
                hash_ids=expand_ranges(cell["hash_id_ranges"], place),
            )
            before = tokens


class KvCacheTesterReader:
    """The original JSON: one session a file, sub-agents nested inside."""

    name = "kv-cache-tester"

    def claims(self, first_line: str) -> bool:
        """A session object, compact or spread over lines."""
        text = first_line.replace(" ", "")
        return text.startswith('{"id":') and ('"requests":' in text or '"models":' in text)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader. The document is read at once: it is one session."""
        return Header(**_HEADER), self._turns(path)  # type: ignore[arg-type]

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        text = "\n".join(open_lines(path, place, MAX_DOCUMENT))
        place.line = 0
        document = parse_json(text, place)
        if not isinstance(document, dict) or not isinstance(document.get("requests"), list):
            place.fail("not a session object with a list of requests")
        name = text_of(document.get("id"), "id", place)
        size = count_of(document.get("block_size"), "block_size", place, limit=1 << 16, low=1)
        yield from self._session(name, document["requests"], size, place)

    def _session(
        self,
        name: str,
        requests: list[Any],
        size: int,
        place: Place,
        launch: _Launch | None = None,
    ) -> Iterator[Turn]:
        before: tuple[int, ...] = ()
        tokens_before = 0
        ended_ns = 0  # when the last request's reply ended, by the source's own clock
        turn = 0
        nested: list[tuple[str, list[Any], _Launch | None]] = []
        for number, row in enumerate(requests):
            where = f"requests[{number}]"
            if not isinstance(row, dict):
                place.fail("not an object", where)
            begin_ns = nanoseconds_of(row.get("t"), f"{where}.t", place)
            if row.get("type") == "subagent":
                agent = text_of(row.get("agent_id"), f"{where}.agent_id", place)
                inner = row.get("requests")
                if not isinstance(inner, list):
                    place.fail("not a list", f"{where}.requests")
                by = _Launch(f"{name}/{turn}", max(0, begin_ns - ended_ns)) if turn else None
                nested.append((f"{name}/{agent}", inner, by))
                continue
            turn += 1
            tokens = count_of(row.get("in"), f"{where}.in", place)
            ids = self._hash_ids(row.get("hash_ids"), tokens, size, where, place)
            service = _optional_ns(row.get("api_time"), f"{where}.api_time", place)
            think = _optional_ns(row.get("think_time"), f"{where}.think_time", place)
            shared = min(_common(before, ids) * size, tokens_before)
            first = turn == 1
            yield Turn(
                f"{name}/{turn}",
                name,
                turn,
                tokens,
                count_of(row.get("out"), f"{where}.out", place),
                think_ns=(launch.think_ns if launch else None) if first else think,
                parent_id=launch.request_id if first and launch else None,
                parent_prefix_tokens=(0 if launch else None) if first else shared,
                service_ns=service,
                model=row.get("model"),
                kind="agent" if launch is None else "subagent",
                stop=row.get("stop"),
                hash_ids=ids,
            )
            before, tokens_before, ended_ns = ids, tokens, begin_ns + (service or 0)
        for inner_name, inner, by in nested:
            yield from self._session(inner_name, inner, size, place, by)

    @staticmethod
    def _hash_ids(value: Any, tokens: int, size: int, where: str, place: Place) -> tuple[int, ...]:
        if not isinstance(value, list):
            place.fail("not a list", f"{where}.hash_ids")
        ids = tuple(count_of(i, f"{where}.hash_ids", place, limit=1 << 62) for i in value)
        if len(ids) not in (tokens // size, -(-tokens // size)):
            place.fail(f"{len(ids)} ids for {tokens} tokens of {size} a block", f"{where}.hash_ids")
        return ids


def _optional_ns(value: Any, field: str, place: Place) -> int | None:
    return None if value is None else nanoseconds_of(value, field, place)


def expand_ranges(text: str, place: Place) -> tuple[int, ...]:
    """`1-3;9` is 1, 2, 3, 9."""
    ids: list[int] = []
    for part in text.split(";") if text else ():
        first, _, last = part.partition("-")
        low = count_of(first, "hash_id_ranges", place, limit=1 << 62)
        high = count_of(last, "hash_id_ranges", place, limit=1 << 62) if last else low
        if high < low or high - low > MAX_BLOCKS:
            place.fail(f"{part!r:.40} is not a range", "hash_id_ranges")
        ids.extend(range(low, high + 1))
        if len(ids) > MAX_BLOCKS:
            place.fail(f"more than {MAX_BLOCKS} blocks", "hash_id_ranges")
    return tuple(ids)


def _common(before: tuple[int, ...], ids: tuple[int, ...]) -> int:
    """How many leading entries are equal."""
    shared = 0
    for left, right in zip(before, ids, strict=False):
        if left != right:
            break
        shared += 1
    return shared
