"""A recording as a timeline for ui.perfetto.dev and chrome://tracing (Trace Event Format, JSON).

A track per request with its life (`explore.report.lives`); the device's steps, split into stall and compute; a
track per direction of the link with its copies, and further ones where copies of one direction
overlap; counters for free blocks, requests and queued copies. Slices of one track never overlap.
Times are microseconds with three decimals, written from integers. Source of the format:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU (Google, "Trace Event
Format"); https://perfetto.dev/docs/getting-started/other-formats.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from explore.report.lives import Life, Lives
from runs.metrics.stats import Ints
from runs.recording import Recording

_MACHINE, _REQUESTS = 1, 2  # processes of the trace: two groups of tracks
_STEPS, _FIRST_LANE, _FIRST_REQUEST = 1, 10, 1000
_WAYS = (("h2d", "link, host to device"), ("d2h", "link, device to host"))


def pieces(recording: Recording) -> Iterator[str]:
    """The file's text, in pieces."""
    head = {
        name: recording.summary.get(name) for name in ("scenario", "system", "order", "machine")
    }
    yield f'{{"displayTimeUnit":"ms","otherData":{_json(head)},"traceEvents":[\n'
    first = True
    for event in events(recording):
        yield _text(event) if first else ",\n" + _text(event)
        first = False
    yield "\n]}\n"


def events(recording: Recording) -> Iterator[dict[str, Any]]:
    """Trace events. `ts` and `dur` are nanoseconds here, and only here."""
    lives = Lives(recording)
    yield _name("process_name", _MACHINE, 0, "machine")
    yield _name("process_name", _REQUESTS, 0, "requests")
    yield _sorted("process_sort_index", _MACHINE, 0, 1)
    yield _sorted("process_sort_index", _REQUESTS, 0, 2)
    yield _name("thread_name", _MACHINE, _STEPS, "steps")
    yield _sorted("thread_sort_index", _MACHINE, _STEPS, _STEPS)
    yield from _steps(recording)
    yield from _links(lives.copies)
    queues = _Queues()
    for number, life in enumerate(lives):
        queues.add(life)
        yield from _request(life, _FIRST_REQUEST + number)
    yield from queues.counters()


# ---------------------------------------------------------------------- the machine


def _steps(recording: Recording) -> Iterator[dict[str, Any]]:
    before: dict[str, int] = {}
    for row in recording.rows("steps"):
        start, prefill, batch = row["start_ns"], row["prefill_tokens"], row["batch"]
        compute = start + row["stall_ns"]
        if compute > start:
            yield _slice(_MACHINE, _STEPS, "stall", start, compute, {"step": row["step"]})
        what = "prefill" if prefill and not batch else "decode" if batch and not prefill else "step"
        facts = {name: row[name] for name in ("step", "prefill_tokens", "batch", "kv_tokens")}
        yield _slice(_MACHINE, _STEPS, what, compute, row["end_ns"], facts)
        for name, column in _COUNTERS:
            if before.get(name) != row[column]:
                before[name] = row[column]
                yield _counter(name, start, {name: row[column]})


_COUNTERS = (
    ("free device blocks", "free_blocks"),
    ("free host blocks", "free_host_blocks"),
    ("batch", "batch"),
)


def _links(copies: dict[str, Any]) -> Iterator[dict[str, Any]]:
    ways = np.array(copies["direction"], dtype=object)
    lane = _FIRST_LANE
    for way, title in _WAYS:
        rows = np.flatnonzero(ways == way)
        rows = rows[np.lexsort((copies["end_ns"][rows], copies["start_ns"][rows]))]
        free: list[int] = []  # when each track of this direction is free again
        for i in rows.tolist():
            begin, end = int(copies["start_ns"][i]), int(copies["end_ns"][i])
            at = next((n for n, since in enumerate(free) if since <= begin), len(free))
            if at == len(free):
                free.append(0)
                name = title if at == 0 else f"{title} ({at + 1})"
                yield _name("thread_name", _MACHINE, lane + at, name)
                yield _sorted("thread_sort_index", _MACHINE, lane + at, lane + at)
            free[at] = end
            what = "copy" if copies["ok"][i] else "copy, dropped"
            yield _slice(_MACHINE, lane + at, what, begin, end, _copy_facts(copies, i))
        yield from _queued(f"copies queued or moving, {way}", rows, copies)
        lane += max(len(free), 1)


