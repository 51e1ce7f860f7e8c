"""How numbers look in tables and pages, and what metrics are called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from explore.studies.estimates import Estimate, Ratio

if TYPE_CHECKING:
    from explore.studies.comparison import Comparison

TOO_SMALL = "n too small"
#: Most decimals of any number, and most significant digits of one with an interval.
_DECIMALS, _DIGITS = 6, 4

#: Metric -> (heading, unit, factor from the stored unit).
HEADINGS: dict[str, tuple[str, str, float]] = {
    "finished": ("finished", "", 1),
    "rejected": ("rejected", "", 1),
    "cancelled": ("client left", "", 1),
    "unfinished": ("unfinished", "", 1),
    "ttft_censored": ("left before a token", "", 1),
    "waited_for_parent": ("waited for parent", "", 1),
    "waited_for_parent_longest_s": ("longest such wait", "s", 1),
    "ttft_p50_s": ("TTFT P50", "s", 1),
    "ttft_p95_s": ("TTFT P95", "s", 1),
    "ttft_p99_s": ("TTFT P99", "s", 1),
    "ttft_p999_s": ("TTFT P99.9", "s", 1),
    "ttft_due_p50_s": ("TTFT P50 from due", "s", 1),
    "ttft_due_p95_s": ("TTFT P95 from due", "s", 1),
    "ttft_due_p99_s": ("TTFT P99 from due", "s", 1),
    "tbt_p99_s": ("TBT P99", "s", 1),
    "tbt_p999_s": ("TBT P99.9", "s", 1),
    "tbt_in_batch_p99_s": ("in-batch P99", "s", 1),
    "tbt_in_batch_p999_s": ("in-batch P99.9", "s", 1),
    "tbt_preempted_p50_s": ("preempted P50", "s", 1),
    "tbt_preempted_p99_s": ("preempted P99", "s", 1),
    "throughput_tok_s": ("throughput", "tok/s", 1),
    "throughput_live_tok_s": ("tokens while live", "tok/s", 1),
    "stall_share": ("stall share", "%", 100),
    "stall_share_p99_gaps": ("stall at TBT P99", "%", 100),
    "stall_share_p99_steps": ("stall at step P99", "%", 100),
    "stall_ns_per_block": ("stall per block", "us", 1e-3),
    "preemptions": ("preemptions", "", 1),
    "preemptions_recompute": ("of them recompute", "", 1),
    "parkings_waiting": ("parked waiting", "", 1),
    "parkings_idle": ("parked idle", "", 1),
    "recomputed_tokens": ("recomputed", "ktok", 1e-3),
    "blocks_out": ("blocks out", "k", 1e-3),
    "blocks_in": ("blocks in", "k", 1e-3),
    "runs_out": ("runs out", "k", 1e-3),
    "copy_calls": ("copy calls", "k", 1e-3),
    "copy_bytes": ("moved", "GB", 1e-9),
    "mean_run_blocks": ("mean run", "blocks", 1),
    "io_utilisation": ("of peak while copying", "%", 100),
    "io_utilisation_h2d": ("of peak, in", "%", 100),
    "io_utilisation_d2h": ("of peak, out", "%", 100),
    "link_busy_h2d": ("link busy in", "%", 100),
    "link_busy_d2h": ("link busy out", "%", 100),
    "io_busy_d2h_s": ("link busy out", "s", 1),
    "gpu_utilisation": ("GPU", "%", 100),
    "jain": ("Jain", "", 1),
    "service_gap_max": ("service gap", "tok", 1),
    "service_gap_mean": ("service gap, mean", "tok", 1),
    "starvation_age_s": ("starvation", "s", 1),
    "token_efficiency_p99_tok_s": ("worst 1 % of steps", "tok/s", 1),
    "token_efficiency_p999_tok_s": ("worst 0.1 % of steps", "tok/s", 1),
}

#: Shown beside the others once more than this share of the turns had to wait for a parent.
HELD_SHARE = 0.01
_HELD = frozenset(
    {
        "waited_for_parent",
        "waited_for_parent_longest_s",
        "ttft_due_p50_s",
        "ttft_due_p95_s",
        "ttft_due_p99_s",
    }
)

#: Tables of `compare` and of a run: title and metrics.
TABLES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Latency and throughput",
        (
            "ttft_p50_s",
            "ttft_p95_s",
            "ttft_p99_s",
            "ttft_p999_s",
            "tbt_p99_s",
            "tbt_p999_s",
            "throughput_tok_s",
            "throughput_live_tok_s",
            "stall_share",
        ),
    ),
    (
        "Turns that these are of",
        (
            "finished",
            "cancelled",
            "unfinished",
            "ttft_censored",
            "rejected",
            "waited_for_parent",
            "waited_for_parent_longest_s",
            "ttft_due_p50_s",
            "ttft_due_p95_s",
            "ttft_due_p99_s",
        ),
    ),
    (
        "Gaps between tokens, apart: in the batch, and with a preemption inside",
        (
            "tbt_in_batch_p99_s",
            "tbt_in_batch_p999_s",
            "tbt_preempted_p50_s",
            "tbt_preempted_p99_s",
            "token_efficiency_p99_tok_s",
            "starvation_age_s",
            "jain",
            "service_gap_max",
        ),
    ),
    (
        "Swapping",
        (
            "preemptions",
            "preemptions_recompute",
            "parkings_waiting",
            "parkings_idle",
            "blocks_out",
            "blocks_in",
            "copy_calls",
            "copy_bytes",
            "mean_run_blocks",
            "io_utilisation_h2d",
            "io_utilisation_d2h",
            "link_busy_h2d",
            "link_busy_d2h",
            "gpu_utilisation",
        ),
    ),
)

#: What is easily mistaken, told below the table in which it stands.
_EXPLAINED: dict[str, str] = {
    "ttft_p99_s": "Latencies are of all turns but rejected ones; who left before a token ranks last, and"
    " a percentile among those is told as > their shortest wait.",
    "throughput_tok_s": "throughput: output tokens a second in the steady window, from a tenth of the"
    " sessions' arrivals to the last.",
    "throughput_live_tok_s": "tokens while live: output tokens of the whole run over the time in which"
    " any turn was there, so ramp-up and the last stragglers are in it.",
    "stall_share": "stall share: of all turns' lives, the time in which they wait for a copy.",
    "waited_for_parent": "waited for parent: turns that were due before the turn before had ended; from"
    " due counts that wait, TTFT does not.",
    "preemptions": "preemptions: a request that computes loses the device; parked: KV of a waiting or"
    " idle turn does.",
    "io_utilisation_h2d": "of peak: bytes against the link's peak rate while a direction's queue is not"
    " empty; link busy: share of the time in which any turn was there.",
}


def explained(metrics: Sequence[str]) -> list[str]:
    """What to know of these metrics."""
    return [_EXPLAINED[name] for name in metrics if name in _EXPLAINED]


def shown(metrics: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those worth showing: waits for parents only where they are more than a few."""
    held = any(
        (run.get("waited_for_parent") or 0) > HELD_SHARE * max(1, run.get("rows") or 0)
        for run in runs
    )
    return [name for name in metrics if held or name not in _HELD]


