"""Laws of all metrics together: shares lie between 0 and 1, all latencies are of the same turns, and it
does not matter when a workload begins."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from explore.exports import vllm as export_vllm
from explore.exports.samples import finished_of
from explore.studies.compare import compare
from explore.studies.series import series_of, waits_of
from explore.studies.sweep import sweep
from runs.metrics.goodput import Slo
from runs.metrics.summary import summarise
from runs.recording import Recording
from runs.scenario import Scenario, build
from sim.simulate import simulate
from traces.readers.native import write
from traces.workload import Header, Turn, Workload

SECOND = 1_000_000_000
SYSTEMS = (
    "vllm-0.3.3", "vllm-0.3.3-keep", "vllm-0.3.3-recompute", "+reuse", "+async", "fastswitch",
    "fastswitch-chunked", "fastswitch-proactive", "fastswitch-incremental",
)  # fmt: skip
ORDERS: tuple[dict[str, Any], ...] = (
    {"order": "fcfs"},
    {"order": "vtc"},
    {"order": "random", "priority": {"pattern": "random", "frequency": 0.1}},
    {"order": "markov", "priority": {"pattern": "markov", "period_s": 0.7}},
)


@st.composite
def workloads(draw: st.DrawFn) -> list[Turn]:
    """A few conversations; clients that leave, turns due before their parents have ended."""
    turns = []
    for number in range(draw(st.integers(1, 6))):
        name, context = f"s{number}", 0
        begin = draw(st.integers(0, 3000))
        for turn in range(1, draw(st.integers(1, 3)) + 1):
            prompt = context + draw(st.integers(1, 120))
            output = draw(st.integers(0, 60))
            leaves = draw(st.sampled_from([None, None, 0, 1, 400]))
            turns.append(
                Turn(
                    f"{name}/{turn}",
                    name,
                    turn,
                    prompt,
                    output,
                    arrival_ns=begin * 1_000_000,
                    client_id=draw(st.sampled_from([None, "k"])),
                    priority=draw(st.integers(0, 2)),
                    cancel_ns=None if leaves is None else leaves * 1_000_000,
                )
            )
            context = prompt + output
            begin += draw(st.sampled_from([1, 50, 900]))
    return sorted(turns, key=lambda one: one.arrival_ns or 0)


def scenario(path: Path, system: str, order: dict[str, Any], host: int) -> Scenario:
    return build(
        {
            "name": "laws",
            "workload": str(path),
            "profile": "a10-llama-3-8b",
            "system": system,
            **order,
            "pool": {"device_blocks": 24, "host_blocks": host, "aging": "none"},
            "limits": {"max_model_len": 600},
            "profile_values": {"transfer.to_device": 3e8, "transfer.to_host": 3e8},
        },
        "test",
    )


def later(turns: list[Turn], by_s: int) -> list[Turn]:
    return [replace(one, arrival_ns=(one.arrival_ns or 0) + by_s * SECOND) for one in turns]


def played(turns: list[Turn], system: str, order: dict[str, Any], host: int) -> Recording:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.jsonl"
        write(Workload.of(turns, Header(source="by chance", timing="open")), path)
        return simulate(scenario(path, system, order, host))


def numbers_of(found: Recording) -> dict[str, Any]:
    """Every number that a command tells of a run, but moments in time."""
    requests = found.table("requests").to_pydict()
    sessions = [
        at for at, turn in zip(requests["arrival_ns"], requests["turn"], strict=True) if turn == 1
    ]
    warm_up = (max(sessions) - min(requests["arrival_ns"])) / SECOND / 2
    slo = Slo(ttft_s=0.5, tpot_s=0.1)
    done = finished_of(found)
    return {
        "run": summarise(found, slo),
        "steady": summarise(found, slo, warm_up) if warm_up > 0 else None,
        "series": series_of(found, "series"),
        "waits": waits_of(found),
        "exported": export_vllm._aggregates(found),
        "seconds": done.seconds,
    }


#: Each example is a run or two.
FEW = settings(max_examples=40)


@FEW
@given(
    workloads(), st.sampled_from(SYSTEMS), st.sampled_from(ORDERS), st.sampled_from([0, 12, 200])
)
def test_shares_lie_between_nothing_and_all_and_latencies_are_of_the_same_turns(
    turns: list[Turn], system: str, order: dict[str, Any], host: int
) -> None:
    found = played(turns, system, order, host)
    metrics = summarise(found, Slo(ttft_s=1.0))
    for name, value in metrics.items():
        is_share = any(word in name for word in ("share", "utilisation", "jain", "attainment"))
        if (is_share or name.startswith("link_busy")) and value is not None:
            assert 0 <= value <= 1, name
        assert value is None or value >= 0, name
    rows = found.table("requests").to_pylist()
    taken = [row for row in rows if row["status"] != "rejected"]
    got = [row for row in taken if row["first_token_ns"] is not None]
    assert metrics["ttft_samples"] == len(taken) == len(rows) - metrics["rejected"]
    assert metrics["ttft_censored"] == len(taken) - len(got)
    assert metrics["e2e_censored"] == len(taken) - metrics["finished"]
    assert metrics["tbt_samples"] == sum(row["output_tokens"] - 1 for row in got)
    assert metrics["stall_s"] <= metrics["live_s"] <= metrics["makespan_s"] + 1e-9
    assert sum(row["preemptions"] for row in rows) == metrics["preemptions"]
    assert sum(row["parkings"] for row in rows) == metrics["parkings_waiting"]


@FEW
@given(
    workloads(),
    st.sampled_from(SYSTEMS),
    st.sampled_from(ORDERS),
    st.sampled_from([1, 7, 60, 1302, 100_000]),
)
def test_no_number_of_a_run_changes_when_all_arrivals_are_later_by_the_same(
    turns: list[Turn], system: str, order: dict[str, Any], by_s: int
) -> None:
    one, other = (
        numbers_of(played(some, system, order, 30)) for some in (turns, later(turns, by_s))
    )
    for name, told in one.items():
        assert told == other[name], name


def many(by_s: int) -> list[Turn]:
    """240 single turns, four a second, after a pause."""
    return [
        Turn(
            f"r{i}",
            f"r{i}",
            1,
            40 + 7 * (i % 9),
            4 + i % 5,
            arrival_ns=i * SECOND // 4 + by_s * SECOND,
        )
        for i in range(240)
    ]


def studied(folder: Path, by_s: int) -> dict[str, Any]:
    """What compare, in both studies, and a sweep with a warm-up tell."""
    folder.mkdir()
    path = folder / "w.jsonl"
    write(Workload.of(many(by_s), Header(source="by hand", timing="open")), path)
    made = scenario(path, "fastswitch", ORDERS[2], 100)
    systems = ["vllm-0.3.3-keep", "fastswitch"]
    told: dict[str, Any] = {}
    for study in ("terminating", "steady-state"):
        found = compare(made, systems, 2, 1, study=study, slo=Slo(ttft_s=1.0))
        told[study] = [found.results[name][run]["metrics"] for name in systems for run in range(2)]
        told[f"{study} cut"] = None if found.warm_up is None else found.warm_up.cut_s
    spec = {
        "name": "shift",
        "scenario": made.model_dump(mode="json", exclude_unset=True),
        "systems": systems,
        "runs": 1,
        "grid": {"pool.host_blocks": [20, 100]},
        "slo": {"ttft_s": 5.0},
        "warm_up_s": 3,
    }
    told["sweep"] = sweep(spec, folder / "out", workers=1).results.drop(columns="warnings")
    return told


@pytest.mark.full
def test_no_number_of_a_study_changes_when_all_arrivals_are_later_by_the_same(
    tmp_path: Path,
) -> None:
    one, other = (studied(tmp_path / str(by_s), by_s) for by_s in (0, 1302))
    swept, later_ = one.pop("sweep"), other.pop("sweep")
    assert one == other
    assert swept.equals(later_)
    assert (swept["goodput_per_s"] > 3).all()  # once a fifteenth of it
