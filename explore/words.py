"""How numbers look in tables and pages, and what metrics are called."""

from __future__ import annotations

from explore.studies.compare import Comparison
from explore.studies.estimates import Estimate, Ratio

TOO_SMALL = "n too small"

#: Metric -> (heading, unit, factor from the stored unit).
HEADINGS: dict[str, tuple[str, str, float]] = {
    "ttft_p50_s": ("TTFT P50", "s", 1),
    "ttft_p95_s": ("TTFT P95", "s", 1),
    "ttft_p99_s": ("TTFT P99", "s", 1),
    "ttft_p999_s": ("TTFT P99.9", "s", 1),
    "tbt_p99_s": ("TBT P99", "s", 1),
    "tbt_p999_s": ("TBT P99.9", "s", 1),
    "tbt_in_batch_p99_s": ("in-batch P99", "s", 1),
    "tbt_in_batch_p999_s": ("in-batch P99.9", "s", 1),
    "tbt_preempted_p50_s": ("preempted P50", "s", 1),
    "tbt_preempted_p99_s": ("preempted P99", "s", 1),
    "throughput_tok_s": ("throughput", "tok/s", 1),
    "throughput_makespan_tok_s": ("throughput, whole run", "tok/s", 1),
    "stall_share": ("stall share", "%", 100),
    "stall_share_p99_gaps": ("stall at TBT P99", "%", 100),
    "stall_share_p99_steps": ("stall at step P99", "%", 100),
    "stall_ns_per_block": ("stall per block", "us", 1e-3),
    "preemptions": ("preemptions", "", 1),
    "preemptions_recompute": ("of them recompute", "", 1),
    "recomputed_tokens": ("recomputed", "ktok", 1e-3),
    "blocks_out": ("blocks out", "k", 1e-3),
    "blocks_in": ("blocks in", "k", 1e-3),
    "runs_out": ("runs out", "k", 1e-3),
    "copy_calls": ("copy calls", "k", 1e-3),
    "copy_bytes": ("moved", "GB", 1e-9),
    "mean_run_blocks": ("mean run", "blocks", 1),
    "io_utilisation": ("I/O", "%", 100),
    "io_utilisation_h2d": ("I/O in", "%", 100),
    "io_utilisation_d2h": ("I/O out", "%", 100),
    "io_busy_d2h_s": ("link busy out", "s", 1),
    "gpu_utilisation": ("GPU", "%", 100),
    "jain": ("Jain", "", 1),
    "service_gap_max": ("service gap", "tok", 1),
    "service_gap_mean": ("service gap, mean", "tok", 1),
    "starvation_age_s": ("starvation", "s", 1),
    "token_efficiency_p99_tok_s": ("worst 1 % of steps", "tok/s", 1),
    "token_efficiency_p999_tok_s": ("worst 0.1 % of steps", "tok/s", 1),
}

#: Tables of `compare`: title and metrics.
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
            "stall_share",
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
            "blocks_out",
            "blocks_in",
            "copy_calls",
            "copy_bytes",
            "mean_run_blocks",
            "io_utilisation_h2d",
            "io_utilisation_d2h",
            "gpu_utilisation",
        ),
    ),
)


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


def estimate(found: Estimate, metric: str) -> str:
    """`37.4 ±8.1`, `n too small`, or the value alone for a single run."""
    if found.value is None:
        return TOO_SMALL
    factor = HEADINGS[metric][2]
    text = significant(found.value * factor)
    if found.half is None:
        return text
    return f"{text} ±{significant(found.half * factor, 2)}"


def ratio(found: Ratio) -> str:
    """`3.1x (2.4 to 4.0)`."""
    if found.value is None:
        return TOO_SMALL
    text = f"{significant(found.value)}x"
    if found.factor is None:
        return text
    low, high = found.value / found.factor, found.value * found.factor
    return f"{text} ({significant(low, 2)}-{significant(high, 2)})"


def in_words(found: Estimate | Ratio, metric: str | None = None) -> str:
    """A number with its interval, and its unit if a metric is named: `1.90 ±0.32 s`, `3.10x (2.4-4.0)`."""
    if isinstance(found, Ratio):
        return ratio(found)
    if metric is not None:
        unit = HEADINGS[metric][1]
        return f"{estimate(found, metric)} {unit}".strip() if found.value is not None else TOO_SMALL
    if found.value is None:
        return TOO_SMALL
    half = "" if found.half is None else f" ±{significant(found.half, 2)}"
    return significant(found.value) + half


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
