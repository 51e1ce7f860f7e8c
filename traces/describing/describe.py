"""What is in a workload: lengths, turns, gaps, arrivals, clients, and what of it could be reused.

Exact, from compact columns (`traces.describing.columns`). CV is the coefficient of variation of
inter-arrival times; the dispersion of a window is the variance over the mean of arrivals per window,
1 for Poisson.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from traces.describing.caches import PrefixCaches
from traces.describing.columns import NONE, NS, Columns, Floats, Ints, collect
from traces.generators.fit_laws import two_sample_ks
from traces.workload import Workload

_SHARES = (50, 90, 95, 99)
_HOUR = 3600 * NS
#: Ranks over which the slope of rates by rank is taken.
_RANKS = 60


def describe(
    workload: Workload,
    cache_sizes: Sequence[int] = (),
    advance: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Every statistic, as a mapping of sections; None where nothing is known. Gaps and arrivals in
    seconds. `cache_sizes`: blocks of LRU caches to try beside the unlimited one."""
    return described(workload, cache_sizes, advance)[1]


def described(
    workload: Workload,
    cache_sizes: Sequence[int] = (),
    advance: Callable[[], None] | None = None,
) -> tuple[Columns, dict[str, Any]]:
    """The columns too, for a figure or a comparison."""
    header = workload.header
    caches = PrefixCaches(cache_sizes, header.hash_scope, is_interleaved=header.timing == "open")
    columns = collect(workload, caches, advance)
    return columns, {**statistics(columns), "prefix_cache": caches.shares()}


