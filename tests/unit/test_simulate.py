"""One call from scenario to recording: what it says of itself, what it warns of and refuses."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest

from calibrate.profile import PROFILES
from policy.errors import ConfigError, InvariantError
from policy.orders.base import Order
from policy.scheduler import Scheduler
from runs import recording, serving
from runs.recording import SCHEMAS
from runs.scenario import Scenario
from runs.serving import FULL_EVERY, checker, make_scheduler
from sim.simulate import calm_collector, simulate
from tests.helpers.bench import scenario_of
from traces.readers.native import write
from traces.workload import Header, Turn, Workload


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    """Three turns, the last of which arrives while the second still runs."""
    path = tmp_path / "w.jsonl"
    turns = [Turn(n, n, 1, 100, 30, arrival_ns=at) for n, at in (("a", 0), ("b", 0), ("c", 9000))]
    write(Workload.of(turns, Header(source="by hand")), path)
    return scenario_of(workload=str(path))


class Backwards(Order):
    """A user's own order."""

    def key(self, request: Any, now_ns: int) -> tuple[int, ...]:
        return (-ord(request.request_id[0]),)


# ---------------------------------------------------------------------- what it gives


def test_a_recording_in_memory_and_one_in_a_folder_are_the_same(
    scenario: Scenario, tmp_path: Path
) -> None:
    inside = simulate(scenario, decisions=True)
    outside = simulate(scenario, decisions=True, out=tmp_path / "run")
    loaded = recording.load(tmp_path / "run")
    for other in (outside, loaded):
        assert other.summary["metrics"] == inside.summary["metrics"]
        assert list(other.decision_lines()) == inside.decisions
        assert all(other.table(name).equals(inside.table(name)) for name in SCHEMAS)
    assert outside.folder == tmp_path / "run"


def test_the_summary_says_what_was_run(scenario: Scenario) -> None:
    found = simulate(scenario).summary
    expected = {
        "format": recording.FORMAT,
        "machine": "simulated",
        "scenario": "bench",
        "system": "fastswitch",
        "order": "priority",
        "planner": "rules",
        "profile": "a10-llama-3-8b",
        "device_blocks": 10,
        "host_blocks": 100,
        "block_size": 64,
        "warnings": [],
        "verdict": None,
    }
    assert {key: found[key] for key in expected} == expected
    assert found["workload"]["rows"] == found["metrics"]["rows"] == 3
    assert found["workload"]["source"] == "by hand"
    assert found["switches"]["reuse"] is True
    assert {"transfer.per_call", "step.base"} <= set(found["assumptions"])


def test_under_fcfs_the_baseline_follows_the_release_and_the_summary_says_so(
    scenario: Scenario,
) -> None:
    chosen = scenario.with_values({"system": "vllm-0.3.3", "order": "fcfs"})
    assert simulate(chosen).summary["planner"] == "release"


def test_the_largest_step_is_the_largest_that_was_recorded(scenario: Scenario) -> None:
    found = simulate(scenario)
    steps = found.table("steps").to_pydict()
    assert found.summary["largest"] == {
        "batch": max(steps["batch"]),
        "kv_tokens": max(steps["kv_tokens"]),
        "prefill_tokens": max(steps["prefill_tokens"]),
    }


def test_a_users_own_order_decides(scenario: Scenario) -> None:
    one_at_a_time = scenario.with_values({"limits.max_num_seqs": 1})
    for order, first in ((None, "a"), (Backwards(), "b")):
        found = simulate(one_at_a_time, order=order)
        assert found.table("requests").to_pydict()["request_id"][0] == first
    assert found.summary["order"] == f"{Backwards.__module__}:Backwards"
    facts = found.summary["provenance"]["order"]
    assert facts["name"] == found.summary["order"] and len(facts["source_hash"]) == 16


def test_the_same_inputs_make_the_same_recording(scenario: Scenario) -> None:
    one, other = simulate(scenario, decisions=True), simulate(scenario, decisions=True)
    assert one.decisions == other.decisions
    assert one.tables == other.tables
    assert one.summary == other.summary


