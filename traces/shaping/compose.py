"""Compose workloads: lengths from one source, gaps from another, arrivals from a third.

Every function takes a workload and gives one whose header says in `composed_from` what was done.
Sessions stay whole. Rows stream, except where the docstring says what is held in memory. Closed
workloads hold each session's turns together; open ones are in order of arrival.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from policy.errors import ConfigError, InputError
from traces.generators.arrivals import Arrivals
from traces.generators.laws import seconds_to_ns
from traces.generators.sessions import Priorities, Think
from traces.randomness import Streams
from traces.strict import MAX_SECONDS, shown
from traces.workload import Header, Turn, Workload


def sources_of(workload: Workload) -> list[str]:
    """What a workload was composed from so far: at first, of its source alone."""
    return list(workload.header.composed_from) or [f"lengths: {workload.header.source}"]


def noted(workload: Workload, *parts: str, **changes: Any) -> Header:
    """The header with what was done added, and other fields changed."""
    composed = (*sources_of(workload), *parts)
    return replace(workload.header, composed_from=composed, **changes)


def begins(turn: Turn) -> bool:
    """Whether a turn begins a session by itself, not launched by another's request."""
    return turn.turn == 1 and turn.parent_id is None


# ---------------------------------------------------------------------- what a source lacks


def with_times(
    workload: Workload,
    streams: Streams,
    arrivals: Arrivals | None,
    think: Think | None,
    *,
    begins_itself: bool = False,
) -> Workload:
    """Give sessions without an arrival one by the law `arrivals`, and turns without any time a
    think time by the law `think`. What the source has is kept; where its replies say how they
    ended (`stop`), so chooses the law. `begins_itself`: a session without an arrival needs none.

    Raises ConfigError at the first turn that needs a law that was not given, and for a session that
    would begin more than ten years after the first.
    """
    if workload.header.timing == "open":
        return workload
    parts = []
    if arrivals is not None:
        parts.append(f"session arrivals where missing: {arrivals.in_words()}")
    if think is not None:
        parts.append(f"think time where missing: {think.words}")
    header = noted(workload, *parts, seed=streams.seed)
    return Workload(
        header,
        lambda: _timed(workload, header, streams, arrivals, think, begins_itself=begins_itself),
    )


def _timed(
    workload: Workload,
    header: Header,
    streams: Streams,
    arrivals: Arrivals | None,
    think: Think | None,
    *,
    begins_itself: bool,
) -> Iterator[Turn]:
    starts = None if arrivals is None else _starts(arrivals, streams)
    stop: str | None = None
    for turn in workload:
        if begins(turn) and turn.arrival_ns is None:
            if starts is None and not begins_itself:
                raise ConfigError(
                    f"workload.rate: {shown(header.source)}: {turn.request_id} has no arrival time;"
                    " give the sessions per second at which sessions should begin"
                )
            yield turn if starts is None else replace(turn, arrival_ns=next(starts)[0])
        elif turn.arrival_ns is None and turn.think_ns is None and turn.gap_ns is None:
            if think is None:
                raise ConfigError(
                    f"workload.think: {shown(header.source)}: {turn.request_id} has no think time;"
                    " give human, agent, exponential or none"
                )
            yield replace(turn, think_ns=think.draw_ns(streams, turn, stop))
        else:
            yield turn
        stop = turn.stop


def _starts(arrivals: Arrivals, streams: Streams) -> Iterator[tuple[int, str | None]]:
    """(nanoseconds, client) of a law. Raises ConfigError beyond ten years."""
    for begun, start in enumerate(arrivals.starts(streams), start=1):
        if start.at_s > MAX_SECONDS:
            raise ConfigError(
                f"workload.rate: {arrivals.rate:g} per second: session {begun} would begin after"
                f" more than {MAX_SECONDS} seconds"
            )
        yield seconds_to_ns(start.at_s), start.client_id


def with_priorities(workload: Workload, streams: Streams, priorities: Priorities) -> Workload:
    """Static priorities by session or client, in place of the source's."""

    def turns() -> Iterator[Turn]:
        for turn in workload:
            level = priorities.draw(streams, turn.session_id, turn.client_id)
            yield replace(turn, priority=level)

    return Workload(noted(workload, priorities.in_words(), seed=streams.seed), turns)


# ---------------------------------------------------------------------- times from elsewhere


def with_gaps(workload: Workload, streams: Streams, think: Think) -> Workload:
    """Think times by a law, in place of the source's: the workload becomes closed. A session's
    launch by another's request keeps its own."""

    def draw(turn: Turn, stop: str | None) -> int:
        return think.draw_ns(streams, turn, stop)

    return _closed(workload, f"think time: {think.words}", streams, draw)


