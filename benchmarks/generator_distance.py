"""How near a fitted generator is to sessions that it was not fitted on.

    FASTSWITCH_TRACES=FOLDER python benchmarks/generator_distance.py [--splits N] [TRACE ...]

For each trace and split: fit on a random half of the sessions, generate, and take the two-sample
Kolmogorov-Smirnov distance to the other half; beside it that between the two halves. Near: at most
.05, or twice the distance of the halves. Inter-arrivals are the law's of all sessions, and nothing
is promised of them. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks.traces_found import STEMS, open_trace
from policy.errors import FastSwitchError
from traces.describing.columns import collect
from traces.generators.fit import held_out_distances


def of_trace(stem: str, splits: int) -> dict[str, dict[str, Any]] | None:
    """The worst split of each quantity, by its share of what is allowed; None if not readable."""
    workload = open_trace(stem)
    if workload is None:
        return None
    worst: dict[str, dict[str, Any]] = {}
    try:
        columns = collect(workload)
        for seed in range(splits):
            for name, row in held_out_distances(columns, stem, seed).items():
                allowed = max(0.05, 2 * row["halves"])
                row["of_allowed"] = round(row["generator"] / allowed, 3)
                row["near_in"] = worst.get(name, {}).get("near_in", 0) + row["close"]
                if name in worst and row["of_allowed"] <= worst[name]["of_allowed"]:
                    worst[name]["near_in"] = row["near_in"]
                else:
                    worst[name] = row
    except FastSwitchError as error:
        print(f"{stem}: {error}")
        return None
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("traces", nargs="*", metavar="TRACE", help=f"of {', '.join(STEMS)}")
    parser.add_argument("--splits", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    print("| trace | quantity | values | generator | two halves | near in splits |")
    print("| --- | --- | --- | --- | --- | --- |")
    for stem in options.traces or STEMS:
        rows = of_trace(stem, options.splits)
        for name, row in (rows or {}).items():
            remark = "" if row["promised"] else " (not promised)"
            print(
                f"| {stem} | {name}{remark} | {row['values']} | {row['generator']:.3f} |"
                f" {row['halves']:.3f} | {row['near_in']} of {options.splits} |",
                flush=True,
            )
        if rows is not None:
            found[stem] = rows
    missed = [
        f"{stem}: {name}"
        for stem, rows in found.items()
        for name, row in rows.items()
        if row["promised"] and row["near_in"] < options.splits
    ]
    print(f"\nnot near in every split: {'; '.join(missed) or 'none'}")
    print(json.dumps({"splits": options.splits, "not_near": missed, "traces": found}))


if __name__ == "__main__":
    main()
