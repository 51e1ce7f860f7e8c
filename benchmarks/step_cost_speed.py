"""What a step-cost form costs the simulator: output tokens per second of CPU time under each.

    python benchmarks/step_cost_speed.py [--repeats N]

One scenario (chat conversations, Markov priorities, a pool that is short) on an H100 under the linear form
and under `tokens/1`, in turn; the best of N repeats each. Compare only figures of one run of this script.
"""

from __future__ import annotations

import argparse
import json
import time

from runs.scenario import Scenario, build
from sim.simulate import simulate

PROFILES = {"linear": "h100-llama-3-8b", "tokens/1": "h100-sxm-llama-3.1-8b"}


def scenario(profile: str) -> Scenario:
    return build(
        {
            "name": "step-cost-speed",
            "workload": {
                "generator": "chat",
                "conversations": 150,
                "rate": 3.0,
                "think": "human",
                "context_cap": 8192,
            },
            "system": "fastswitch",
            "order": "markov",
            "priority": {"frequency": 0.04},
            "profile": profile,
            "pool": {"device_blocks": 4000, "aging": "none"},
            "limits": {"max_model_len": 8192},
        },
        "benchmarks/step_cost_speed.py",
    )


def tokens_per_s(profile: str) -> float:
    begun = time.process_time()
    recorded = simulate(scenario(profile), check="off")
    spent = time.process_time() - begun
    tokens: int = sum(recorded.table("requests")["output_tokens"].to_pylist())
    return tokens / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    found: dict[str, list[float]] = {form: [] for form in PROFILES}
    for _ in range(repeats):
        for form, profile in PROFILES.items():
            found[form].append(tokens_per_s(profile))
    for form, rates in found.items():
        print(f"{form:<10} best {max(rates):>10,.0f}   all {', '.join(f'{r:,.0f}' for r in rates)}")
    ratio = max(found["tokens/1"]) / max(found["linear"])
    print(json.dumps({"ratio": round(ratio, 3), "tokens_per_cpu_s": found}))


if __name__ == "__main__":
    main()