# ---------------------------------------------------------------------- warnings


def profile_valid_to(folder: Path, **limits: int) -> str:
    data = json.loads((PROFILES / "a10-llama-3-8b.json").read_text())
    data["valid"].update(limits)
    path = folder / "narrow.json"
    path.write_text(json.dumps(data))
    return str(path)


@pytest.mark.parametrize(
    ("limit", "warning"),
    [
        ({"max_batch": 1}, "batch reached 3, the profile is valid to 1: extrapolated"),
        (
            {"max_prefill_tokens": 199},
            "prefill tokens of a step reached 200, the profile is valid to 199: extrapolated",
        ),
        ({"max_kv_tokens": 300}, "KV tokens of a step reached"),
    ],
)
def test_a_run_outside_the_profiles_range_warns(
    limit: dict[str, int], warning: str, scenario: Scenario, tmp_path: Path
) -> None:
    narrow = scenario.with_values({"profile": profile_valid_to(tmp_path, **limit)})
    (found,) = simulate(narrow).summary["warnings"]
    assert found.startswith(warning)


def test_a_run_just_inside_the_profiles_range_does_not_warn(
    scenario: Scenario, tmp_path: Path
) -> None:
    largest = simulate(scenario).summary["largest"]
    limits = {f"max_{name}": seen for name, seen in largest.items()}
    exact = scenario.with_values({"profile": profile_valid_to(tmp_path, **limits)})
    assert simulate(exact).summary["warnings"] == []


# ---------------------------------------------------------------------- refusals


def test_a_profile_without_room_for_kv_is_refused(scenario: Scenario) -> None:
    values = {"memory.utilisation": 0.1}
    none = scenario.with_values({"pool.device_blocks": None, "profile_values": values})
    with pytest.raises(ConfigError, match=r"pool\.device_blocks"):
        simulate(none)


def test_an_unknown_check_is_refused(scenario: Scenario) -> None:
    with pytest.raises(ConfigError, match="check: 'some' is not one of off, counts, full"):
        simulate(scenario, check="some")


class Losing(Order):
    """A planted bug: it takes a block away from whoever leaves."""

    def left(self, request: Any, now_ns: int) -> None:
        request.context.device.blocks.pop()


def losing(*given: Any) -> Scheduler:
    made = make_scheduler(*given)
    made.desk.order = Losing()
    return made


@pytest.mark.parametrize(("check", "raises"), [("full", True), ("counts", True), ("off", False)])
def test_checks_stop_a_run_that_loses_a_block_and_leave_nothing_behind(
    check: str, raises: bool, scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.simulate.make_scheduler", losing)
    leaky = scenario.with_values({"system": "vllm-0.3.3"})
    out = tmp_path / "run"
    if raises:
        with pytest.raises(InvariantError):
            simulate(leaky, out=out, check=check, decisions=True)
        gc.collect()  # a file left open is a warning, so an error, here
    else:
        simulate(leaky, out=out, check=check)
    left = [path.name for path in tmp_path.iterdir() if path.name != "w.jsonl"]
    assert left == ([] if raises else ["run"])


def test_counts_are_checked_each_time_and_everything_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(serving, "check_counts", lambda _s: calls.append("counts"))
    monkeypatch.setattr(serving, "check_integrity", lambda _s: calls.append("full"))
    check = checker("counts")
    assert check is not None
    for _ in range(2 * FULL_EVERY):
        check(None)  # type: ignore[arg-type]
    assert [i + 1 for i, call in enumerate(calls) if call == "full"] == [FULL_EVERY, 2 * FULL_EVERY]
    assert len(calls) == 2 * FULL_EVERY
    assert checker("off") is None


def test_the_garbage_collector_is_as_before_also_after_an_error() -> None:
    before = gc.get_threshold()
    with calm_collector():
        assert gc.get_threshold() != before
    assert gc.get_threshold() == before
    with pytest.raises(KeyError), calm_collector():
        raise KeyError
    assert gc.get_threshold() == before