def bound_of(metrics: Mapping[str, Any], name: str) -> float | None:
    """What a censored percentile is above."""
    found: float | None = metrics.get(f"{name.removesuffix('_s')}_above_s")
    return found


def is_told(metrics: Mapping[str, Any], name: str) -> bool:
    """There is a number, or what it is above."""
    return metrics.get(name) is not None or bound_of(metrics, name) is not None


def value(metrics: Mapping[str, Any], name: str) -> str:
    """A run's metric with its unit; a count of few as it is; `> 1.41 s`, `n too small`."""
    _, unit, factor = HEADINGS[name]
    found, bound = metrics.get(name), bound_of(metrics, name)
    if found is None:
        return TOO_SMALL if bound is None else f"> {significant(bound * factor)} {unit}".strip()
    is_count = isinstance(found, int) and factor == 1
    return f"{found if is_count else significant(found * factor)} {unit}".strip()


def heading(metric: str) -> str:
    """`TTFT P95 s`."""
    title, unit, _ = HEADINGS[metric]
    return f"{title} {unit}".strip()


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, no exponent, thousands as they are."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** (digits - 1):
        return f"{value:.0f}"
    decimals = digits - 1
    while size < 1 and decimals < 6:
        size *= 10
        decimals += 1
    while size >= 10:
        size /= 10
        decimals -= 1
    return f"{value:.{max(0, decimals)}f}"


