"""Real traces through the simulator: rows in and out, load, swaps.

    FASTSWITCH_TRACES=/folder/with/traces python benchmarks/sample_traces.py [--check full]

The folder holds files whose names begin with sharegpt_turn_lengths, azure_llm_2023_conv,
mooncake_conversation_trace and claude_code_agentic (docs/workloads.md says where to get them);
missing ones are named and skipped. Every row must end finished or rejected, or this fails.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from sim.simulate import simulate
from traces.scenario import build

COMMON: dict[str, Any] = {"priority": {"pattern": "markov", "frequency": 0.04}}

#: Trace -> what it is served on. Context caps are the model's window, as each line says.
TRACES: dict[str, dict[str, Any]] = {
    "sharegpt_turn_lengths": {
        "workload": {"rate": 0.2, "think": "human"},
        "profile": "a10-llama-3-8b",
        "limits": {"max_model_len": 8192},
    },
    "azure_llm_2023_conv": {
        "workload": {},
        "profile": "h100-llama-3-8b",
        "pool": {"device_blocks": 4096},
        "limits": {"max_model_len": 8192},
    },
    "mooncake_conversation_trace": {
        "workload": {},
        "profile": "h100-llama-3-8b",
        "limits": {"max_model_len": 131_072},
    },
    "claude_code_agentic": {
        "workload": {"rate": 0.002},
        "profile": "h100-llama-3-8b",
        "limits": {"max_model_len": 131_072},
    },
}
SYSTEMS = ("vllm-0.3.3-keep", "fastswitch")


def find(folder: Path, stem: str) -> Path | None:
    """The file of a trace, packed or not."""
    found = sorted(folder.glob(f"{stem}*"))
    return found[0] if found else None


def run(stem: str, path: Path, system: str, check: str) -> dict[str, Any]:
    """One trace on one system; one row of the table."""
    spec = {**COMMON, **TRACES[stem], "name": stem, "system": system}
    spec["workload"] = {"file": str(path), **spec["workload"]}
    begin = time.process_time()
    summary = simulate(build(spec, stem), check=check).summary
    metrics = summary["metrics"]
    ended = metrics["finished"] + metrics["rejected"]
    if ended != metrics["rows"]:
        sys.exit(f"{stem}: {metrics['rows']} rows, {ended} finished or rejected")
    return {
        "trace": stem,
        "system": system,
        "profile": summary["profile"],
        "cap": summary["max_model_len"],
        "rows": metrics["rows"],
        "finished": metrics["finished"],
        "rejected": metrics["rejected"],
        "offered_tok_s": metrics["offered_tok_s"],
        "capacity_tok_s": metrics["capacity_tok_s"],
        "ttft_p50_s": metrics["ttft_p50_s"],
        "ttft_p99_s": metrics["ttft_p99_s"],
        "tbt_p999_s": metrics["tbt_p999_s"],
        "preemptions": metrics["preemptions"],
        "blocks_out": metrics["blocks_out"],
        "blocks_in": metrics["blocks_in"],
        "cached_tokens": metrics["cached_tokens"],
        "warnings": summary["warnings"],
        "cpu_s": round(time.process_time() - begin, 1),
    }


def cell(value: object) -> str:
    """Short, and `-` where nothing is known."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", default="counts", choices=["off", "counts", "full"])
    options = parser.parse_args()
    folder = Path(os.environ.get("FASTSWITCH_TRACES", "."))
    rows: list[dict[str, Any]] = []
    for stem in TRACES:
        path = find(folder, stem)
        if path is None:
            print(f"{stem}: not in {folder}, skipped")
            continue
        for system in SYSTEMS:
            row = run(stem, path, system, options.check)
            shown = {k: v for k, v in row.items() if k != "warnings"}
            if not rows:
                print("  ".join(shown))
            print("  ".join(map(cell, shown.values())), flush=True)
            for line in row["warnings"]:
                print(f"    {line}")
            rows.append(row)
    print(json.dumps({f"{r['trace']}_{r['system']}": r["finished"] for r in rows}))


if __name__ == "__main__":
    main()
