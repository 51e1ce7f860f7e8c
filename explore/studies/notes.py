"""What a reader of a comparison must know before believing its tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from explore.studies import precision
from explore.studies.comparison import Comparison
from policy.systems import BASELINE_NAMES, V1
from runs.metrics.served import little_served
from runs.obeyed import UNREAD


def notes_of(comparison: Comparison, unread: Mapping[str, str]) -> list[str]:
    """Everything, what was hardly served first. `unread`: fields that none of the systems reads."""
    return [
        *_little_served(comparison),
        *_engines(comparison),
        *_of_systems(comparison),
        *_warnings(comparison, unread),
        *_replay_notes(comparison),
        *_statistics(comparison),
    ]


def _little_served(comparison: Comparison) -> Iterator[str]:
    """Which systems served nothing, or little, in their worst run."""
    for name in reversed(comparison.systems):
        results = comparison.results[name]
        worst = min(results, key=lambda result: result["metrics"].get("finished") or 0)
        told = little_served(worst["metrics"], worst.get("rejected_because"))
        if told is not None:
            yield f"{name}: {told}"


def _engines(comparison: Comparison) -> Iterator[str]:
    """Where more than memory management differs."""
    order = comparison.results[comparison.systems[0]][0]["order"]
    planners = {name: comparison.results[name][0]["planner"] for name in comparison.systems}
    follow = ", ".join(name for name, kind in planners.items() if kind == "release")
    todays = ", ".join(name for name, kind in planners.items() if kind == V1)
    if todays and order not in ("fcfs", "priority"):
        yield f"{todays}: V1's queues under {order}, which the release does not know."
    if follow and len(set(planners.values())) > 1:
        yield (
            f"Under {order} {follow} follow vLLM 0.3.3's own planner and the others the thirteen"
            " rules, so more than memory management differs."
        )


def _of_systems(comparison: Comparison) -> Iterator[str]:
    for name in comparison.systems:
        verdict = comparison.verdict(name)
        if verdict is not None:
            yield f"{name} did not finish: {verdict}."
        metrics = [result["metrics"] for result in comparison.results[name]]
        if name in BASELINE_NAMES and not any(m["preemptions"] for m in metrics):
            yield (
                f"ATTENTION: {name} never preempts here. Speed-ups over it say nothing about"
                " swapping."
            )


def _warnings(comparison: Comparison, unread: Mapping[str, str]) -> Iterator[str]:
    """Those of the first run, but of fields only what no other system reads either."""
    for line in comparison.results[comparison.systems[0]][0]["warnings"]:
        if UNREAD not in line:
            yield f"Warning: {line}."
    for field, why in unread.items():
        yield f"Warning: {field}: {why}."


def _statistics(comparison: Comparison) -> Iterator[str]:
    """What was counted, and how far intervals can be trusted."""
    if comparison.until_precise:
        yield _precision_note(comparison)
    if comparison.warm_up is not None:
        cut = comparison.warm_up
        yield (
            f"Steady state: turns of the first {cut.cut_s:g} s are not counted (MSER-5 on"
            f" {cut.runs} runs, the same cut for all systems), nor are those after the last session"
            " came. Swapping, utilisation and fairness are of the whole runs."
        )
    if comparison.runs == 1:
        yield "One run, no interval: which system is better cannot be said."
    elif comparison.runs < 5 and not comparison.is_one_run:
        yield f"{comparison.runs} runs: intervals are wide and P99.9 of TTFT rests on few turns."


def _replay_notes(comparison: Comparison) -> list[str]:
    """What several runs over one file say, and what they do not."""
    scenario = comparison.scenario
    if comparison.runs < 2 or scenario.workload.file is None:
        return []
    if scenario.workload.resample:
        return [
            f"One trace, resampled: every run draws {scenario.workload.file}'s sessions anew, so intervals"
            " say how far another trace with the same arrivals may be off."
        ]
    if comparison.is_one_run:
        return [
            f"One trace, no interval: {comparison.runs} runs of {scenario.workload.file} are one run, since"
            " nothing in them is drawn. workload.resample draws its sessions anew for every run."
        ]
    return [
        f"One trace: the runs redraw priorities and the like, not {scenario.workload.file}, so intervals"
        " say how far those draws matter, and nothing of other traces. workload.resample draws its"
        " sessions anew."
    ]


def _precision_note(comparison: Comparison) -> str:
    """Which intervals are narrow, and which are not and why."""
    found = precision.widths(comparison.results)
    wide = [f"{w.system} {w.metric} {w.relative:.0%}" for w in found if w.is_wide]
    unknown = sorted({w.metric for w in found if w.relative is None})
    told = f"{comparison.runs} runs, added until intervals were narrow (5 % of a mean or median,"
    told += " 10 % of a P95 or P99, 20 % of a P99.9)."
    if wide:
        told += f" Still wider after {comparison.runs}, the most: {', '.join(wide[:5])}"
        told += f" and {len(wide) - 5} more." if len(wide) > 5 else "."
    if unknown:
        told += f" n too small in some run: {', '.join(unknown)}; longer runs would tell."
    return told