def between(middle: float, low: float, high: float) -> str:
    """`37.4 (29.9-46.7)`: as many digits as half the width has two of, at least two of the number
    itself, and never a zero for what is none."""
    width = (high - low) / 2
    if width <= 0:
        return significant(middle)
    size = _size(middle)
    decimals = min(max(0, min(1 - _size(width), _DIGITS - 1 - size)), _DECIMALS)
    own = min(max(decimals, 1 - size), _DECIMALS) if middle else decimals
    least = f"{low:.{decimals}f}" if low <= 0 or round(low, decimals) else significant(low, 1)
    to = "-" if low >= 0 else " to "
    return f"{middle:.{own}f} ({least}{to}{high:.{decimals}f})"


def _size(value: float) -> int:
    """Its power of ten."""
    return math.floor(math.log10(abs(value))) if value else 0


def estimate(found: Estimate, metric: str) -> str:
    """`37.4 (29.9-46.7)`, `> 1.41`, `n too small`, or the value alone without an interval."""
    return scaled(found, HEADINGS[metric][2])


def scaled(found: Estimate, factor: float) -> str:
    """As `estimate`, times a factor."""
    if found.value is None:
        return TOO_SMALL if found.above is None else f"> {significant(found.above * factor)}"
    if found.interval is None:
        return significant(found.value * factor)
    low, high = found.interval
    return between(found.value * factor, low * factor, high * factor)


def ratio(found: Ratio) -> str:
    """`3.10x (2.40-4.00)`, `> 1.20x`, `n too small`."""
    if found.value is None:
        bounds = ((">", found.above), ("<", found.below))
        told = [f"{sign} {significant(bound)}x" for sign, bound in bounds if bound is not None]
        return told[0] if told else TOO_SMALL
    if found.factor is None:
        return f"{significant(found.value)}x"
    text = between(found.value, found.value / found.factor, found.value * found.factor)
    middle, _, interval = text.partition(" ")
    return f"{middle}x {interval}".strip()


#: What a sure difference is marked with in text.
SURE = "*"


def marked(found: Ratio) -> str:
    """A ratio, marked where the difference is sure."""
    return f"{ratio(found)} {SURE}" if found.is_sure else ratio(found)


def in_words(found: Estimate | Ratio, metric: str | None = None) -> str:
    """A number with its interval, and its unit if a metric is named: `1.90 (1.60-2.25) s`, `3.10x
    (2.40-4.00)`."""
    if isinstance(found, Ratio):
        return ratio(found)
    _, unit, factor = ("", "", 1.0) if metric is None else HEADINGS[metric]
    text = scaled(found, factor)
    return text if text == TOO_SMALL else f"{text} {unit}".strip()


def load(comparison: Comparison) -> str:
    """The load in one sentence."""
    found = comparison.load
    if found.offered is None:
        return found.words
    offered = f"Offered load: {found.offered:.0f} output tokens/s"
    if found.share is None or found.capacity is None:
        return f"{offered}; {found.words}."
    return (
        f"{offered}, {found.share:.0%} of the {found.capacity:.0f} that {found.baseline} makes of a"
        f" backlog: {found.words}."
    )


def provenance(comparison: Comparison) -> str:
    """One line that says what made the numbers."""
    scenario, facts = comparison.scenario, comparison.provenance
    first = comparison.results[comparison.systems[0]][0]
    return (
        f"{scenario.name}: {first['workload']['rows']} turns a run, {comparison.runs} runs,"
        f" seed {scenario.seed}, order {first['order']}, {first['profile_kind']} profile"
        f" {first['profile']}, {first['device_blocks']} device and {first['host_blocks']} host"
        f" blocks, commit {facts['commit']}, Python {facts['python']}"
    )


def composition(comparison: Comparison) -> str:
    """What the workload was composed of."""
    first = comparison.results[comparison.systems[0]][0]["workload"]
    return "; ".join(first["composed_from"]) or str(first["source"])
