"""What each mechanism is worth: pairs of systems that differ by it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from explore.studies.estimates import Ratio, family_of, speedup_of
from policy.systems import ALIASES, BASELINES

if TYPE_CHECKING:
    from explore.studies.comparison import Comparison

_DROP, _KEEP = BASELINES
#: Mechanism, the system that has it, the one that lacks it.
MECHANISMS = (
    ("block groups", "+groups", _KEEP),
    ("KV reuse", "+reuse", "+groups"),
    ("asynchronous swapping", "fastswitch", "+reuse"),
    ("asynchronous swapping", "fastswitch", "fastswitch-no-async"),
    ("KV reuse", "fastswitch", "fastswitch-no-reuse"),
    ("block groups", "fastswitch", "fastswitch-no-groups"),
    ("block-major layout alone", "+block-major", _KEEP),
    ("batched submission alone", "+batched", _KEEP),
    ("block groups instead of a block-major layout", "+groups", "+block-major"),
    ("all three on a block-major layout", "fastswitch-block-major", "+block-major"),
    ("keeping KV between turns", _KEEP, _DROP),
)
#: Metrics in which they are told apart.
METRICS = (
    "ttft_p50_s",
    "ttft_p95_s",
    "ttft_p99_s",
    "tbt_p99_s",
    "tbt_p999_s",
    "throughput_tok_s",
)


@dataclass(frozen=True)
class Worth:
    """What one mechanism is worth: the system that has it against the one that lacks it."""

    mechanism: str
    system: str
    against: str
    ratios: dict[str, Ratio]
    words: str


def worth(comparison: Comparison) -> list[Worth]:
    """Every mechanism for which both systems were run; they are one family in each metric."""
    results = comparison.results
    pairs = [(m, s, a) for m, s, a in _mechanisms(results) if s in results and a in results]
    by_metric = {
        metric: family_of([speedup_of(results[s], results[a], metric) for _, s, a in pairs])
        for metric in METRICS
    }
    found = []
    for index, (mechanism, system, against) in enumerate(pairs):
        ratios = {metric: family[index] for metric, family in by_metric.items()}
        found.append(Worth(mechanism, system, against, ratios, _worth_in_words(ratios)))
    return found


def _mechanisms(results: Collection[str]) -> list[tuple[str, str, str]]:
    """Those pairs, the baselines by the names under which they were run."""
    names = {paged: old for old, paged in ALIASES.items() if paged not in results}
    return [(what, names.get(has, has), names.get(lacks, lacks)) for what, has, lacks in MECHANISMS]


def _worth_in_words(ratios: dict[str, Ratio]) -> str:
    better = ", ".join(_told(name, ratio) for name, ratio in ratios.items() if ratio.is_better)
    worse = ", ".join(_told(name, ratio) for name, ratio in ratios.items() if ratio.is_worse)
    if better and not worse:
        return f"pays: {better}"
    if worse and not better:
        return f"does not pay: worse in {worse}"
    if better:
        return f"mixed: better in {better}; worse in {worse}"
    if all(ratio.factor is None for ratio in ratios.values()):
        return "no interval, so nothing can be said"
    return "no difference shown with these runs"


def _told(name: str, ratio: Ratio) -> str:
    return f"{_PLAIN[name]} {ratio.value:.2f}x"


_PLAIN = {
    "ttft_p50_s": "TTFT P50",
    "ttft_p95_s": "TTFT P95",
    "ttft_p99_s": "TTFT P99",
    "tbt_p99_s": "TBT P99",
    "tbt_p999_s": "TBT P99.9",
    "throughput_tok_s": "throughput",
}
