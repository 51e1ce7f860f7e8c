"""What metrics mean, in the glossary's sentences (docs/glossary.md, to which a test holds them)."""

from __future__ import annotations

#: The longest beginning of a metric's name that is here is taken.
MEANINGS: dict[str, str] = {
    "ttft": "a turn's start (its arrival) to its first token",
    "ttft_due": "from when it was due, the wait for its parent included",
    "tbt": "gap between consecutive tokens of a turn, stalls and preemptions included",
    "tbt_in_batch": "a TBT gap without a preemption of that request inside",
    "preemptions": "taking a request off the device that had computed there since it came",
    "parkings": "taking KV off the device that nobody computes on",
    "stall_share": "of the lives of all turns that were not rejected, from arrival to end, the time in which"
    " they wait for a copy",
    "io_utilisation": "bytes moved / (peak rate x time a direction's queue is not empty)",
    "mean_run": "what one merged copy moves",
    "link_busy": "share of the live time in which a direction's queue is not empty",
    "gpu_utilisation": "share of the live time in which steps compute, stalls left out",
    "throughput_tok_s": "output tokens a second in the steady window",
    "throughput_live": "output tokens of the whole run / live time",
    "token_efficiency": "tokens / time in steps and stalls; of the worst 1 % of steps",
    "jain": "fairness index over the service of a window's clients, mean over windows",
    "service_gap": "largest difference of service between a window's clients, in weighted tokens",
    "starvation_age": "longest time a turn went without a token",
}


def of(metric: str) -> str:
    """The sentence, empty if there is none."""
    known = [name for name in MEANINGS if metric.startswith(name)]
    return MEANINGS[max(known, key=len)] if known else ""
