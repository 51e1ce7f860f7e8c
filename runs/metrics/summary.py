"""The one definition of every metric, from the tables of a recording.

TTFT   turn arrival to first token, queueing included
TBT    every gap between consecutive tokens of a turn, stalls included (vLLM's `itl`); pooled, then
       apart: gaps with a preemption of the request inside, and all others
TPOT   (E2E - TTFT) / (output tokens - 1), per request, undefined for one token
E2E    turn arrival to last token

Times in the result are seconds; a percentile with too few samples is null ("n too small").
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from policy.errors import ConfigError
from runs.metrics import breakdown, fairness, goodput
from runs.metrics.goodput import Slo
from runs.metrics.stats import MIN_SAMPLES, Ints, percentile
from runs.recording import Recording

NS = 1_000_000_000
PERCENTILES = (50.0, 95.0, 99.0, 99.9)


def summarise(
    recording: Recording, slo: Slo | None = None, warm_up_s: float | None = None
) -> dict[str, Any]:
    """Every metric of a run, as a flat mapping.

    `slo`: goodput and attainment too. `warm_up_s` (steady state): latencies, gaps and goodput are of
    turns that came after it and up to the last session's arrival, throughput is that of this window;
    what is counted over the run (turns by status, swapping, utilisation, fairness) stays so. Raises
    ConfigError if no session begins after it.
    """
    requests = columns_of(recording, "requests")
    steps = columns_of(recording, "steps")
    spans = columns_of(recording, "spans")
    copies = columns_of(recording, "copies")
    preemptions = columns_of(recording, "preemptions")
    status = np.array(requests["status"], dtype=object)
    steady = None if warm_up_s is None else steady_window(requests, warm_up_s)
    counted, theirs = requests, spans
    if steady is not None:
        counted = _rows(requests, _between(requests["arrival_ns"], steady))
        names = set(counted["request_id"])
        theirs = _rows(spans, np.array([name in names for name in spans["request_id"]], dtype=bool))
    result: dict[str, Any] = {
        "rows": len(status),
        "steps": int(steps["step"].size),
        **{name: int((status == name).sum()) for name in _STATUSES},
    }
    result.update(_latency(counted, np.array(counted["status"], dtype=object) == "finished"))
    result.update(_gaps(steps, theirs, preemptions))
    workload = columns_of(recording, "workload")
    result.update(_throughput(requests, steps, spans, workload, steady or window_of(requests)))
    result.update(_utilisation(requests, steps, spans, copies, recording.summary))
    result.update(_swapping(requests, spans, copies, preemptions))
    result.update(fairness.summarise(requests, steps, spans))
    if slo is not None:
        length = makespan_of(requests, steps) if steady is None else steady[1] - steady[0]
        result.update(goodput.summarise(counted, slo, length))
    return result


def _between(times: Ints, window: tuple[int, int]) -> Any:
    return (times > window[0]) & (times <= window[1])


def _rows(columns: dict[str, Any], mask: Any) -> dict[str, Any]:
    """Some rows of a table, every column of them."""
    kept = np.flatnonzero(mask).tolist()
    return {
        name: [column[i] for i in kept] if isinstance(column, list) else column[mask]
        for name, column in columns.items()
    }


_STATUSES = ("finished", "rejected", "cancelled", "unfinished")


def columns_of(recording: Recording, name: str) -> dict[str, Any]:
    """Columns as int64 arrays (nulls as -1) or lists of strings."""
    table: pa.Table = recording.table(name)
    found: dict[str, Any] = {}
    for column_name in table.column_names:
        column = table.column(column_name)
        if pa.types.is_integer(column.type):
            found[column_name] = column.fill_null(-1).to_numpy().astype(np.int64)
        elif pa.types.is_boolean(column.type):
            found[column_name] = column.to_numpy(zero_copy_only=False).astype(bool)
        else:
            found[column_name] = _strings(column)
    return found


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    """Equal strings are one object: a table has many rows and few names."""
    encoded = column.combine_chunks().dictionary_encode()
    names = [*encoded.dictionary.to_pylist(), None]
    return [names[index] for index in encoded.indices.fill_null(-1).to_pylist()]


def seconds(nanoseconds: float | None) -> float | None:
    """Edge of the program: nanoseconds to seconds, rounded to a nanosecond's worth of digits."""
    return None if nanoseconds is None else round(nanoseconds / NS, 9)