def statistics(columns: Columns) -> dict[str, Any]:
    """All but the caches."""
    turns = columns.turns
    several = turns[turns > 1]
    gap_rows, gaps = columns.gaps
    kept = int(columns.kept.sum())
    prompts = int(columns.inputs.sum())
    return {
        "source": columns.header.source,
        "composed_from": list(columns.header.composed_from),
        "priority_process": columns.header.priority_process,
        "assumed": [*columns.header.assumed, *columns.assumed],
        "timing": columns.header.timing,
        "requests": len(columns),
        "sessions": int(turns.size),
        "sum_input_tokens": prompts,
        "sum_output_tokens": int(columns.outputs.sum()),
        "input_tokens": summary(columns.inputs),
        "first_input_tokens": summary(columns.inputs[columns.first]),
        "new_input_tokens": summary(columns.added),
        "later_new_tokens": summary(columns.added[columns.children]),
        "output_tokens": summary(columns.outputs),
        "turns_per_session": summary(turns),
        "multi_turn_sessions": _share(several.size, turns.size),
        "multi_turn_requests": _share(int(several.sum()), len(columns)),
        "continuation": continuation(turns),
        "gap_from": columns.gap_kind if gap_rows.size else None,
        "gap_s": summary(gaps / NS),
        "gaps_over_1h": _share(int((gaps > _HOUR).sum()), gaps.size),
        "gap_s_by_stop": {
            "not said" if stop is None else stop: {
                "share": round(values.size / gaps.size, 4),
                **(summary(values / NS) or {}),
            }
            for stop, values in columns.gaps_by_stop().items()
        },
        "arrivals": arrivals(columns.arrivals),
        "clients": clients(columns.arrays["client"]),
        "neighbouring_replies": neighbours(columns),
        "history_share": _share(kept, prompts) if columns.children.size else None,
        "shorter_than_context": _shorter(columns),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def summary(values: Ints | Floats) -> dict[str, float] | None:
    """Mean, quantiles and maximum, or None if nothing is known."""
    if not values.size:
        return None
    result = {"mean": round(float(values.mean()), 3)}
    for share, value in zip(_SHARES, np.percentile(values, _SHARES), strict=True):
        result[f"p{share}"] = round(float(value), 3)
    result["max"] = round(float(values.max()), 3)
    return result


def continuation(turns: Ints) -> list[float | None]:
    """Chance of another turn after 1, 2, ... 9; None after a number that no session reached."""
    reached = [int((turns >= k).sum()) for k in range(1, 11)]
    return [_share(more, those) for those, more in pairwise(reached)]


def arrivals(times: Ints) -> dict[str, float | None] | None:
    """Rate, CV of the gaps (all, and the median of minutes with 20 arrivals or more), and the
    dispersion of counts in windows of 1, 10 and 60 s."""
    if times.size < 2 or times[-1] == times[0]:
        return None
    gaps = np.diff(times)
    span = int(times[-1] - times[0])
    result: dict[str, float | None] = {
        "rate_per_s": round((times.size - 1) * NS / span, 6),
        "span_s": round(span / NS, 3),
        "cv": round(float(gaps.std() / gaps.mean()), 4),
        "cv_per_minute_p50": _cv_of_minutes(times),
    }
    for window in (1, 10, 60):
        result[f"idc_{window}s"] = dispersion(times, window)
    return result


def dispersion(times: Ints, window_s: int) -> float | None:
    """Variance over mean of arrivals per window, of ten whole windows or more."""
    width = window_s * NS
    whole = int(times[-1] - times[0]) // width
    if whole < 10:
        return None
    # gaps may be years: count the windows that have arrivals, and know of the empty ones
    held = np.unique((times - times[0]) // width, return_counts=True)
    counts = held[1][held[0] < whole].astype(np.float64)
    mean = float(counts.sum()) / whole
    if not mean:
        return None
    variance = float((counts**2).sum()) / whole - mean * mean
    return round(variance / mean, 3)


def _cv_of_minutes(times: Ints) -> float | None:
    minutes = (times - times[0]) // (60 * NS)
    edges = np.flatnonzero(np.diff(minutes)) + 1
    found = []
    for part in np.split(times, edges):
        if part.size >= 20:
            gaps = np.diff(part)
            if gaps.any():
                found.append(float(gaps.std() / gaps.mean()))
    return round(float(np.median(found)), 4) if found else None


def clients(codes: Ints) -> dict[str, float | int | None] | None:
    """Shares of the top 1, 5 and 10 clients, and the slope of log rate by log rank over at most 60;
    None if no row names a client."""
    known = codes[codes != NONE]
    if not known.size:
        return None
    counts = np.sort(np.bincount(known))[::-1]
    counts = counts[counts > 0]
    result: dict[str, float | int | None] = {"clients": int(counts.size)}
    for top in (1, 5, 10):
        result[f"top_{top}_share"] = _share(int(counts[:top].sum()), int(counts.sum()))
    ranks = np.log(np.arange(1, min(_RANKS, counts.size) + 1))
    result["rank_rate_slope"] = None
    if ranks.size > 2:
        slope = np.polyfit(ranks, np.log(counts[: ranks.size]), 1)[0]
        result["rank_rate_slope"] = round(float(slope), 3)
    return result


def neighbours(columns: Columns) -> float | None:
    """Correlation of the log lengths of a reply and the one before it in its session."""
    rows = columns.children
    before, after = columns.outputs[columns.parent[rows]], columns.outputs[rows]
    both = (before > 0) & (after > 0)
    if both.sum() < 3:
        return None
    left, right = np.log(before[both]), np.log(after[both])
    if not left.std() or not right.std():
        return None
    return round(float(np.corrcoef(left, right)[0, 1]), 3)


def _shorter(columns: Columns) -> float | None:
    """Share of later turns whose prompt is shorter than the context before it."""
    rows = columns.children
    parents = columns.parent[rows]
    context = columns.inputs[parents] + columns.outputs[parents]
    return _share(int((columns.inputs[rows] < context).sum()), rows.size)


def distances(one: Columns, other: Columns) -> dict[str, dict[str, float]]:
    """Kolmogorov and Smirnov's distance for each quantity that both have, and how many of each."""
    left, right = one.quantities(), other.quantities()
    return {
        name: {
            "ks": round(two_sample_ks(left[name], right[name]), 4),
            "n": left[name].size,
            "m": right[name].size,
        }
        for name in left
        if name in right
    }


def is_close(distance: float, halves: float) -> bool:
    """Whether a generator is as near to data as it can be asked: .05, or twice what two halves of
    the data are apart."""
    return distance <= max(0.05, 2 * halves)