def _copy_facts(copies: dict[str, Any], i: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"request": copies["request_id"][i]}
    for name in ("copy_id", "blocks", "runs", "calls", "bytes", "seen_step"):
        facts[name] = int(copies[name][i])
    facts["waited_for"] = bool(copies["waited_for"][i])
    facts["queued_us"] = int(copies["start_ns"][i] - copies["submit_ns"][i]) / 1000
    return facts


def _queued(name: str, rows: Ints, copies: dict[str, Any]) -> Iterator[dict[str, Any]]:
    times = np.concatenate([copies["submit_ns"][rows], copies["end_ns"][rows]])
    deltas = np.repeat(np.array([1, -1], dtype=np.int64), rows.size)
    yield from _level(name, times, deltas)


# ---------------------------------------------------------------------- requests


def _request(life: Life, tid: int) -> Iterator[dict[str, Any]]:
    row = life.row
    yield _name("thread_name", _REQUESTS, tid, row["request_id"])
    yield _sorted("thread_sort_index", _REQUESTS, tid, tid)
    facts = {key: value for key, value in row.items() if value is not None}
    for one in life.slices:
        args = {**facts} if one is life.slices[0] else {}
        if one.tokens:
            args["tokens"] = one.tokens
        yield _slice(_REQUESTS, tid, one.name, one.begin, one.end, args)
    if row["status"] != "finished":
        at = life.slices[-1].end if life.slices else row["arrival_ns"]
        what = f"{row['status']}: {row['reason']}" if row["reason"] else row["status"]
        yield {
            "ph": "i",
            "pid": _REQUESTS,
            "tid": tid,
            "name": what,
            "ts": at,
            "s": "t",
            "args": facts,
        }


class _Queues:
    """How many requests wait for their first token, and how many are preempted."""

    def __init__(self) -> None:
        self._times = {"waiting": array("q"), "swapped": array("q")}

    def add(self, life: Life) -> None:
        """Count a request in."""
        since: dict[str, int] = {}
        has_begun = False
        for one in life.slices:
            if one.name in ("prefill", "decode"):
                self._end(since, one.begin)
                has_begun = True
            elif not has_begun:
                since.setdefault("waiting", one.begin)
            elif one.name in ("parked", "swap-out"):
                since.setdefault("swapped", one.begin)
        if life.slices:
            self._end(since, life.slices[-1].end)

    def _end(self, since: dict[str, int], at: int) -> None:
        for name, begin in since.items():
            self._times[name].extend((begin, at))
        since.clear()

    def counters(self) -> Iterator[dict[str, Any]]:
        """One counter each."""
        for name, times in self._times.items():
            pairs = np.array(times, dtype=np.int64)
            deltas = np.resize(np.array([1, -1], dtype=np.int64), pairs.size)
            yield from _level(name, pairs, deltas)


# ---------------------------------------------------------------------- events


def _level(name: str, times: Ints, deltas: Ints) -> Iterator[dict[str, Any]]:
    """A counter from its changes: one event at every moment at which it is another than before."""
    moments, index = np.unique(times, return_inverse=True)
    changes = np.bincount(index, weights=deltas, minlength=moments.size).astype(np.int64)
    levels = np.cumsum(changes)
    for i in np.flatnonzero(changes).tolist():
        yield _counter(name, int(moments[i]), {name: int(levels[i])})


def _slice(
    pid: int, tid: int, name: str, begin: int, end: int, args: dict[str, Any]
) -> dict[str, Any]:
    event = {"ph": "X", "pid": pid, "tid": tid, "name": name, "ts": begin, "dur": end - begin}
    return {**event, "args": args} if args else event


def _counter(name: str, at: int, values: dict[str, int]) -> dict[str, Any]:
    return {"ph": "C", "pid": _MACHINE, "tid": 0, "name": name, "ts": at, "args": values}


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"name": name}}


def _sorted(kind: str, pid: int, tid: int, index: int) -> dict[str, Any]:
    return {"ph": "M", "pid": pid, "tid": tid, "name": kind, "args": {"sort_index": index}}


def _text(event: dict[str, Any]) -> str:
    """One line of JSON; times in microseconds."""
    cells: Iterable[tuple[str, str]] = (
        (key, _microseconds(value) if key in ("ts", "dur") else _json(value))
        for key, value in event.items()
    )
    return "{" + ",".join(f'"{key}":{text}' for key, text in cells) + "}"


def _microseconds(nanoseconds: int) -> str:
    return f"{nanoseconds // 1000}.{nanoseconds % 1000:03d}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
