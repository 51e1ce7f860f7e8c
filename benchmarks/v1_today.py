"""Should I swap, offload or recompute on today's vLLM? Prints the page, and a last line of JSON.

    python benchmarks/v1_today.py [--profile a10-llama-3-8b] [--runs 5] [--conversations 120] > PAGE.md

Every system is `vllm-v1` with one thing changed, under FCFS with the release's own defaults, on chat,
agent and code workloads. The load is fixed by a rule before any system is compared: the least of
RATES at which a pilot run of `vllm-v1` with another seed preempts at least once in twenty turns (the
highest, if none does). Verdicts are by this rule too: a system is called better or worse than
`vllm-v1` in a metric only if the paired 95 % interval, corrected for all systems of that table, says
so and the difference is at least 2 % (explore.studies.estimates); otherwise no difference was seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from explore import words
from explore.studies.compare import compare
from explore.studies.comparison import Comparison
from runs.scenario import Scenario, build
from sim.simulate import simulate

BASELINE = "vllm-v1"
SYSTEMS = (
    BASELINE,
    "vllm-v1-offload",
    "vllm-v1-offload-all",
    "vllm-v1+swap",
    "vllm-v1+park",
    "vllm-v1+least-computed",
)
RATES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
METRICS = ("ttft_p95_s", "tbt_p99_s")
WORKLOADS = ("chat", "agent", "code")
BAR = 14
#: Agents and code need more than 8,192 tokens of context.
CONTEXT = 16_384


def scenario(kind: str, profile: str, conversations: int, rate: float, seed: int) -> Scenario:
    """One workload at one rate."""
    return build(
        {
            "name": f"today-{kind}",
            "workload": {
                "generator": kind,
                "conversations": conversations,
                "rate": rate,
                "context_cap": CONTEXT,
            },
            "profile": profile,
            "order": "fcfs",
            "system": BASELINE,
            "limits": {"max_model_len": CONTEXT},
            "pool": {"aging": "none"},
            "seed": seed,
        },
        "today",
    )


def load_of(kind: str, profile: str, conversations: int) -> float:
    """The rate, by the rule above."""
    for rate in RATES:
        metrics = simulate(scenario(kind, profile, conversations, rate, 99)).summary["metrics"]
        if metrics["preemptions"] * 20 >= metrics["rows"]:
            return rate
    return RATES[-1]


def verdict(found: Comparison, system: str, metric: str) -> str:
    """Better, worse, or no difference seen."""
    ratio = found.speedup(system, BASELINE, metric)
    if ratio.value is None:
        return words.TOO_SMALL
    word = "better" if ratio.is_better else "worse" if ratio.is_worse else "no difference seen"
    return f"{words.ratio(ratio)} {word}"


def figure(found: dict[str, Comparison]) -> list[str]:
    """Bars of TTFT P95, a row per system: per workload as a share of the longest."""
    head = "TTFT P95, mean of runs"
    lines = ["```", f"{head:24}" + "".join(f"{kind:{BAR + 12}}" for kind in found)]
    for name in SYSTEMS:
        cells = []
        for comparison in found.values():
            means = [comparison.estimate(one, METRICS[0]).value or 0.0 for one in SYSTEMS]
            mean = comparison.estimate(name, METRICS[0]).value
            bar = "#" * max(1, round(BAR * (mean or 0.0) / (max(means) or 1.0)))
            told = words.estimate(comparison.estimate(name, METRICS[0]), METRICS[0])
            told = words.TOO_SMALL if mean is None else told.partition(" ")[0] + " s"
            cells.append(f"{bar} {told}".ljust(BAR + 12))
        lines.append(f"{name:24}{''.join(cells)}".rstrip())
    return [*lines, "```", ""]


def table(rates: dict[str, float], found: dict[str, Comparison]) -> list[str]:
    """A row per workload and system."""
    lines = [
        "| workload | system | TTFT P95 s | against vllm-v1 | TBT P99 s | against vllm-v1 | preemptions |"
        " ktok recomputed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, comparison in found.items():
        for name in SYSTEMS:
            cells = [f"{kind}, {rates[kind]}/s", f"`{name}`"]
            for metric in METRICS:
                cells.append(words.estimate(comparison.estimate(name, metric), metric))
                cells.append("-" if name == BASELINE else verdict(comparison, name, metric))
            for metric in ("preemptions", "recomputed_tokens"):
                cells.append(words.estimate(comparison.estimate(name, metric), metric))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def answers(found: dict[str, Comparison]) -> list[str]:
    """What the tables say, in words made from them."""
    lines = []
    for system in SYSTEMS[1:]:
        told: dict[str, list[str]] = {"better": [], "worse": []}
        for kind, comparison in found.items():
            for metric in METRICS:
                ratio = comparison.speedup(system, BASELINE, metric)
                what = f"{words.HEADINGS[metric][0]} on {kind}"
                if ratio.is_better:
                    told["better"].append(what)
                elif ratio.is_worse:
                    told["worse"].append(what)
        said = "; ".join(f"{word} in {', '.join(what)}" for word, what in told.items() if what)
        lines.append(f"- `{system}`: {said or 'no difference seen anywhere'}.")
    return lines


def main() -> None:
    """Run all and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="a10-llama-3-8b")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--conversations", type=int, default=120)
    asked = parser.parse_args()
    found: dict[str, Comparison] = {}
    rates: dict[str, float] = {}
    for kind in WORKLOADS:
        print(kind, file=sys.stderr, flush=True)
        rates[kind] = load_of(kind, asked.profile, asked.conversations)
        made = scenario(kind, asked.profile, asked.conversations, rates[kind], 0)
        found[kind] = compare(made, SYSTEMS, runs=asked.runs, workers=1)
    lines = ["# Should I swap, offload or recompute on today's vLLM?", ""]
    lines += figure(found)
    lines += [
        f"Simulated, profile {asked.profile}, {asked.runs} paired runs of {asked.conversations}"
        " conversations, FCFS, the release's defaults ([rules](../vllm_v1.md)). Made by"
        " `python benchmarks/v1_today.py`, whose head has the rules for load and verdicts, written before"
        " any result was seen.",
        "",
        *answers(found),
        "",
    ]
    lines += table(rates, found)
    print("\n".join(lines).rstrip())
    told: dict[str, Any] = {"rates": rates, "profile": asked.profile, "runs": asked.runs}
    print("\n`" + json.dumps(told) + "`")


if __name__ == "__main__":
    main()