def label(q: float) -> str:
    """`p99.9` as a key: p999."""
    return f"p{q:g}".replace(".", "")


# ---------------------------------------------------------------------- latency


def _latency(requests: dict[str, Any], finished: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    arrival = requests["arrival_ns"][finished]
    ttft = requests["first_token_ns"][finished] - arrival
    e2e = requests["finish_ns"][finished] - arrival
    for q in PERCENTILES:
        result[f"ttft_{label(q)}_s"] = seconds(percentile(ttft, q))
    first_turns = requests["turn"][finished] == 1
    result["ttft_first_turn_p95_s"] = seconds(percentile(ttft[first_turns], 95.0))
    result["ttft_later_turn_p95_s"] = seconds(percentile(ttft[~first_turns], 95.0))
    for q in (50.0, 99.0):
        result[f"e2e_{label(q)}_s"] = seconds(percentile(e2e, q))
    outputs = requests["output_tokens"][finished]
    several = outputs > 1
    tpot = (e2e - ttft)[several] // (outputs[several] - 1)
    for q in (50.0, 99.0):
        result[f"tpot_{label(q)}_s"] = seconds(percentile(tpot, q))
    result["ttft_samples"] = int(ttft.size)
    return result


# ---------------------------------------------------------------------- gaps between tokens


def token_gaps(
    steps: dict[str, Any],
    spans: dict[str, Any],
    preemptions: dict[str, Any],
) -> tuple[tuple[Ints, Ints], Ints]:
    """((in-batch gaps, how often each), gaps with a preemption inside), in nanoseconds.

    Inside a span every step's gap is shared by all requests in it, so gaps are counted per step and
    never per token; between two spans of a request the gap is its own.
    """
    step_ids, ends = steps["step"], steps["end_ns"]
    if not step_ids.size:
        empty = np.zeros(0, dtype=np.int64)
        return (empty, empty), empty
    token = np.array([kind == "token" for kind in spans["kind"]], dtype=bool)
    first = spans["first_step"][token]
    last = spans["last_step"][token]
    base = int(step_ids[0])
    position = np.zeros(int(step_ids[-1]) - base + 1, dtype=np.int64)
    position[step_ids - base] = np.arange(step_ids.size)
    lead, tail = position[first - base], position[last - base]
    depth = np.zeros(step_ids.size + 1, dtype=np.int64)
    np.add.at(depth, lead + 1, 1)
    np.add.at(depth, tail + 1, -1)
    sharing = np.cumsum(depth)[:-1]
    step_gaps = np.diff(ends, prepend=ends[:1])
    within = sharing > 0
    owner = _owner_codes(spans["request_id"], token)
    same = owner[1:] == owner[:-1]
    between = (ends[lead[1:]] - ends[tail[:-1]])[same]
    parked = _parked_between(owner[1:][same], last[:-1][same], first[1:][same], spans, preemptions)
    values = np.concatenate([step_gaps[within], between[~parked]])
    weights = np.concatenate([sharing[within], np.ones(int((~parked).sum()), dtype=np.int64)])
    return (values, weights), between[parked]


def _owner_codes(names: list[str], mask: Any) -> Ints:
    codes: dict[str, int] = {}
    found = np.fromiter((codes.setdefault(n, len(codes)) for n in names), np.int64, len(names))
    chosen: Ints = found[mask]
    return chosen


def _parked_between(
    owner: Ints,
    last: Ints,
    first: Ints,
    spans: dict[str, Any],
    preemptions: dict[str, Any],
) -> Any:
    """For each gap of `owner` after step `last` and up to step `first`: was it preempted inside?"""
    codes: dict[str, int] = {}
    for name in spans["request_id"]:
        codes.setdefault(name, len(codes))
    width = int(max(first.max(initial=0), preemptions["step"].max(initial=0))) + 2
    marks = np.sort(
        np.array(
            [
                codes[name] * width + int(step)
                for name, step in zip(preemptions["request_id"], preemptions["step"], strict=True)
                if name in codes
            ],
            dtype=np.int64,
        )
    )
    low = np.searchsorted(marks, owner * width + last, side="right")
    high = np.searchsorted(marks, owner * width + first, side="right")
    return high > low


def _gaps(
    steps: dict[str, Any],
    spans: dict[str, Any],
    preemptions: dict[str, Any],
) -> dict[str, Any]:
    (values, weights), parked = token_gaps(steps, spans, preemptions)
    pooled = np.concatenate([values, parked])
    pooled_weights = np.concatenate([weights, np.ones(parked.size, dtype=np.int64)])
    result: dict[str, Any] = {}
    for q in PERCENTILES:
        result[f"tbt_{label(q)}_s"] = seconds(percentile(pooled, q, pooled_weights))
    for q in (99.0, 99.9):
        result[f"tbt_in_batch_{label(q)}_s"] = seconds(percentile(values, q, weights))
    for q in (50.0, 99.0):
        result[f"tbt_preempted_{label(q)}_s"] = seconds(percentile(parked, q))
    # The same gaps on a clock that runs only while a step waits for copies.
    waiting = {**steps, "end_ns": np.cumsum(steps["stall_ns"])}
    (stalls, _), stalls_parked = token_gaps(waiting, spans, preemptions)
    stalled = np.concatenate([stalls, stalls_parked])
    result["stall_share_p99_gaps"] = breakdown.stall_share(pooled, stalled, pooled_weights)
    result["stall_share_p99_steps"] = breakdown.of_steps(steps)
    result["tbt_samples"] = int(pooled_weights.sum())
    result["tbt_preempted_samples"] = int(parked.size)
    return result


# ---------------------------------------------------------------------- throughput


#: Steps that must end in the steady window before a throughput is read from it.
WINDOW_STEPS = 100


def window_of(requests: dict[str, Any]) -> tuple[int, int] | None:
    """The steady window: from a tenth of the first turns' arrivals to the last of them.

    Arrivals of first turns are the same for every system, so the window is too.
    """
    arrivals = np.sort(requests["arrival_ns"][requests["turn"] == 1])
    if arrivals.size < 2:
        return None
    begin, end = int(arrivals[arrivals.size // 10]), int(arrivals[-1])
    return (begin, end) if end > begin else None


def steady_window(requests: dict[str, Any], warm_up_s: float) -> tuple[int, int]:
    """From the end of the warm-up to the last session's arrival. Raises ConfigError if that comes
    first."""
    first_turns = requests["arrival_ns"][requests["turn"] == 1]
    begin, end = round(warm_up_s * NS), int(first_turns.max(initial=0))
    if end <= begin:
        raise ConfigError(
            f"warm_up_s: {warm_up_s:g} s is not before the last session's arrival at {end / NS:g} s"
        )
    return begin, end


def makespan_of(requests: dict[str, Any], steps: dict[str, Any]) -> int:
    """First arrival to the end of the last step, in nanoseconds; 0 if nothing ran."""
    ends, arrivals = steps["end_ns"], requests["arrival_ns"]
    return int(ends[-1] - arrivals.min()) if ends.size and arrivals.size else 0


def tokens_per_step(steps: dict[str, Any], spans: dict[str, Any]) -> Ints:
    """Output tokens at the end of each step."""
    tokens: Ints = np.zeros(steps["step"].size + 1, dtype=np.int64)
    if tokens.size > 1:
        mask = np.array([kind == "token" for kind in spans["kind"]], dtype=bool)
        index = np.searchsorted(steps["step"], spans["first_step"][mask])
        after = np.searchsorted(steps["step"], spans["last_step"][mask]) + 1
        np.add.at(tokens, index, 1)
        np.add.at(tokens, after, -1)
    return np.cumsum(tokens)[:-1]


def _throughput(
    requests: dict[str, Any],
    steps: dict[str, Any],
    spans: dict[str, Any],
    workload: dict[str, Any],
    window: tuple[int, int] | None,
) -> dict[str, Any]:
    tokens = tokens_per_step(steps, spans)
    total = int(tokens.sum())
    ends = steps["end_ns"]
    makespan = makespan_of(requests, steps)
    result: dict[str, Any] = {
        "output_tokens": total,
        "makespan_s": seconds(makespan),
        "throughput_makespan_tok_s": round(total * NS / makespan, 6) if makespan else None,
        "throughput_tok_s": None,
        "window_s": None,
        "turns_per_s": None,
        "offered_tok_s": None,
        "backlog_share": None,
        "capacity_tok_s": None,
    }
    if window is not None:
        begin, end = window
        inside = _between(ends, window)
        result["window_s"] = seconds(end - begin)
        if int(inside.sum()) >= WINDOW_STEPS:
            result["throughput_tok_s"] = round(int(tokens[inside].sum()) * NS / (end - begin), 6)
        finish = requests["finish_ns"]
        turns = int(((finish > begin) & (finish <= end)).sum())
        result["turns_per_s"] = round(turns * NS / (end - begin), 6)
        result["offered_tok_s"] = _offered(requests, workload, window)
        result.update(_capacity(requests, steps, tokens, window))
    busy = ends - steps["start_ns"]
    worked = (tokens > 0) & (busy > 0)
    milli = tokens[worked] * NS * 1000 // busy[worked]
    for q in (99.0, 99.9):
        worst = percentile(milli, 100 - q) if milli.size >= MIN_SAMPLES[q] else None
        found = None if worst is None else round(worst / 1000, 3)
        result[f"token_efficiency_{label(q)}_tok_s"] = found
    result["token_efficiency_tok_s"] = (
        round(int(tokens.sum()) * NS / int(busy.sum()), 6) if busy.sum() else None
    )
    return result


def _offered(requests: dict[str, Any], workload: dict[str, Any], window: tuple[int, int]) -> float:
    """Output tokens asked for per second of the window, were every turn served at once: the next
    turn then comes when its user has thought. Rejected turns ask for none. The same for every
    system, unless they reject different turns."""
    rejected = {
        name
        for name, status in zip(requests["request_id"], requests["status"], strict=True)
        if status == "rejected"
    }
    due: dict[str, int] = {}  # session -> when its latest turn would come
    tokens = 0
    for name, session, arrival, think, gap, output in zip(
        workload["request_id"],
        workload["session_id"],
        workload["arrival_s"],
        workload["think_s"],
        workload["gap_s"],
        workload["output_tokens"].tolist(),
        strict=True,
    ):
        later = think if think is not None else gap
        at = due.get(session, 0) + round((later or 0) * NS)
        due[session] = at if arrival is None else max(at, round(arrival * NS))
        if window[0] < due[session] <= window[1] and name not in rejected:
            tokens += output
    return round(tokens * NS / (window[1] - window[0]), 6)


def _capacity(
    requests: dict[str, Any], steps: dict[str, Any], tokens: Ints, window: tuple[int, int]
) -> dict[str, Any]:
    """What the machine makes of a backlog: tokens per second over those stretches of the window,
    each at least BACKLOG_NS long, in which some turn that had arrived was not in the batch. None if
    they are less than a tenth of the window: then the machine was not pushed to its capacity.
    Rejected turns wait for nothing.
    """
    starts, ends = steps["start_ns"], steps["end_ns"]
    served = np.array([status != "rejected" for status in requests["status"]], dtype=bool)
    over = np.maximum(requests["finish_ns"], requests["cancel_ns"])
    live = np.searchsorted(np.sort(requests["arrival_ns"][served]), starts, side="right")
    live -= np.searchsorted(np.sort(over[over >= 0]), starts, side="right")
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


#: A shorter wait of somebody for a seat is the normal life of a busy machine.
BACKLOG_NS = 5 * NS


# ---------------------------------------------------------------------- stalls and utilisation


def _utilisation(
    requests: dict[str, Any],
    steps: dict[str, Any],
    spans: dict[str, Any],
    copies: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    stall = steps["stall_ns"]
    prefill = np.array([kind == "prefill" for kind in spans["kind"]], dtype=bool)
    prompts: Ints = np.zeros(stall.size, dtype=np.int64)
    if stall.size:
        np.add.at(prompts, np.searchsorted(steps["step"], spans["first_step"][prefill]), 1)
    stalled = int((stall * (steps["batch"] + prompts)).sum())
    loads = np.array([way == "h2d" for way in copies["direction"]], dtype=bool)
    alone = loads & ~copies["waited_for"] & copies["ok"]
    loading = int((copies["end_ns"] - copies["submit_ns"])[alone].sum())
    finished = requests["finish_ns"] >= 0
    lived = int((requests["finish_ns"] - requests["arrival_ns"])[finished].sum())
    compute = int((steps["end_ns"] - steps["start_ns"] - stall).sum())
    end = np.maximum(requests["finish_ns"], requests["cancel_ns"])
    live = _union(requests["arrival_ns"][end >= 0], end[end >= 0])
    result: dict[str, Any] = {
        "stall_share": round((stalled + loading) / lived, 6) if lived else None,
        "stall_s": seconds(int(stall.sum())),
        "longest_stall_s": seconds(int(stall.max(initial=0))),
        "gpu_utilisation": round(compute / live, 6) if live else None,
    }
    queued = {}
    for way, mask in (("h2d", loads), ("d2h", ~loads)):
        busy = queued[way] = _union(copies["submit_ns"][mask], copies["end_ns"][mask])
        moved = int(copies["bytes"][mask].sum())
        rate = facts["link_bytes_per_s"][way]
        result[f"io_utilisation_{way}"] = round(moved / (rate * busy / NS), 6) if busy else None
        result[f"io_busy_{way}_s"] = seconds(busy)
    result.update(breakdown.of_copies(steps, copies, queued, facts["link_bytes_per_s"]))
    return result


def _union(begins: Ints, ends: Ints) -> int:
    """Total length of the union of intervals."""
    if not begins.size:
        return 0
    order = np.argsort(begins, kind="stable")
    begins, ends = begins[order], np.maximum.accumulate(ends[order])
    gaps = np.maximum(begins[1:] - ends[:-1], 0)
    return int(ends[-1] - begins[0] - gaps.sum())


# ---------------------------------------------------------------------- swapping


def _swapping(
    requests: dict[str, Any],
    spans: dict[str, Any],
    copies: dict[str, Any],
    preemptions: dict[str, Any],
) -> dict[str, Any]:
    out = np.array([way == "d2h" for way in copies["direction"]], dtype=bool)
    swaps = sum(mode == "swap" for mode in preemptions["mode"])
    blocks, runs = int(copies["blocks"].sum()), int(copies["runs"].sum())
    return {
        "preemptions": len(preemptions["mode"]),
        "preemptions_swap": swaps,
        "preemptions_recompute": len(preemptions["mode"]) - swaps,
        "blocks_out": int(copies["blocks"][out].sum()),
        "blocks_in": int(copies["blocks"][~out].sum()),
        "copy_jobs": int(out.size),
        "copy_calls": int(copies["calls"].sum()),
        "copy_bytes": int(copies["bytes"].sum()),
        "mean_run_blocks": round(blocks / runs, 4) if runs else None,
        "cached_tokens": int(requests["cached_tokens"].sum()),
        "recomputed_tokens": _recomputed(spans),
    }


def _recomputed(spans: dict[str, Any]) -> int:
    """Prefilled tokens of requests that had already produced one."""
    seen: set[str] = set()
    total = 0
    for name, kind, tokens in zip(spans["request_id"], spans["kind"], spans["tokens"], strict=True):
        if kind == "token":
            seen.add(name)
        elif name in seen:
            total += int(tokens)
    return total
