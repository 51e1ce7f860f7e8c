"""Stalls, and how busy the device and the link were. Nobody waits, and nothing is idle, while no turn
is there."""

from __future__ import annotations

from typing import Any

from runs.metrics import breakdown
from runs.metrics.columns import NS, Columns, is_one, seconds
from runs.metrics.intervals import Stretches
from runs.metrics.stalls import waiting_ns


def attended(steps: Columns, live: Stretches) -> Any:
    """Steps in which some turn was there; the others only store what is left of turns that ended."""
    return live.within(steps["start_ns"], steps["end_ns"]) > 0


def summarise(
    requests: Columns,
    steps: Columns,
    spans: Columns,
    preemptions: Columns,
    copies: Columns,
    stalls: Stretches,
    live: Stretches,
    rates: dict[str, float],
) -> dict[str, Any]:
    """`rates`: bytes per second of the link, by direction."""
    waited, lived = waiting_ns(requests, steps, spans, preemptions, copies, stalls)
    each = live.within(stalls.begins, stalls.ends)
    begins = steps["start_ns"] + steps["stall_ns"]
    compute = int(live.within(begins, steps["end_ns"]).sum())
    result: dict[str, Any] = {
        "stall_share": _share(waited, lived),
        "stall_s": seconds(int(each.sum())),
        "longest_stall_s": seconds(int(each.max(initial=0))),
        "gpu_utilisation": _share(compute, live.total),
        "live_s": seconds(live.total),
    }
    loads = is_one(copies["direction"], "h2d")
    busy: dict[str, int] = {}
    for way, mask in (("h2d", loads), ("d2h", ~loads)):
        queued = Stretches(copies["submit_ns"][mask], copies["end_ns"][mask])
        busy[way] = queued.total
        moved = int(copies["bytes"][mask].sum())
        result[f"io_utilisation_{way}"] = _share(moved * NS, rates[way] * queued.total)
        here = live.within(queued.begins, queued.ends)
        result[f"link_busy_{way}"] = _share(int(here.sum()), live.total)
        result[f"io_busy_{way}_s"] = seconds(queued.total)
    theirs = attended(steps, live)
    result["stall_share_p99_steps"] = breakdown.of_steps(
        (steps["end_ns"] - steps["start_ns"])[theirs], steps["stall_ns"][theirs]
    )
    result.update(breakdown.of_copies(int(each.sum()), copies, busy, rates))
    return result


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
