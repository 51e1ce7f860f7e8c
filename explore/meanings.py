"""What metrics mean: which word of the glossary each is."""

from __future__ import annotations

from runs import glossary

#: The longest beginning of a metric's name that is here is taken.
WORDS: dict[str, str] = {
    "ttft": "TTFT",
    "ttft_censored": "population",
    "ttft_due": "due",
    "tbt": "TBT",
    "tbt_in_batch": "in-batch gap",
    "preemptions": "preemption",
    "parkings": "parking",
    "stall_share": "stall share",
    "stall_share_p99": "stall at P99",
    "io_utilisation": "of peak",
    "mean_run": "run",
    "link_busy": "link busy",
    "gpu_utilisation": "GPU utilisation",
    "throughput_tok_s": "throughput",
    "throughput_live": "tokens while live",
    "token_efficiency": "token efficiency",
    "jain": "Jain",
    "service_gap": "service gap",
    "starvation_age": "starvation age",
}


def of(metric: str) -> str:
    """The glossary's sentence, empty if there is none."""
    known = [name for name in WORDS if metric.startswith(name)]
    return glossary.lookup(WORDS[max(known, key=len)])[0].meaning if known else ""
