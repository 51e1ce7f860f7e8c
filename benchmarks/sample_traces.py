"""Real traces through the simulator: rows in and out, load, swaps.

    FASTSWITCH_TRACES=FOLDER python benchmarks/sample_traces.py [TRACE ...] [--check full]

FOLDER holds files whose names begin with sharegpt_turn_lengths, azure_llm_2023_conv,
mooncake_conversation_trace and claude_code_agentic; a missing one is named and skipped. Every row of
a trace must end finished or rejected, or this fails. What a trace lacks and had to be assumed, and
what the simulator warns of, is printed above its rows. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from runs.recording import Recording
from runs.scenario import Scenario, build
from sim.simulate import simulate
from traces.readers.catalog import read_workload

COMMON: dict[str, Any] = {"priority": {"pattern": "markov", "frequency": 0.04}}

#: Trace -> what it is served on. Rates bring sessions without arrival times near what the machine
#: can serve; a trace with times of its own brings its own load.
TRACES: dict[str, dict[str, Any]] = {
    "sharegpt_turn_lengths": {
        "workload": {"rate": 0.11, "think": "human"},
        "profile": "a10-llama-3-8b",
        "limits": {"max_model_len": 8192},
    },
    "azure_llm_2023_conv": {
        "workload": {},
        "profile": "h100-llama-3-8b",
        "pool": {"device_blocks": 4096},  # an H100's own pool would hold everybody
        "limits": {"max_model_len": 8192},
    },
    # Beyond 8,192 tokens this is Llama 3.1's window; the shape of the KV is the same.
    "mooncake_conversation_trace": {
        "workload": {},
        "profile": "h100-llama-3-8b",
        "limits": {"max_model_len": 131_072},
    },
    "claude_code_agentic": {
        "workload": {"rate": 0.0009, "think": "human"},  # some rows have an empty think time
        "profile": "h100-llama-3-8b",
        "limits": {"max_model_len": 131_072},
    },
}
SYSTEMS = ("paged-keep", "fastswitch")


def find(folder: Path, stem: str) -> Path | None:
    """The file of a trace, packed or not."""
    found = sorted(folder.glob(f"{stem}*"))
    return found[0] if found else None


def scenario_of(stem: str, path: Path, system: str) -> Scenario:
    """One trace on one system."""
    spec = {**COMMON, **TRACES[stem], "name": stem, "system": system}
    spec["workload"] = {"file": str(path), **spec["workload"]}
    return build(spec, stem)


def assumed(stem: str, path: Path) -> str:
    """How much of the trace's timing is ours: what it lacks, counted, and what filled it in."""
    workload = read_workload(path)
    rows = starts = thinks = 0
    for turn in workload:
        rows += 1
        if turn.arrival_ns is None and turn.think_ns is None and turn.gap_ns is None:
            if turn.turn == 1 and turn.parent_id is None:
                starts += 1
            else:
                thinks += 1
    given = TRACES[stem]["workload"]
    parts = [f"{rows} rows"]
    if starts:
        parts.append(f"{starts} sessions without a start: Poisson, {given['rate']:g} per second")
    if thinks:
        parts.append(f"{thinks} turns without a think time: law `{given['think']}`")
    if not starts and not thinks:
        parts.append("times are the trace's own")
    return "; ".join(parts)


def rejected(recorded: Recording) -> str:
    """Why rows were rejected, numbers left out, most frequent first."""
    table = recorded.table("requests", ["status", "reason"]).to_pydict()
    reasons = Counter(
        re.sub(r"\d+", "N", reason)
        for status, reason in zip(table["status"], table["reason"], strict=True)
        if status == "rejected"
    )
    return "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())


def run(stem: str, path: Path, system: str, check: str) -> tuple[dict[str, Any], list[str]]:
    """One row of the table, and what must be said about it."""
    begin = time.process_time()
    recorded = simulate(scenario_of(stem, path, system), check=check)
    summary = recorded.summary
    metrics = summary["metrics"]
    ended = metrics["finished"] + metrics["rejected"]
    if ended != metrics["rows"]:
        sys.exit(f"{stem}: {metrics['rows']} rows, {ended} finished or rejected")
    notes = [f"{system}: {line}" for line in summary["warnings"]]
    if metrics["rejected"]:
        notes.append(f"{system}: rejected {rejected(recorded)}")
    row = {
        "trace": stem,
        "system": system,
        "profile": summary["profile"],
        "cap": summary["max_model_len"],
        "blocks": f"{summary['device_blocks']}+{summary['host_blocks']}",
        "rows": metrics["rows"],
        "finished": metrics["finished"],
        "rejected": metrics["rejected"],
        "offered tok/s": metrics["offered_tok_s"],
        "backlog %": 100 * (metrics["backlog_share"] or 0),
        "of a backlog tok/s": metrics["capacity_tok_s"],
        "TTFT P50 s": metrics["ttft_p50_s"],
        "TTFT P99 s": metrics["ttft_p99_s"],
        "TBT P99.9 s": metrics["tbt_p999_s"],
        "tok/s": metrics["throughput_tok_s"],
        "preemptions": metrics["preemptions"],
        "of them recompute": metrics["preemptions_recompute"],
        "blocks out": metrics["blocks_out"],
        "blocks in": metrics["blocks_in"],
        "mean run": metrics["mean_run_blocks"],
        "stall %": 100 * metrics["stall_share"],
        "GPU %": 100 * metrics["gpu_utilisation"],
        "cached tokens": metrics["cached_tokens"],
        "CPU s": round(time.process_time() - begin, 1),
    }
    return row, notes


def cell(value: object) -> str:
    """Short, and `-` where nothing is known."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("traces", nargs="*", metavar="TRACE", help=f"of {', '.join(TRACES)}")
    parser.add_argument("--check", default="counts", choices=["off", "counts", "full"])
    options = parser.parse_args()
    for stem in options.traces:
        if stem not in TRACES:
            parser.error(f"{stem} is not one of {', '.join(TRACES)}")
    folder = Path(os.environ.get("FASTSWITCH_TRACES", "."))
    found: dict[str, dict[str, int]] = {}
    for stem in options.traces or TRACES:
        path = find(folder, stem)
        if path is None:
            print(f"{stem}: not in FASTSWITCH_TRACES, skipped")
            continue
        print(f"\n{stem}: {assumed(stem, path)}")
        results = [run(stem, path, system, options.check) for system in SYSTEMS]
        for line in (note for _, notes in results for note in notes):
            print(f"  {line}")
        print(f"| {' | '.join(results[0][0])} |")
        for row, _ in results:
            print(f"| {' | '.join(map(cell, row.values()))} |", flush=True)
            found[f"{stem}_{row['system']}"] = {
                key: row[key] for key in ("rows", "finished", "rejected")
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
