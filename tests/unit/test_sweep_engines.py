"""Engines: what a bad trial costs, and what a missing cluster or library says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from explore.studies import trial
from explore.studies.semantics import Inputs, canonical, key_of, portable
from explore.studies.trial import run_trial
from explore.studies.workers import base as engines
from explore.studies.workers import ray_cluster as ray_engine
from explore.studies.workers.base import WorkerSettings, make_workers, run_watched
from explore.studies.workers.local import MAX_ATTEMPTS, Local
from policy.errors import ConfigError, FaultError
from runs.scenario import build
from tests.helpers.sweeps import SCENARIO

#: A worker that does what the name of its trial says, with no simulator in it.
PROGRAM = """
    import json, os, signal, sys, time
    print("ready", flush=True)
    for line in sys.stdin:
        key = json.loads(line)["key"]
        if key.startswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        if key.startswith("leave"):
            sys.exit(7)
        if key.startswith("hang"):
            signal.pause()
        if key.startswith("fail"):
            print(json.dumps({"key": key, "failed": os.getpid()}), flush=True)
            continue
        if key.startswith("once") and not os.path.exists(key[5:]):
            open(key[5:], "w").close()
            os._exit(1)
        print(json.dumps({"key": key, "result": os.getpid(), "long": "x" * 200_000}), flush=True)
"""


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(PROGRAM))
    engine = Local(2, [str(path)])
    yield engine
    engine.close()


def replies(engine: Any, *keys: str, seconds: float | None = None) -> dict[str, dict[str, Any]]:
    asks = [canonical({"key": key, "seconds": seconds}) for key in keys]
    found = [json.loads(reply) for reply in engine.run(asks)]
    assert len(found) == len(keys)
    return {reply["key"]: reply for reply in found}


def test_every_trial_gets_one_reply_and_two_workers_share_them(local: Local) -> None:
    keys = [f"k{index}" for index in range(20)]
    found = replies(local, *keys)
    assert sorted(found) == sorted(keys)
    assert 1 <= len({reply["result"] for reply in found.values()}) <= 2
    assert replies(local, "more")["more"]["result"]


def test_a_dead_worker_costs_one_trial(local: Local) -> None:
    found = replies(local, "a", "die", "b", "leave", "c", "d")
    assert found["die"]["failed"] == f"its worker died {MAX_ATTEMPTS} times (SIGKILL)"
    assert found["leave"]["failed"] == f"its worker died {MAX_ATTEMPTS} times (exit code 7)"
    assert all("result" in found[key] for key in "abcd")


def test_a_worker_that_dies_once_costs_nothing(local: Local, tmp_path: Path) -> None:
    key = f"once {tmp_path / 'mark'}"
    assert "result" in replies(local, "a", key, "b")[key]


def test_a_worker_whose_trial_failed_is_not_used_again(local: Local) -> None:
    found = replies(local, "fail 1", "fail 2", "fail 3", "a", "b", "c")
    failed = {found[key]["failed"] for key in found if key.startswith("fail")}
    assert len(failed) == 3
    assert failed.isdisjoint({found[key]["result"] for key in "abc"})


def test_a_trial_over_its_time_is_stopped_and_the_others_go_on(local: Local) -> None:
    found = replies(local, "hang", "a", "b", seconds=0.3)
    assert found["hang"]["failed"] == "time limit of 0.3 s"
    assert all("result" in found[key] for key in "ab")


def test_workers_that_never_live_end_the_sweep_with_a_word(tmp_path: Path) -> None:
    path = tmp_path / "worker.py"
    path.write_text("raise SystemExit(3)")
    engine = Local(2, [str(path)])
    with pytest.raises(FaultError, match=r"die before they are ready \(exit code 3\)"):
        replies(engine, "a", "b")
    engine.close()


def test_a_closed_engine_leaves_no_process_behind(local: Local) -> None:
    (pid,) = {reply["result"] for reply in replies(local, "a").values()}
    local.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    local.__init__(1, [])  # type: ignore[misc]  closed once more by the fixture


# ---------------------------------------------------------------------- the real worker


def asked(memory_mb: int | None = None, **values: Any) -> str:
    scenario = build(SCENARIO, "test").with_values(values)
    facts = {"key": key_of(scenario, Inputs()), "scenario": portable(scenario)}
    return canonical({**facts, "seconds": None, "memory_mb": memory_mb})


def test_a_trial_in_a_worker_gives_the_bytes_of_one_in_this_process() -> None:
    ask = asked()
    engine = Local(1)
    assert list(engine.run([ask])) == [run_trial(ask)] == [run_watched(ask)]
    engine.close()
    engines._IDLE.get_nowait()[0].close()


def test_threads_of_a_cluster_worker_share_no_child() -> None:
    """Four at once, each with a trial of its own, and every reply goes to who asked."""
    asks = [asked(run=run) for run in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run_watched, asks))
    assert [json.loads(reply)["key"] for reply in found] == [json.loads(a)["key"] for a in asks]
    assert all("result" in json.loads(reply) for reply in found)
    while not engines._IDLE.empty():
        engines._IDLE.get_nowait()[0].close()


def test_a_trial_over_its_memory_fails_whatever_ran_before_it_and_the_others_do_not() -> None:
    large = {"system": "vllm-0.3.3-keep", "pool.host_blocks": 16_000_000}
    engine = Local(1)
    asks = [
        asked(120, **large),
        asked(120),
        asked(120, **large),
        asked(120, **large, run=1),
        asked(),
    ]
    found = [json.loads(reply) for reply in engine.run(asks)]
    engine.close()
    assert ["result" in reply for reply in found] == [False, True, False, False, True]
    assert {reply.get("failed") for reply in found} == {None, "memory limit of 120 MiB"}


def test_a_worker_ends_with_its_parent_in_the_middle_of_a_trial() -> None:
    """Its stdin ends, and so does it, although the trial would take minutes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "explore.studies.workers.process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)  # Ctrl-C is the parent's business
    long = asked(**{"workload.conversations": 100_000, "workload.rate": 1000.0})
    process.stdin.write(long.encode() + b"\n")
    process.stdin.flush()
    process.stdin.close()
    assert process.wait(60) == 0
    assert process.stdout.read() == b""
    process.stdout.close()


