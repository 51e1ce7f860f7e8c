"""The statistics of one workload, or of two side by side, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_UNKNOWN = "not known"
_TABLES = (
    "input_tokens",
    "first_input_tokens",
    "new_input_tokens",
    "later_new_tokens",
    "output_tokens",
    "turns_per_session",
    "gap_s",
)


def as_text(*found: dict[str, Any]) -> str:
    """What each was composed from, then line by line their statistics, one below the other."""
    lines = []
    for number, one in enumerate(found, start=1):
        mark = f"{number}: " if len(found) > 1 else ""
        lines.append(
            f"{mark}{one['source']}: {one['requests']} requests in {one['sessions']} sessions,"
            f" {one['timing']} loop"
        )
        lines += [f"  {part}" for part in one["composed_from"]]
        lines += [f"  assumed: {part}" for part in one["assumed"]]
        if one["priority_process"]:
            lines.append(f"  meant for the priority process {one['priority_process']}")
    columns = [dict(_rows(one)) for one in found]
    names = list(dict.fromkeys(name for column in columns for name in column))
    width = max(map(len, names))
    for name in names:
        for number, column in enumerate(columns, start=1):
            label = f"{name if number == 1 else '':<{width}}"
            mark = f"{number}  " if len(columns) > 1 else ""
            lines.append(f"  {label}  {mark}{column.get(name, '-')}")
    return "\n".join(lines)


def distances_as_text(found: dict[str, dict[str, float]]) -> str:
    """Distances between two workloads."""
    lines = ["Kolmogorov-Smirnov distance"]
    width = max(map(len, found), default=0)
    for name, one in found.items():
        lines.append(f"  {name:<{width}}  {one['ks']:.3f}  ({one['n']:.0f}, {one['m']:.0f} values)")
    return "\n".join(lines)


def _rows(one: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "tokens", f"{one['sum_input_tokens']} in, {one['sum_output_tokens']} out"
    for key in _TABLES:
        if one[key] is not None:
            yield key.replace("_", " "), _values(one[key])
    if one["gap_s"] is not None:
        start = "the reply's end" if one["gap_from"] == "reply" else "its request's start"
        yield "gaps run from", f"{start}; {_percent(one['gaps_over_1h'])} are over 1 h"
    for stop, values in one["gap_s_by_stop"].items():
        if list(one["gap_s_by_stop"]) != ["not said"]:
            yield f"gap s after {stop}", _values(values)
    yield (
        "multi-turn",
        f"{_percent(one['multi_turn_sessions'])} of sessions,"
        f" {_percent(one['multi_turn_requests'])} of requests",
    )
    if any(one["continuation"]):
        chances = ("-" if c is None else f"{c:.2f}" for c in one["continuation"])
        yield "another turn after 1, 2, ...", " ".join(chances)
    if one["arrivals"] is not None:
        whose = "arrivals" if one["timing"] == "open" else "arrivals of sessions"
        yield whose, _values(one["arrivals"])
    if one["clients"] is not None:
        yield "clients", _values(one["clients"])
    if one["neighbouring_replies"] is not None:
        yield "neighbouring replies", f"correlation {one['neighbouring_replies']:g} of logarithms"
    if one["history_share"] is not None:
        yield "history", f"{_percent(one['history_share'])} of prompt tokens"
    if one["shorter_than_context"] is not None:
        yield "shorter than its context", f"{_percent(one['shorter_than_context'])} of later turns"
    if one["prefix_cache"] is not None:
        yield "prefix cache", _values(one["prefix_cache"])


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{share:.1%}"


def _values(section: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {_UNKNOWN if value is None else _number(value)}" for key, value in section.items()
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.7g}"
