"""Is a timeline one that viewers show as it is meant? Looks at the file's text alone."""

from __future__ import annotations

import json
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise
from typing import Any

Event = dict[str, Any]


def parsed(text: str) -> list[Event]:
    """Its events; `ts` and `dur` as exact microseconds. Refuses what strict JSON does not have."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    document = json.loads(text, parse_float=Fraction, parse_constant=refuse)
    events: list[Event] = document["traceEvents"]
    return events


def problems(events: list[Event]) -> list[str]:
    """Everything that is wrong: slices of a track that overlap, times below zero, nameless tracks."""
    found = []
    tracks: dict[tuple[int, int], list[tuple[Fraction, Fraction, str]]] = defaultdict(list)
    named = set()
    groups: dict[int, int] = {}
    for event in events:
        track = (event["pid"], event["tid"])
        if event["ph"] == "M":
            named.add((*track, event["name"]))
            continue
        if event["ts"] < 0 or event.get("dur", 0) < 0:
            found.append(f"{event['name']} at {event['ts']} for {event.get('dur')}")
        if event["ph"] == "C":
            if any(value < 0 for value in event["args"].values()):
                found.append(f"counter {event['name']} is {event['args']}")
            continue
        if groups.setdefault(track[1], track[0]) != track[0]:
            found.append(f"track {track[1]} is in two processes")
        if (*track, "thread_name") not in named:
            found.append(f"track {track} has no name before its first slice")
        if event["ph"] == "X":
            begin = Fraction(event["ts"])
            tracks[track].append((begin, begin + Fraction(event["dur"]), event["name"]))
    for track, slices in tracks.items():
        slices.sort()
        for (_, end, before), (begin, _, after) in pairwise(slices):
            if begin < end:
                found.append(f"track {track}: {after} begins at {begin} in {before}, to {end}")
    return found


def slices_of(events: list[Event], name: str) -> list[tuple[int, int, str]]:
    """(begin, end, state) in nanoseconds of the track called `name`, in order."""
    (track,) = [
        (e["pid"], e["tid"])
        for e in events
        if e["name"] == "thread_name" and e["args"]["name"] == name
    ]
    found = [
        (int(e["ts"] * 1000), int((e["ts"] + e["dur"]) * 1000), e["name"])
        for e in events
        if e["ph"] == "X" and (e["pid"], e["tid"]) == track
    ]
    return sorted(found)


def counter(events: list[Event], name: str) -> list[tuple[int, int]]:
    """(nanosecond, value) of a counter, in order of time."""
    return sorted(
        (int(e["ts"] * 1000), int(value))
        for e in events
        if e["ph"] == "C" and e["name"] == name
        for value in e["args"].values()
    )
