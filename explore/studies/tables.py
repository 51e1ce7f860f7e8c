"""`compare` as text, as JSON (and back) and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from explore import words
from explore.studies.comparison import Comparison, Load
from explore.studies.estimates import SPEEDUPS
from explore.studies.measure import measure_of
from explore.studies.warm_up import WarmUp
from explore.studies.worth import worth
from runs.scenario import build


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        first = row[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([first, *rest]).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def as_text(comparison: Comparison) -> str:
    """Everything a terminal should see."""
    parts = [words.provenance(comparison), words.composition(comparison), words.load(comparison)]
    for title, metrics in words.TABLES:
        names = words.shown(metrics, comparison.all_metrics)
        parts.append(f"\n{title}\n" + _metric_table(comparison, names))
        parts.extend(f"  {line}" for line in words.explained(names))
    for baseline in comparison.baselines:
        if len(comparison.systems) > 1:
            parts.append(f"\nTimes better than {baseline}\n" + speedup_table(comparison, baseline))
            parts.append(
                f"  {words.SURE} the difference is sure: paired t test, Holm over the systems"
            )
    found = worth(comparison)
    if found:
        parts.append("\nWhat each mechanism is worth")
        parts.extend(
            f"  {item.mechanism} ({item.system} against {item.against}): {item.words}"
            for item in found
        )
    parts.extend(f"\n{note}" for note in comparison.notes)
    return "\n".join(parts)


def _metric_table(comparison: Comparison, metrics: Sequence[str]) -> str:
    rows = [
        [name, *(words.estimate(comparison.estimate(name, m), m) for m in metrics)]
        for name in comparison.systems
    ]
    return text_table(["system", *map(words.heading, metrics)], rows)


def speedup_table(comparison: Comparison, baseline: str) -> str:
    """Paired speed-ups with intervals."""
    rows = [
        [name, *(words.marked(comparison.speedup(name, baseline, m)) for m in _IN_TERMINALS)]
        for name in comparison.systems
        if name != baseline
    ]
    return text_table(["system", *(words.HEADINGS[m][0] for m in _IN_TERMINALS)], rows)


#: Speed-ups that fit a terminal; the others are in the page and in compare.json.
_IN_TERMINALS = tuple(m for m in SPEEDUPS if m not in ("ttft_p50_s", "tbt_p99_s"))


FORMAT = "fastswitch-compare/3"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """compare.json: everything, so that `from_json` can read it; provenance in a key of its own."""
    systems = {}
    for name in comparison.systems:
        results = comparison.results[name]
        metrics = sorted(results[0]["metrics"])
        systems[name] = {
            "switches": results[0]["switches"],
            "planner": results[0]["planner"],
            "verdict": comparison.verdict(name),
            "estimates": {m: comparison.estimate(name, m).as_json() for m in metrics},
            "runs": [
                {key: value for key, value in result.items() if key != "provenance"}
                for result in results
            ],
            "differences": {
                baseline: {m: comparison.difference(name, baseline, m).as_json() for m in SPEEDUPS}
                for baseline in comparison.baselines
                if baseline != name
            },
            "speedups": {
                baseline: {m: asdict(comparison.speedup(name, baseline, m)) for m in SPEEDUPS}
                for baseline in comparison.baselines
                if baseline != name
            },
        }
    first = comparison.results[comparison.systems[0]][0]
    return {
        "format": FORMAT,
        "study": comparison.study,
        "until_precise": comparison.until_precise,
        "measure": comparison.measure.as_json(),
        "warm_up": None if comparison.warm_up is None else asdict(comparison.warm_up),
        "scenario": comparison.scenario.model_dump(mode="json"),
        "workload": first["workload"],
        "profile": first["profile"],
        "profile_kind": first["profile_kind"],
        "assumptions": comparison.profile_assumptions,
        "load": {**asdict(comparison.load), "share": comparison.load.share},
        "systems": systems,
        "worth": [
            {
                "mechanism": item.mechanism,
                "system": item.system,
                "against": item.against,
                "words": item.words,
                "ratios": {m: asdict(r) for m, r in item.ratios.items()},
            }
            for item in worth(comparison)
        ],
        "notes": comparison.notes,
        "provenance": comparison.provenance,
    }


def from_json(data: dict[str, Any]) -> Comparison:
    """What `as_json` was given. Raises KeyError, TypeError, ValueError or ConfigError for other data."""
    if data["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT}; compare again")
    systems = data["systems"]
    load = {name: data["load"][name] for name in ("offered", "capacity", "baseline", "words")}
    results = {name: list(system["runs"]) for name, system in systems.items()}
    counts = {len(runs) for runs in results.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError("its systems have different numbers of runs")
    return Comparison(
        build(data["scenario"], "scenario"),
        tuple(systems),
        counts.pop(),
        results,
        Load(**load),
        data["assumptions"],
        data["provenance"],
        data["notes"],
        measure_of(data["measure"]),
        TypeAdapter(WarmUp | None).validate_python(data["warm_up"]),
        data["until_precise"],
    )


def as_csv(comparison: Comparison) -> str:
    """compare.csv: one line per system, run and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["system", "run", "metric", "value"])
    for name in comparison.systems:
        for run, result in enumerate(comparison.results[name]):
            for metric, value in sorted(result["metrics"].items()):
                writer.writerow([name, run, metric, "" if value is None else value])
    return out.getvalue()
