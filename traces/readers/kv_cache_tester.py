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

from traces.readers.base import (
    common,
    expand_ranges,
    has_columns,
    id_within,
    optional_ns,
    optional_text,
    table_rows,
    unique,
)
from traces.rules import check_blocks
from traces.strict import (
    MAX_DOCUMENT,
    Place,
    block_ids_of,
    count_of,
    json_count_of,
    json_nanoseconds_of,
    nanoseconds_of,
    parse_json,
    quoted,
    read_document,
    text_of,
)
from traces.workload import Header, Turn

#: Tokens of a block, in every published trace; the header of the workload says so.
BLOCK = 64

_HEADER = {
    "source": "kv-cache-tester",
    "licence": "Apache-2.0",
    "timing": "closed",
    "time_resolution_s": 1e-3,
    "block_size": BLOCK,
    "hash_scope": "session",
    "may_lack_last_block": True,
    "lost": (
        "when sessions began",
        "input_types and output_types: what a request held and a reply was made of",
    ),
}


class _Cells(NamedTuple):
    """A row of the table; `in` is a word of the language."""

    id: str
    turn: str
    t: str
    type: str
    model: str
    in_: str
    out: str
    api_time: str
    think_time: str
    stop: str
    block_size: str
    tool_tokens: str
    system_tokens: str
    n_blocks: str
    shared_prefix_blocks: str
    hash_id_ranges: str


COLUMNS = tuple(name.rstrip("_") for name in _Cells._fields)


class _Launch(NamedTuple):
    """The request that started a sub-agent, and how long after its reply."""

    request_id: str
    think_ns: int


