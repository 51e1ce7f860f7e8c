"""Fill in the times a source does not have, and say so in the header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from policy.errors import ConfigError
from traces.draw import Streams
from traces.generators.chat import HUMAN_GAP, MAX_GAP_S
from traces.generators.laws import draw_mixture, seconds_to_ns
from traces.strict import MAX_SECONDS, shown
from traces.workload import Header, Turn, Workload


def with_times(
    workload: Workload, streams: Streams, rate: float | None, think: str | None
) -> Workload:
    """Give sessions without an arrival a Poisson one at `rate` per second, and turns without any
    time a think time by the law `think` (`human` or `none`). What the source has is kept.

    Raises ConfigError at the first turn that needs a law that was not given, and for a session that
    would begin more than ten years after the first.
    """
    if workload.header.timing == "open":
        return workload
    parts = list(workload.header.composed_from) or [f"lengths: {workload.header.source}"]
    if rate is not None:
        parts.append(f"session arrivals where missing: Poisson, {rate:g} per second")
    if think is not None:
        parts.append(f"think time where missing: {think}")
    header = replace(workload.header, composed_from=tuple(parts), seed=streams.seed)
    return Workload(header, lambda: _timed(workload, header, streams, rate, think))


def _timed(
    workload: Workload, header: Header, streams: Streams, rate: float | None, think: str | None
) -> Iterator[Turn]:
    clock = 0.0
    sessions = 0
    for turn in workload:
        if turn.turn == 1 and turn.parent_id is None and turn.arrival_ns is None:
            if rate is None:
                raise ConfigError(
                    f"workload.rate: {shown(header.source)}: {turn.request_id} has no arrival time;"
                    " give the sessions per second at which sessions should begin"
                )
            clock += streams.exponential("arrival", "", sessions) / rate
            sessions += 1
            if clock > MAX_SECONDS:
                raise ConfigError(
                    f"workload.rate: {rate:g} per second: session {sessions} would begin after more"
                    f" than {MAX_SECONDS} seconds"
                )
            yield replace(turn, arrival_ns=seconds_to_ns(clock))
        elif turn.arrival_ns is None and turn.think_ns is None and turn.gap_ns is None:
            if think is None:
                raise ConfigError(
                    f"workload.think: {shown(header.source)}: {turn.request_id} has no think time;"
                    " give human or none"
                )
            yield replace(turn, think_ns=_think_ns(think, streams, turn))
        else:
            yield turn


def _think_ns(think: str, streams: Streams, turn: Turn) -> int:
    if think == "none":
        return 0
    gap = draw_mixture(HUMAN_GAP, streams, "think", turn.session_id, turn.turn)
    return seconds_to_ns(min(gap, MAX_GAP_S))
