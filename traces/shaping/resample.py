"""Sessions of a workload drawn anew: as many as there are, each any of them (the bootstrap).

The source's sessions are a sample of those that might have come. Drawn with replacement and served
again, they show how far a metric hangs on which ones did come, which replays of the same file cannot.
Session k begins when the source's k-th began, so the process of arrivals stays; its turns follow each
other as they did. Sessions that launch others are drawn together with them. Holds all rows in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from policy.errors import ConfigError
from traces.randomness import Streams
from traces.shaping.compose import noted
from traces.strict import shown
from traces.workload import Turn, Workload

#: What a workload's header says of it.
DRAWN_ANEW = "sessions drawn anew with replacement"


def resampled(workload: Workload, streams: Streams) -> Workload:
    """The workload with its sessions drawn anew. Raises ConfigError for a session without an arrival
    time, which has no place to be drawn into."""
    header = noted(workload, DRAWN_ANEW, seed=streams.seed)
    return Workload(header, lambda: iter(_drawn(workload, streams)))


def _drawn(workload: Workload, streams: Streams) -> list[Turn]:
    families = _families(workload)
    begins = [_begin(family) for family in families]
    order = sorted(range(len(families)), key=lambda k: (begins[k], k))
    found: list[Turn] = []
    for place, k in enumerate(order):
        which = streams("resample", "", place) % len(families)
        shift = begins[k] - begins[which]
        found.extend(_moved(families[which], shift, f"#{place}"))
    if workload.header.timing == "open":
        found.sort(key=lambda turn: turn.arrival_ns or 0)
    return found


def _families(workload: Workload) -> list[list[Turn]]:
    """Rows of sessions that hang together by a parent, in the source's order."""
    family_of: dict[str, int] = {}  # by session
    session_of: dict[str, str] = {}  # by request
    families: list[list[Turn]] = []
    for turn in workload:
        parent = session_of.get(turn.parent_id) if turn.parent_id is not None else None
        known = turn.session_id if turn.session_id in family_of else parent
        if known is None:
            family_of[turn.session_id] = len(families)
            families.append([])
        else:
            family_of[turn.session_id] = family_of[known]
        session_of[turn.request_id] = turn.session_id
        families[family_of[turn.session_id]].append(turn)
    return families


def _begin(family: list[Turn]) -> int:
    first = family[0]
    if first.arrival_ns is None:
        raise ConfigError(
            f"workload.resample: {shown(first.request_id)} has no arrival time; give workload.rate"
        )
    return first.arrival_ns


def _moved(family: list[Turn], shift: int, mark: str) -> Iterator[Turn]:
    """The same rows under names of their own, later by `shift`."""
    for turn in family:
        yield replace(
            turn,
            request_id=turn.request_id + mark,
            session_id=turn.session_id + mark,
            arrival_ns=None if turn.arrival_ns is None else turn.arrival_ns + shift,
            parent_id=None if turn.parent_id is None else turn.parent_id + mark,
        )
