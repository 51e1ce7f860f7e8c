"""Sweeps under fire: killed again and again, and run on every engine. Tables stay equal to the byte."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from explore.studies.store import STUDY
from explore.studies.sweep import sweep
from tests.helpers.sweeps import MANY, SMALL, keys, tree, written
from tests.helpers.typed import ROOT, ended, environment, fastswitch

pytestmark = pytest.mark.full

KILLS = 40


def command(path: Path, out: Path, *more: str) -> list[str]:
    return fastswitch("sweep", "run", path, "--out", out, *more)


def num_results(out: Path) -> int:
    with contextlib.suppress(sqlite3.OperationalError):  # killed before it had tables
        return len(keys(out)) if (out / STUDY).exists() else 0
    return 0


def run_until_killed(arguments: list[str], out: Path, rng: random.Random, *, whole: bool) -> None:
    """SIGKILL after a random number of new results and a random moment, to all processes at once
    or to the parent alone."""
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    enough = num_results(out) + rng.randrange(20)
    moment = rng.uniform(0.0, 2.0) if rng.random() < 0.2 else rng.uniform(0.001, 0.05)
    while True:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            if moment <= 0.05 and num_results(out) < enough:
                continue
            (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)
        return


def test_a_sweep_killed_forty_times_ends_like_one_that_was_not(tmp_path: Path) -> None:
    path = written(tmp_path, MANY)
    whole = sweep(MANY, tmp_path / "whole", workers=2)
    assert (whole.trials, whole.done) == (500, 500)
    rng, out = random.Random(0), tmp_path / "killed"
    arguments = command(path, out, "--workers", "2")
    counts, parts = [], 0
    for kill in range(KILLS):
        run_until_killed(arguments, out, rng, whole=kill % 2 == 0)
        counts.append(num_results(out))
        parts += (out / f"{STUDY}-journal").exists()
    print(f"results after each of {KILLS} kills: {counts}; journals left: {parts}")
    assert len(set(counts) - {0, 500}) >= KILLS / 2  # the storm hit the sweep, not its ends
    assert ended(arguments).returncode == 0
    assert tree(out) == tree(whole.folder)


@pytest.mark.parametrize(("engine", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_gives_the_tables_of_this_machine(
    engine: str, package: str, tmp_path: Path
) -> None:
    """All words of a sweep file, and a trial that fails for want of memory everywhere alike."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[{engine}]'")
    large = {"pool.host_blocks": 50_000_000}  # `paged` has a list of them
    spec = {**SMALL, "scenarios": [{"name": "small"}, {"name": "large", "set": large}], "grid": {}}
    spec["systems"] = ["vllm-0.3.3-keep", "vllm-0.3.3"]
    spec["zip"] = {"workload.rate": [1.0, 4.0], "pool.device_blocks": [70, 60]}
    path = written(tmp_path, spec)
    trees = []
    for name, more in (("local", ()), (engine, ("--engine", engine, "--start-cluster"))):
        out = tmp_path / name
        found = ended(command(path, out, "--workers", "2", "--memory-mb", "120", *more))
        assert found.returncode == 5, found.stderr
        assert "8 of 16 trials done, 8 failed, 0 missing" in found.stdout
        trees.append(tree(out))
    assert trees[0] == trees[1]
    assert b"memory limit of 120 MiB" in trees[0]["results.csv"]


@pytest.mark.parametrize(("engine", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_cluster_that_does_not_answer_is_told(engine: str, package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[{engine}]'")
    address = "tcp://127.0.0.1:9" if engine == "dask" else "127.0.0.1:9"
    more = ("--engine", engine, "--address", address)
    found = ended(command(written(tmp_path, SMALL), tmp_path / "out", *more))
    assert found.returncode == 5
    assert f"error: engine {engine}: no cluster at {address}" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.fixture
def dask_address(tmp_path: Path) -> Iterator[str]:
    """A Dask cluster that somebody else started: one worker with two threads."""
    if importlib.util.find_spec("distributed") is None:
        pytest.skip("distributed is not installed: pip install '.[dask]'")
    kept = tmp_path / "scheduler.json"
    commands = (
        ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        ["distributed.cli.dask_worker", "--nthreads", "2", "--no-dashboard"],
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *words, "--scheduler-file", str(kept)],
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for words in commands
    ]
    try:
        while not kept.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise AssertionError(f"the scheduler ended: {started[0].wait(0.1)}")
        yield str(json.loads(kept.read_text())["address"])
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def test_an_existing_cluster_is_used_by_its_address_and_left_running(
    dask_address: str, tmp_path: Path
) -> None:
    path = written(tmp_path, SMALL)
    whole = sweep(SMALL, tmp_path / "whole", workers=1)
    for number in range(2):
        out = tmp_path / f"out{number}"
        more = ("--engine", "dask", "--address", dask_address)
        found = ended(command(path, out, *more))
        assert found.returncode == 0, found.stderr
        assert tree(out) == tree(whole.folder)
