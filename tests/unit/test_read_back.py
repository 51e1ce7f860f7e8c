"""Every format that we write is read back: workloads, recordings and exports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastswitch
from explore.exports.export import WRITERS, export
from policy.errors import InputError
from runs import recording
from runs.recording import SCHEMAS, Recording
from runs.scenario import Scenario, build, merge
from sim.simulate import simulate
from traces.generators.catalog import make_generator
from traces.randomness import Streams
from traces.readers.catalog import read_workload
from traces.readers.native import SUFFIXES, write
from traces.workload import Header, Turn, Workload
from traces.workload_spec import WorkloadSpec

SMALL: dict[str, Any] = {
    "workload.generator": "chat",
    "workload.conversations": 8,
    "workload.rate": 4.0,
    "workload.think": "none",
    "workload.context_cap": 700,
    "profile": "a10-llama-3-8b",
    "order": "random",
    "priority.frequency": 0.2,
    "pool.device_blocks": 56,
    "pool.host_blocks": 120,
}
PREFIXES = {"workload.hash_block": 16, "workload.system_tokens": 64, "system": "fastswitch-prefix"}
CLIENTS = {
    "workload.arrivals": {"law": "clients", "clients": 3},
    "workload.priority": {"shares": [0.5, 0.5]},
    "order": "priority",
    "priority.frequency": None,
}
AGENTS = {"workload.generator": "agent", "workload.context_cap": 17_000, "pool.device_blocks": 4000}
#: Every kind of workload that a run can serve, as changes to SMALL.
KINDS = [{}, PREFIXES, CLIENTS, AGENTS, {"workload.concurrency": 2}, {"last_turn_known": True}]


def scenario(*over: dict[str, Any]) -> Scenario:
    values = dict(SMALL)
    for part in over:
        values.update(part)
    return build(merge({}, {k: v for k, v in values.items() if v is not None}), "test")


def tables(run: Recording, but: tuple[str, ...] = ()) -> str:
    return json.dumps({n: run.table(n).to_pydict() for n in SCHEMAS if n not in but})


def as_workload(kind: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same scenario with what is at `path` as its workload."""
    values = {k: v for k, v in {**SMALL, **kind}.items() if not k.startswith("workload.")}
    kept = {"workload.concurrency": kind.get("workload.concurrency")}
    return {
        **dict.fromkeys(SMALL),
        **dict.fromkeys(kind),
        **values,
        **kept,
        "workload.file": str(path),
    }


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind), "chat"))
def test_a_recording_is_a_workload_that_gives_the_same_tables(
    tmp_path: Path, kind: dict[str, Any]
) -> None:
    first = simulate(scenario(kind), out=tmp_path / "run")
    again = simulate(scenario(as_workload(kind, tmp_path / "run")), out=tmp_path / "again")
    assert tables(again) == tables(first)
    assert again.summary["workload"]["source"] == first.summary["workload"]["source"]
    more = simulate(scenario(as_workload(kind, tmp_path / "again" / "workload.parquet")))
    assert tables(more, ("workload",)) == tables(first, ("workload",))


def test_an_open_trace_with_a_cancellation_is_served_again_from_its_recording(
    tmp_path: Path,
) -> None:
    rows = [
        Turn("a/1", "a", 1, 300, 200, arrival_ns=0, cancel_ns=1_500_000_000),
        Turn("b/1", "b", 1, 300, 0, arrival_ns=1_000_000_000),
        Turn("a/2", "a", 2, 400, 20, arrival_ns=2_000_000_000, parent_prefix_tokens=310),
    ]
    write(Workload.of(rows, Header(timing="open")), tmp_path / "w.jsonl")
    first = simulate(scenario(as_workload({}, tmp_path / "w.jsonl")), out=tmp_path / "run")
    again = simulate(scenario(as_workload({}, tmp_path / "run")), out=tmp_path / "again")
    assert tables(again) == tables(first)
    assert list(read_workload(tmp_path / "run")) == rows


def test_a_folder_that_is_no_recording_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder without workload\.parquet"):
        read_workload(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    folder = tmp_path_factory.mktemp("exports") / "run"
    simulate(scenario(), out=folder)
    return recording.load(folder)


#: Exports that hold requests; the others are refused in words that name the way out.
WITH_REQUESTS = ("aiperf", "vllm")
WAY_OUT = {"perfetto": "the folder of the run", "llm-d": "its export as vllm or aiperf"}


def test_every_export_is_one_of_the_two() -> None:
    assert {*WITH_REQUESTS, *WAY_OUT} == set(WRITERS)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("name", WITH_REQUESTS)
def test_an_export_of_requests_is_a_workload_of_the_same_requests(
    tmp_path: Path, run: Recording, name: str, packed: str
) -> None:
    path = tmp_path / f"export.json{packed}"
    export(run, name, path)
    served = run.table("requests").to_pylist()
    wanted = sorted((r["arrival_ns"], r["input_tokens"], r["output_tokens"]) for r in served)
    first = wanted[0][0] if name == "vllm" else 0  # whose clock begins with the first
    found = sorted((t.arrival_ns, t.input_tokens, t.output_tokens) for t in read_workload(path))
    assert found == [(at - first, given, got) for at, given, got in wanted]
    if name == "aiperf":
        sessions = sorted((r["session_id"], r["turn"]) for r in served)
        assert sorted((t.session_id, t.turn) for t in read_workload(path)) == sessions
    assert CliRunner().invoke(fastswitch.main, ["trace", "describe", str(path)]).exit_code == 0


@pytest.mark.parametrize("name", WAY_OUT)
def test_an_export_without_requests_says_so_and_the_way_out(
    tmp_path: Path, run: Recording, name: str
) -> None:
    path = tmp_path / "export.json"
    export(run, name, path)
    with pytest.raises(InputError, match=WAY_OUT[name]):
        read_workload(path)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    generator=st.sampled_from(["chat", "agent", "code"]),
    suffix=st.sampled_from(SUFFIXES),
    block=st.sampled_from([None, 16, 64]),
    seed=st.integers(0, 99),
)
def test_every_generated_workload_is_read_back_from_every_container(
    tmp_path: Path, generator: str, suffix: str, block: int | None, seed: int
) -> None:
    spec = WorkloadSpec(generator=generator, conversations=5, rate=1.0, hash_block=block)
    made = make_generator(spec).workload(Streams(seed, 0))
    write(made, tmp_path / f"w{suffix}")
    again = read_workload(tmp_path / f"w{suffix}")
    assert (again.header, list(again)) == (made.header, list(made))
    assert all(t.turn == 1 or t.parent_prefix_tokens is not None for t in again)
