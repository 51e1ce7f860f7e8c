"""The real run that is public beside its prediction, in one command.

    FASTSWITCH_MEASUREMENTS=FOLDER python benchmarks/real_runs.py

Rule, constants and limits, written down before the run was looked at with this product:

machine      profile `rtx-4090-llama-3.1-8b` as it ships: from LLMServingSim's op tables of the card, with
             host_base 0 (those tables hold every operation), nothing fitted to any run
engine       vLLM 0.19 as recorded: 2,588 blocks of 16, 256 sequences, 2,048 tokens a step, contexts of 32,768;
             here chunked prefill, recompute, nothing kept between turns, prefix sharing by the recorded
             block ids, watermark 0; and, since that engine is there, `vllm-v1` with asynchronous scheduling as
             `fastswitch validate` has it, after the first look
requests     the 300 recorded ones at the engine's own queue times; stamps are the engine's, so first_token is 0
bars         |mean error| of TTFT, TPOT and E2E at most 2 %; of each request's E2E P50 at most 1 %, P99 at most 3 %

What it prints stands in docs/results/2026-12-01-machines.md, whatever it is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from benchmarks.step_cost import DATA
from explore.validation import beside, others

FOLDER = "rtx4090-llama-3.1-8b"
PROFILE = "rtx-4090-llama-3.1-8b"
#: The engine of the first look, before there was `vllm-v1`.
FIRST = {
    "name": "chunked, recompute",
    "base": "+chunked",
    "preemption": "recompute",
    "between_turns": "drop",
    "prefix_sharing": True,
}
BARS = {"mean": 0.02, "p50": 0.01, "p99": 0.03}


def main() -> None:
    if DATA not in os.environ:
        sys.exit(f"{DATA} is not set: the folder of the public measurements (docs/machines.md)")
    folder = Path(os.environ[DATA]) / FOLDER
    run = others.read(folder / "requests.jsonl")
    blocks = {"workload.file": str(folder / "workload-with-block-ids.jsonl.gz")}
    rows = []
    for engine, values in (
        ("first look", {**blocks, "system": FIRST, "pool.watermark": 0.0}),
        ("vllm-v1", blocks),
    ):
        found = beside.lay([run], PROFILE, None, values)
        print(f"{engine}\n{beside.as_text(found)}")
        one = found[0]
        worst = max(abs(one.of(metric).error) for metric in beside.METRICS)
        passed = (
            worst <= BARS["mean"]
            and one.per_request[50] <= BARS["p50"]
            and one.per_request[99] <= BARS["p99"]
        )
        rows.append({"engine": engine, "passed": passed, "runs": beside.as_json(found)})
    print(json.dumps({"bars": BARS, "looks": rows}))


if __name__ == "__main__":
    main()