def with_gaps_of(workload: Workload, streams: Streams, donor: Workload) -> Workload:
    """Think times drawn one by one from another workload's gaps: from those after a reply that ended
    the same way, if both say how, else from all. Start-to-start gaps serve as think times, and the
    header says so. The donor's gaps are held, 8 bytes each.

    Raises InputError if the donor has none.
    """
    from_start = donor.header.timing != "closed"
    gaps = _gaps_by_stop(donor)
    everything = array("q", [value for part in gaps.values() for value in part])
    if not everything:
        raise InputError(f"{shown(donor.header.source)}: has no gaps between turns")

    def draw(turn: Turn, stop: str | None) -> int:
        part = gaps.get(stop) if stop is not None else None
        values = part or everything
        return values[streams("gap", turn.session_id, turn.turn) % len(values)]

    words = f"think time: the gaps of {donor.header.source}"
    if from_start:
        words += ", measured from request to request"
    return _closed(workload, words, streams, draw)


def _gaps_by_stop(donor: Workload) -> dict[str | None, array[int]]:
    found: dict[str | None, array[int]] = {}
    before: dict[str, tuple[int | None, str | None]] = {}
    for turn in donor:
        at, stop = before.get(turn.session_id, (None, None))
        gap = turn.think_ns if turn.think_ns is not None else turn.gap_ns
        if gap is None and at is not None and turn.arrival_ns is not None:
            gap = turn.arrival_ns - at
        if gap is not None and gap >= 0 and turn.turn > 1:
            found.setdefault(stop, array("q")).append(gap)
        if donor.header.timing == "closed" and turn.turn == 1:
            before.clear()  # sessions come one after the other
        before[turn.session_id] = (turn.arrival_ns, turn.stop)
    return found


def _closed(workload: Workload, words: str, streams: Streams, draw: Any) -> Workload:
    """Later turns with the think times that `draw(turn, stop before)` gives. The sessions of an open
    workload are brought together first, which holds its rows."""
    source = together(workload)

    def turns() -> Iterator[Turn]:
        stop: str | None = None
        for turn in source:
            if turn.turn == 1:
                yield turn
            else:
                yield replace(turn, arrival_ns=None, gap_ns=None, think_ns=draw(turn, stop))
            stop = turn.stop

    return Workload(noted(workload, words, seed=streams.seed, timing="closed"), turns)


def together(workload: Workload) -> Workload:
    """Each session's turns together, sessions in order of their first rows. Holds the rows of an
    open workload; of others nothing."""
    if workload.header.timing != "open":
        return workload

    def turns() -> Iterator[Turn]:
        sessions: dict[str, list[Turn]] = {}
        for turn in workload:
            sessions.setdefault(turn.session_id, []).append(turn)
        for rows in sessions.values():
            yield from rows

    return Workload(workload.header, turns)


def with_arrivals(workload: Workload, streams: Streams, arrivals: Arrivals) -> Workload:
    """Session starts by a law, in place of the source's; clients too, if the law knows them."""
    return _begun(
        workload,
        f"arrivals: {arrivals.in_words()}",
        streams,
        lambda: _starts(arrivals, streams),
    )


def with_arrivals_of(workload: Workload, streams: Streams, donor: Workload) -> Workload:
    """Session starts of another workload, its first for the first; clients too, if it names them.

    Raises InputError when the donor has fewer sessions.
    """

    def starts() -> Iterator[tuple[int, str | None]]:
        begun = 0
        for turn in donor:
            if begins(turn) and turn.arrival_ns is not None:
                begun += 1
                yield turn.arrival_ns, turn.client_id
        raise InputError(
            f"{shown(donor.header.source)}: {begun} arrivals, and there are more sessions; sample"
            " the sessions, or fit a generator to the arrivals"
        )

    return _begun(workload, f"arrivals: those of {donor.header.source}", streams, starts)


def _begun(workload: Workload, words: str, streams: Streams, starts: Any) -> Workload:
    """Sessions with other starts. An open workload whose sessions have several turns keeps the time
    between them, as gaps from start to start."""
    source = together(workload)
    is_open = workload.header.timing == "open"

    def turns() -> Iterator[Turn]:
        ahead = starts()
        client: str | None = None
        at: int | None = None
        for turn in source:
            made = turn
            if begins(turn):
                arrival, client = next(ahead)
                made = replace(turn, arrival_ns=arrival)
            elif is_open:
                gap = None
                if at is not None and turn.arrival_ns is not None:
                    gap = max(0, turn.arrival_ns - at)
                made = replace(turn, arrival_ns=None, gap_ns=gap)
            at = turn.arrival_ns
            yield made if client is None else replace(made, client_id=client)

    changes: dict[str, Any] = {"timing": "gap"} if is_open else {}
    return Workload(noted(workload, words, seed=streams.seed, **changes), turns)