# ---------------------------------------------------------------------- replies of a trial


def test_an_input_that_differs_from_the_plan_is_a_failure() -> None:
    ask = {**json.loads(asked()), "key": "0" * 64}
    assert "differ here from those of the plan" in json.loads(run_trial(canonical(ask)))["failed"]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (KeyError("x"), "KeyError: 'x'"),
        (FaultError("broke\nbadly"), "FaultError: broke\\nbadly"),
        (MemoryError(), "out of memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_simulation_raises_is_one_line_in_its_row(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulate(_scenario: Any, **_: Any) -> None:
        raise error

    monkeypatch.setattr(trial, "simulate", simulate)
    assert json.loads(run_trial(asked()))["failed"] == why


def test_a_result_holds_nothing_of_when_where_and_by_whom() -> None:
    result = json.loads(run_trial(asked()))["result"]
    told = {"metrics", "order", "planner", "rejected_because", "system", "verdict", "warnings"}
    assert set(result) == told | {"workload"}
    assert set(result["workload"]) == {"drawn"}


# ---------------------------------------------------------------------- clusters


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"address": "tcp://x"}, "takes no cluster"),
        ({"starts_cluster": True}, "takes no cluster"),
        ({"kind": "dask"}, "give the address of a cluster"),
        ({"kind": "ray", "address": "x", "starts_cluster": True}, "give the address of a cluster"),
        ({"kind": "slurm"}, "is not one of local, dask, ray"),
    ],
    ids=str,
)
def test_a_cluster_is_never_started_unless_told_to(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        WorkerSettings(**settings)


@pytest.mark.parametrize(("kind", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_missing_library_names_its_extra(
    kind: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_name: str) -> None:
        raise ModuleNotFoundError(name=package)

    monkeypatch.setattr(engines.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=rf"{package} is not installed; the extra \[{kind}\]"):
        make_workers(WorkerSettings(kind, starts_cluster=True))


class PretendRay:
    """As much of Ray as the engine uses; trials named `crash` and `lost` end as Ray tells it."""

    class exceptions:  # noqa: N801  Ray's name
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})
        WorkerCrashedError = type("WorkerCrashedError", (RayError,), {})

    def __init__(self) -> None:
        self.most = 0
        self.under_way = 0

    def remote(self, _function: Any) -> PretendRay:
        return self

    def options(self, **_options: Any) -> Any:
        ray = self

        class Remote:
            def remote(self, ask: str) -> str:
                ray.under_way += 1
                ray.most = max(ray.most, ray.under_way)
                return ask

        return Remote()

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def wait(self, references: list[str], num_returns: int) -> tuple[list[str], list[str]]:
        return references[-num_returns:], references[:-num_returns]

    def get(self, reference: str) -> str:
        self.under_way -= 1
        key = json.loads(reference)["key"]
        if key == "crash":
            raise self.exceptions.WorkerCrashedError("died")
        if key == "task":
            raise self.exceptions.RayTaskError("raised")
        if key == "lost":
            raise self.exceptions.RayError("gone")
        return canonical({"key": key, "result": 1})


def test_ray_holds_few_trials_at_once_and_a_crash_costs_one() -> None:
    ray = PretendRay()
    found = replies(ray_engine.Ray(ray), *(f"k{index}" for index in range(30)), "crash", "task")
    assert ray.most == 2 * ray_engine.AHEAD
    assert found["crash"]["failed"] == "its worker died: died"
    assert found["task"]["failed"] == "its worker failed: raised"
    assert all("result" in found[f"k{index}"] for index in range(30))


def test_a_lost_ray_cluster_ends_the_sweep_and_says_how_to_go_on() -> None:
    with pytest.raises(
        FaultError,
        match=r"cluster is lost \(gone\); what was finished is kept; the same command goes on",
    ):
        replies(ray_engine.Ray(PretendRay()), "a", "lost")