class KvCacheTesterTableReader:
    """The table: one row per request of the main conversations, hash ids run-length coded."""

    name = "kv-cache-tester-table"

    def claims(self, first_line: str) -> bool:
        """The header line is the format."""
        return has_columns(first_line, COLUMNS)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader."""
        return Header(**_HEADER), self._turns(path)  # type: ignore[arg-type]

    def _turns(self, path: Path) -> Iterator[Turn]:
        place = Place(path)
        session: str | None = None
        due = tokens_before = begin_before = 0
        seen: set[str] = set()
        for row in table_rows(path, COLUMNS, place):
            cell = _Cells(*row)
            name = cell.id
            if name != session:
                text_of(name, "id", place)
                if name in seen:
                    place.fail(f"{name!r} came before, its rows must be together", "id")
                seen.add(name)
                session = name
                due = tokens_before = begin_before = 0
            due += 1
            if count_of(cell.turn, "turn", place) != due:
                place.fail(f"{cell.turn} where {due} was due", "turn")
            begin_ns = nanoseconds_of(cell.t, "t", place)
            if begin_ns < begin_before:
                place.fail("time runs backwards", "t")
            turn = _turn_of(cell, due, tokens_before, place)
            yield turn
            tokens_before, begin_before = turn.input_tokens, begin_ns


def _turn_of(cell: _Cells, turn: int, tokens_before: int, place: Place) -> Turn:
    """The turn of a row whose identity is checked; an empty cell is a value that is not known."""
    tokens = count_of(cell.in_, "in", place)
    count_of(cell.block_size, "block_size", place, limit=BLOCK, low=BLOCK)
    shared = count_of(cell.shared_prefix_blocks, "shared_prefix_blocks", place)
    service_ns = nanoseconds_of(cell.api_time, "api_time", place) if cell.api_time else None
    think_ns = nanoseconds_of(cell.think_time, "think_time", place) if cell.think_time else None
    ids = expand_ranges(cell.hash_id_ranges, place, "hash_id_ranges")
    check_blocks(ids, tokens, BLOCK, "hash_id_ranges", place, may_lack_last=True)
    if count_of(cell.n_blocks, "n_blocks", place) != len(ids):
        place.fail(f"{cell.n_blocks}, and {len(ids)} in hash_id_ranges", "n_blocks")
    tools = count_of(cell.tool_tokens, "tool_tokens", place)
    system = count_of(cell.system_tokens, "system_tokens", place)
    return Turn(
        id_within(cell.id, turn, "id", place),
        cell.id,
        turn,
        tokens,
        count_of(cell.out, "out", place),
        think_ns=think_ns if turn > 1 else None,
        parent_prefix_tokens=min(shared * BLOCK, tokens_before) if turn > 1 else None,
        service_ns=service_ns,
        model=text_of(cell.model, "model", place) if cell.model else None,
        kind="agent",
        stop=text_of(cell.stop, "stop", place) if cell.stop else None,
        hash_ids=ids,
        components=_components(cell.id, tools, system, tokens),
    )


def _components(
    name: str, tools: int, system: int, tokens: int
) -> tuple[tuple[str, str, int], ...] | None:
    """The parts of a prompt that the source counts: tool definitions, then the system prompt. They
    are the same within a session; whether another has them too is not recorded. None for a prompt
    too short to hold them."""
    if tools + system > tokens or not tools + system:
        return None
    parts = (("tools", name, tools), ("system", name, system))
    return tuple(part for part in parts if part[2])


class KvCacheTesterReader:
    """The original JSON: one session a file, sub-agents nested inside."""

    name = "kv-cache-tester"

    def claims(self, first_line: str) -> bool:
        """A session object, compact or spread over lines."""
        text = first_line.replace(" ", "")
        return text.startswith('{"id":') and ('"requests":' in text or '"models":' in text)

    def read(self, path: Path) -> tuple[Header, Iterator[Turn]]:
        """See Reader. The document is read at once: it is one session."""
        place = Place(path)
        return Header(**_HEADER), unique(self._turns(place), place)  # type: ignore[arg-type]

    def _turns(self, place: Place) -> Iterator[Turn]:
        document = parse_json(read_document(place.path, place, MAX_DOCUMENT), place)
        if not isinstance(document, dict) or not isinstance(document.get("requests"), list):
            place.fail("not a session object with a list of requests")
        name = text_of(document.get("id"), "id", place)
        json_count_of(document.get("block_size"), "block_size", place, limit=BLOCK, low=BLOCK)
        yield from self._session(name, document, place)

    def _session(
        self,
        name: str,
        session: dict[str, Any],
        place: Place,
        launch: _Launch | None = None,
        within: str = "",
    ) -> Iterator[Turn]:
        requests = session["requests"]
        tools, system = (
            json_count_of(session.get(key) or 0, f"{within}{key}", place)
            for key in ("tool_tokens", "system_tokens")
        )
        before: tuple[int, ...] = ()
        tokens_before = 0
        begin_before = 0
        ended_ns = 0  # when the last request's reply ended, by the source's own clock
        turn = 0
        nested: list[tuple[str, dict[str, Any], _Launch | None, str]] = []
        for number, row in enumerate(requests):
            where = f"{within}requests[{number}]"
            if not isinstance(row, dict):
                place.fail(f"{quoted(row)} is not an object", where)
            begin_ns = json_nanoseconds_of(row.get("t"), f"{where}.t", place)
            if row.get("type") == "subagent":
                agent = text_of(row.get("agent_id"), f"{where}.agent_id", place)
                inner_name = id_within(name, agent, f"{where}.agent_id", place)
                if not isinstance(row.get("requests"), list):
                    problem = f"{quoted(row.get('requests'))} is not a list"
                    place.fail(problem, f"{where}.requests")
                by = _Launch(f"{name}/{turn}", max(0, begin_ns - ended_ns)) if turn else None
                nested.append((inner_name, row, by, f"{where}."))
                continue
            turn += 1
            tokens = json_count_of(row.get("in"), f"{where}.in", place)
            ids = block_ids_of(row.get("hash_ids"), f"{where}.hash_ids", place)
            check_blocks(ids, tokens, BLOCK, f"{where}.hash_ids", place, may_lack_last=True)
            service = optional_ns(row.get("api_time"), f"{where}.api_time", place)
            think = optional_ns(row.get("think_time"), f"{where}.think_time", place)
            shared = min(common(before, ids) * BLOCK, tokens_before)
            first = turn == 1
            made = Turn(
                id_within(name, turn, where, place),
                name,
                turn,
                tokens,
                json_count_of(row.get("out"), f"{where}.out", place),
                think_ns=(launch.think_ns if launch else None) if first else think,
                parent_id=launch.request_id if first and launch else None,
                parent_prefix_tokens=(0 if launch else None) if first else shared,
                service_ns=service,
                model=optional_text(row.get("model"), f"{where}.model", place),
                kind="agent" if launch is None else "subagent",
                stop=optional_text(row.get("stop"), f"{where}.stop", place),
                hash_ids=ids,
                components=_components(name, tools, system, tokens),
            )
            if begin_ns < begin_before:  # sub-agents have another clock, finer than the requests'
                place.fail("time runs backwards", f"{where}.t")
            yield made
            before, tokens_before, begin_before = ids, tokens, begin_ns
            ended_ns = begin_ns + (service or 0)
        for inner_name, inner, by, inside in nested:
            yield from self._session(inner_name, inner, place, by, inside)
