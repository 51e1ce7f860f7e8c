"""Tokens per second: in the steady window, while anybody was there, of a step, of a backlog."""

from __future__ import annotations

from typing import Any

import numpy as np

from policy.errors import ConfigError
from runs.metrics import demand
from runs.metrics.columns import NS, Columns, is_one, label, positions_of, seconds
from runs.metrics.intervals import Stretches
from runs.metrics.stats import MIN_SAMPLES, Ints, percentile
from runs.metrics.utilisation import attended

#: Steps that must end in the steady window before a throughput is read from it.
WINDOW_STEPS = 100
#: A shorter wait of somebody for a seat is the normal life of a busy machine.
BACKLOG_NS = 5 * NS

Window = tuple[int, int]


def window_of(requests: Columns) -> Window | None:
    """The steady window: from a tenth of the first turns' arrivals to the last of them.

    Arrivals of first turns are the same for every system, so the window is too.
    """
    arrivals = np.sort(requests["arrival_ns"][requests["turn"] == 1])
    if arrivals.size < 2:
        return None
    begin, end = int(arrivals[arrivals.size // 10]), int(arrivals[-1])
    return (begin, end) if end > begin else None


def steady_window(requests: Columns, warm_up_s: float) -> Window:
    """From the end of the warm-up, counted from the first arrival, to the last session's arrival.
    Raises ConfigError if that comes first."""
    first_turns = requests["arrival_ns"][requests["turn"] == 1]
    origin = int(requests["arrival_ns"].min()) if requests["arrival_ns"].size else 0
    begin, end = origin + round(warm_up_s * NS), int(first_turns.max(initial=0))
    if end <= begin:
        raise ConfigError(
            f"warm_up_s: {warm_up_s:g} s is not before the last session's arrival,"
            f" {max(0, end - origin) / NS:g} s after the first"
        )
    return begin, end


def between(times: Ints, window: Window) -> Any:
    """After the window's beginning, up to its end."""
    return (times > window[0]) & (times <= window[1])


def makespan_ns(requests: Columns) -> int:
    """From the first arrival to the end of the last turn; 0 without turns."""
    arrivals = requests["arrival_ns"]
    return int(requests["end_ns"].max() - arrivals.min()) if arrivals.size else 0


def tokens_per_step(steps: Columns, spans: Columns) -> Ints:
    """Output tokens at the end of each step."""
    tokens: Ints = np.zeros(steps["step"].size + 1, dtype=np.int64)
    if tokens.size > 1:
        mask = is_one(spans["kind"], "token")
        np.add.at(tokens, positions_of(steps, spans["first_step"][mask]), 1)
        np.add.at(tokens, positions_of(steps, spans["last_step"][mask]) + 1, -1)
    return np.cumsum(tokens)[:-1]


def summarise(
    requests: Columns,
    steps: Columns,
    spans: Columns,
    waits: Columns,
    workload: Columns,
    live: Stretches,
    window: Window | None,
) -> dict[str, Any]:
    """Throughputs, loads and token efficiency. `window`: the steady one."""
    tokens = tokens_per_step(steps, spans)
    total = int(tokens.sum())
    result: dict[str, Any] = {
        "output_tokens": total,
        "makespan_s": seconds(makespan_ns(requests)),
        "throughput_live_tok_s": _per_second(total, live.total),
        "throughput_tok_s": None,
        "window_s": None,
        "turns_per_s": None,
        "offered_tok_s": None,
        "backlog_share": None,
        "capacity_tok_s": None,
    }
    if window is not None:
        length = window[1] - window[0]
        inside = between(steps["end_ns"], window)
        result["window_s"] = seconds(length)
        if int(inside.sum()) >= WINDOW_STEPS:
            result["throughput_tok_s"] = _per_second(int(tokens[inside].sum()), length)
        turns = int(between(requests["finish_ns"], window).sum())
        result["turns_per_s"] = _per_second(turns, length)
        result["offered_tok_s"] = demand.offered(requests, workload, window)
        result.update(_capacity(requests, steps, tokens, window))
    result.update(_efficiency(steps, tokens, waits, live))
    return result


def _per_second(amount: int, nanoseconds: int) -> float | None:
    return round(amount * NS / nanoseconds, 6) if nanoseconds else None


def _efficiency(steps: Columns, tokens: Ints, waits: Columns, live: Stretches) -> dict[str, Any]:
    """Tokens per second of the time in steps and stalls, of all steps and of the worst ones. What the
    machine waited before a step counts with it."""
    busy = steps["end_ns"] - steps["start_ns"]
    before = positions_of(steps, waits["before_step"])
    came = before < busy.size  # a run that ended may have waited before a step that never came
    np.add.at(busy, before[came], (waits["end_ns"] - waits["start_ns"])[came])
    worked = (tokens > 0) & (busy > 0)
    milli = tokens[worked] * NS * 1000 // busy[worked]
    result: dict[str, Any] = {}
    for q in (99.0, 99.9):
        worst = percentile(milli, 100 - q) if milli.size >= MIN_SAMPLES[q] else None
        found = None if worst is None else round(worst / 1000, 3)
        result[f"token_efficiency_{label(q)}_tok_s"] = found
    spent = int(busy[attended(steps, live)].sum())
    result["token_efficiency_tok_s"] = _per_second(int(tokens.sum()), spent)
    return result


def _capacity(requests: Columns, steps: Columns, tokens: Ints, window: Window) -> dict[str, Any]:
    """What the machine makes of a backlog: tokens per second over those stretches of the window,
    each at least BACKLOG_NS long, in which some turn that had arrived was not in the batch. None if
    they are less than a tenth of the window: then the machine was not pushed to its capacity.
    Rejected turns wait for nothing.
    """
    starts, ends = steps["start_ns"], steps["end_ns"]
    served = ~is_one(requests["status"], "rejected")
    live = np.searchsorted(np.sort(requests["arrival_ns"][served]), starts, side="right")
    live -= np.searchsorted(np.sort(requests["end_ns"][served]), starts, side="right")
    behind = (live > np.maximum(steps["batch"], tokens)) & (starts > window[0])
    behind &= ends <= window[1]
    edges = np.flatnonzero(np.diff(np.concatenate([[0], behind.astype(np.int8), [0]])))
    done = np.concatenate([[0], np.cumsum(tokens)])
    time = made = 0
    for first, after in edges.reshape(-1, 2).tolist():
        length = int(ends[after - 1] - starts[first])
        if length >= BACKLOG_NS:
            time += length
            made += int(done[after] - done[first])
    enough = time * 10 >= window[1] - window[0]
    return {
        "backlog_share": round(time / (window[1] - window[0]), 6),
        "capacity_tok_s": round(made * NS / time, 6) if enough else None,
    }
