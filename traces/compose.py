"""Fill in the times a source does not have, and say so in the header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from policy.errors import ConfigError
from traces.draw import Streams
from traces.generators.arrivals import Arrivals
from traces.generators.laws import seconds_to_ns
from traces.generators.sessions import Priorities, Think
from traces.strict import MAX_SECONDS, shown
from traces.workload import Header, Turn, Workload


def with_times(
    workload: Workload, streams: Streams, arrivals: Arrivals | None, think: Think | None
) -> Workload:
    """Give sessions without an arrival one by the law `arrivals`, and turns without any time a
    think time by the law `think`. What the source has is kept; where its replies say how they
    ended (`stop`), so chooses the law.

    Raises ConfigError at the first turn that needs a law that was not given, and for a session that
    would begin more than ten years after the first.
    """
    if workload.header.timing == "open":
        return workload
    parts = sources_of(workload)
    if arrivals is not None:
        parts.append(f"session arrivals where missing: {arrivals.in_words()}")
    if think is not None:
        parts.append(f"think time where missing: {think.words}")
    header = replace(workload.header, composed_from=tuple(parts), seed=streams.seed)
    return Workload(header, lambda: _timed(workload, header, streams, arrivals, think))


def sources_of(workload: Workload) -> list[str]:
    """What a workload was composed from so far: at first, of its source alone."""
    return list(workload.header.composed_from) or [f"lengths: {workload.header.source}"]


def _timed(
    workload: Workload,
    header: Header,
    streams: Streams,
    arrivals: Arrivals | None,
    think: Think | None,
) -> Iterator[Turn]:
    starts = None if arrivals is None else arrivals.starts(streams)
    begun = 0
    stop: str | None = None
    for turn in workload:
        if turn.turn == 1 and turn.parent_id is None and turn.arrival_ns is None:
            if arrivals is None or starts is None:
                raise ConfigError(
                    f"workload.rate: {shown(header.source)}: {turn.request_id} has no arrival time;"
                    " give the sessions per second at which sessions should begin"
                )
            start = next(starts)
            begun += 1
            if start.at_s > MAX_SECONDS:
                raise ConfigError(
                    f"workload.rate: {arrivals.rate:g} per second: session {begun} would begin"
                    f" after more than {MAX_SECONDS} seconds"
                )
            yield replace(turn, arrival_ns=seconds_to_ns(start.at_s))
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


def with_priorities(workload: Workload, streams: Streams, priorities: Priorities) -> Workload:
    """Static priorities by session or client, in place of the source's."""
    parts = (*sources_of(workload), priorities.in_words())
    header = replace(workload.header, composed_from=parts, seed=streams.seed)

    def turns() -> Iterator[Turn]:
        for turn in workload:
            level = priorities.draw(streams, turn.session_id, turn.client_id)
            yield replace(turn, priority=level)

    return Workload(header, turns)
