"""Searches under fire and at length: killed at random moments, on every method, and over known functions."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest

from explore.search.run import search
from explore.studies.sweep import sweep
from tests.full.test_sweep_storm import num_results, run_until_killed
from tests.helpers.searches import searched, spec
from tests.helpers.sweeps import SCENARIO, SMALL, tree, written
from tests.helpers.typed import ended, fastswitch

pytestmark = pytest.mark.full

KILLS = 8
SPACE: dict[str, Any] = {
    "workload.rate": {"low": 0.5, "high": 8.0, "scale": "log"},
    "pool.device_blocks": {"low": 50, "high": 200},
    "system": ["vllm-0.3.3-keep", "fastswitch"],
}
#: 100 real simulations of some ten milliseconds.
REAL: dict[str, Any] = {
    "name": "storm",
    "scenario": SCENARIO,
    "recipe": "max-goodput-under-slo",
    "slo": {"ttft_s": 2.0},
    "attainment": 0.5,
    "space": SPACE,
    "runs": 2,
    "points": 50,
}


def needs_optuna() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed: pip install '.[search]'")


@pytest.mark.parametrize("method", ["sobol", "optuna"])
def test_a_search_killed_again_and_again_ends_like_one_that_was_not(
    method: str, tmp_path: Path
) -> None:
    if method == "optuna":
        needs_optuna()
    given = {**REAL, "method": method}
    whole = search(given, tmp_path / "whole", workers=1)
    rng, out = random.Random(0), tmp_path / "killed"
    path = written(tmp_path, given)
    arguments = fastswitch("search", path, "--out", out, "--workers", 2)
    counts = []
    for kill in range(KILLS):
        run_until_killed(arguments, out, rng, whole=kill % 2 == 0)
        counts.append(num_results(out))
    print(f"results after each of {KILLS} kills: {counts}")
    assert len(set(counts) - {0, 100}) >= 2
    assert ended(arguments).returncode == 0
    assert tree(out) == tree(whole.folder)


MINE = """
from policy.orders.base import Order

class Mine(Order):
    def key(self, request, now_ns):
        return (request.priority,)
"""


@pytest.mark.parametrize(("engine", "package"), [("dask", "distributed"), ("ray", "ray")])
def test_a_users_order_goes_to_a_cluster(engine: str, package: str, tmp_path: Path) -> None:
    """By name, from the folder it was typed in; equal to the built-in one."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install '.[{engine}]'")
    (tmp_path / "mine_on_a_cluster.py").write_text(MINE)
    path = written(tmp_path, {**SMALL, "systems": ["fastswitch"], "runs": 1})
    plain = sweep(path, tmp_path / "plain", values={"order": "priority"}, workers=1)
    arguments = fastswitch(
        "sweep", "run", path, "--out", "own", "--order", "mine_on_a_cluster:Mine"
    )
    arguments += ["--engine", engine, "--start-cluster", "--workers", "1"]
    found = ended(arguments, tmp_path)
    assert found.returncode == 0, found.stderr
    ours = (tmp_path / "own/results.csv").read_bytes()
    assert ours == (plain.folder / "results.csv").read_bytes()


def branin(x: float, y: float) -> float:
    """Branin's function on [-5, 10] x [0, 15]: three minima of 0.397887."""
    from math import cos, pi

    return (
        (y - 5.1 * x * x / (4 * pi * pi) + 5 * x / pi - 6) ** 2
        + 10 * (1 - 1 / (8 * pi)) * cos(x)
        + 10
    )


def known(scenario: dict[str, Any], run: int) -> dict[str, Any]:
    """Branin, turned over; points with a large x and y together serve too few."""
    x = scenario["workload"]["rate"] - 6  # 1 to 16
    y = scenario["vtc"]["head_start"] / 100  # 0 to 1500
    return {"goodput_per_s": 400 - branin(x, y), "slo_attainment": 1.0 if x + y < 12 else 0.5}


KNOWN: dict[str, Any] = {
    "slo": {"ttft_s": 1.0},
    "method": "optuna",
    "runs": 1,
    "space": {
        "workload.rate": {"low": 1.0, "high": 16.0},
        "vtc.head_start": {"low": 0, "high": 1500},
    },
}


@pytest.mark.parametrize(("points", "near"), [(200, 0.3), (600, 1.0)], ids=["tpe", "nsga2"])
def test_optuna_finds_the_optimum_of_a_known_function(
    points: int, near: float, tmp_path: Path
) -> None:
    """Two of Branin's three minima are allowed; (-pi, 12.275) and (pi, 2.275)."""
    needs_optuna()
    given = spec("max-goodput-under-slo", **KNOWN, points=points, batch=20)
    found, engine = searched(given, tmp_path / "out", known)
    best = found.answer.chosen[0].estimate(0).value
    assert best is not None
    print(f"{points} points: {400 - best:.4f}, the least is 0.3979; {engine.asked} ran")
    assert 0.3978 <= 400 - best <= 0.3979 + near
    again, engine = searched(given, tmp_path / "out", known)
    assert engine.asked == 0
    assert again.answer.best == found.answer.best
