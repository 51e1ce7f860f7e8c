"""Every recipe finds what running a whole grid and looking at all of it finds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explore.search.points import Point, front_of, near_front
from explore.search.recipes import RECIPES, Bound
from explore.search.run import Study
from explore.search.spec import load
from policy.errors import ConfigError
from tests.helpers.searches import RATES, SPACE, searched, spec
from tests.helpers.sweeps import SCENARIO

BLOCKS = SPACE["pool.device_blocks"]


def knobs(scenario: dict[str, Any]) -> tuple[float, int]:
    return scenario["workload"]["rate"], scenario["pool"]["device_blocks"]


def landscape(scenario: dict[str, Any], run: int) -> dict[str, Any]:
    """Tails grow with the rate and shrink with memory; too much of both loses turns."""
    rate, blocks = knobs(scenario)
    load = rate * 60 / blocks * (1 + 0.01 * run)
    return {
        "ttft_p99_s": load**2,
        "tbt_p999_s": 0.1 + 0.01 * rate,
        "throughput_tok_s": 100 * rate / (1 + load),
        "goodput_per_s": rate * max(0.0, 1 - load / 4),
        "slo_attainment": max(0.0, 1 - load / 8),
        "jain": 1 / (1 + 0.1 * load),
        "finished": 100 if load < 3.9 else 99,
    }


def means() -> dict[tuple[float, int], dict[str, float]]:
    """Every point of the grid, by hand."""
    found = {}
    for rate, blocks in itertools.product(RATES, BLOCKS):
        runs = [
            landscape({"workload": {"rate": rate}, "pool": {"device_blocks": blocks}}, r)
            for r in (0, 1)
        ]
        found[rate, blocks] = {name: sum(one[name] for one in runs) / 2 for name in runs[0]}
    return found


def point(values: dict[str, Any]) -> tuple[float, int]:
    return values["workload.rate"], values["pool.device_blocks"]


METHODS: list[dict[str, Any]] = [{}, {"method": "optuna", "points": 60, "batch": 5}]


@pytest.fixture(params=METHODS, ids=["exhaustive", "optuna"])
def method(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param:
        pytest.importorskip("optuna", reason="optuna is not installed: pip install '.[search]'")
    return dict(request.param)


def test_the_most_goodput_under_an_slo(method: dict[str, Any], tmp_path: Path) -> None:
    given = spec("max-goodput-under-slo", slo={"ttft_s": 1.0}, attainment=0.9, **method)
    found, _ = searched(given, tmp_path / "out", landscape)
    allowed = {
        at: m["goodput_per_s"]
        for at, m in means().items()
        if m["slo_attainment"] >= 0.9 and m["finished"] == 100
    }
    assert point(found.answer.best or {}) == max(allowed, key=lambda at: allowed[at])
    assert allowed and max(allowed.values()) < max(m["goodput_per_s"] for m in means().values())


def test_the_highest_rate_under_an_sla(method: dict[str, Any], tmp_path: Path) -> None:
    given = spec("max-rate-under-sla", limits={"ttft_p99_s": {"at_most": 3.0}}, **method)
    found, _ = searched(given, tmp_path / "out", landscape)
    allowed = {at[0] for at, m in means().items() if m["ttft_p99_s"] <= 3.0}
    assert point(found.answer.best or {})[0] == max(allowed) == 2.0


def test_the_front_of_tails_and_throughput(method: dict[str, Any], tmp_path: Path) -> None:
    given = spec("pareto", limits={"jain": {"at_least": 0.8}}, **method)
    found, _ = searched(given, tmp_path / "out", landscape)
    allowed = {at: m for at, m in means().items() if m["jain"] >= 0.8 and m["finished"] == 100}

    def beats(a: dict[str, float], b: dict[str, float]) -> bool:
        no_worse = (
            a["ttft_p99_s"] <= b["ttft_p99_s"]
            and a["tbt_p999_s"] <= b["tbt_p999_s"]
            and a["throughput_tok_s"] >= b["throughput_tok_s"]
        )
        return no_worse and a != b

    front = {at for at, m in allowed.items() if not any(beats(o, m) for o in allowed.values())}
    assert {point(values) for values in found.answer.front} == front
    assert 1 < len(front) < len(allowed) < 12
    assert found.answer.best is None


def made(index: int, *values: float, half: float = 0.0) -> Point:
    lists = tuple([v - half, v + half, v] for v in values)
    return Point(index, {}, "fastswitch", lists)


def test_fronts_of_random_points_are_those_of_every_pair() -> None:
    objectives = RECIPES["pareto"]
    signs = np.array([one.sign for one in objectives])
    rng = np.random.default_rng(0)
    for _ in range(40):
        scores = rng.integers(0, 5, (25, 3))
        points = [made(i, *map(float, row)) for i, row in enumerate(scores)]
        ours = {p.index for p in front_of(points, objectives)}
        signed = scores * signs
        beaten = [any((o >= s).all() and (o > s).any() for o in signed) for s in signed]
        assert ours == {i for i, is_beaten in enumerate(beaten) if not is_beaten}


def test_a_point_that_chance_put_behind_the_front_stands_beside_it() -> None:
    objectives = RECIPES["pareto"]
    best = made(0, 1.0, 1.0, 10.0)
    near = Point(1, {}, "s", ([0.5, 1.7, 1.0], [0.6, 1.6, 0.9], [9.0, 10.8, 10.0]))
    far = made(2, 3.0, 3.0, 5.0)
    front = front_of([best, near, far], objectives)
    assert [p.index for p in front] == [0]
    assert [p.index for p in near_front([best, near, far], front, objectives)] == [1]


def test_points_as_good_as_the_best_are_named_and_worse_ones_are_not(tmp_path: Path) -> None:
    def noisy(scenario: dict[str, Any], run: int) -> dict[str, Any]:
        rate, blocks = knobs(scenario)
        noise = (run - 2) * (1 if blocks == 40 else -1)  # runs of two points go different ways
        return {
            "goodput_per_s": {0.5: 1.0, 1.0: 50.0}.get(rate, 2.0) + noise,
            "slo_attainment": 1.0,
        }

    given = spec("max-goodput-under-slo", slo={"e2e_s": 1.0}, runs=5)
    found, _ = searched(given, tmp_path / "out", noisy)
    assert (found.answer.best or {})["workload.rate"] == 1.0
    assert {point(p.values) for p in found.answer.beside} == {(1.0, 60), (1.0, 80)}
    assert "2 points cannot be told from the best" in (tmp_path / "out/search.txt").read_text()
    frame = found.points
    assert (frame["place"] == "chosen").sum() == 1 and (frame["place"] == "beside").sum() == 2


def test_no_point_that_keeps_the_limits_is_said_and_the_nearest_named(tmp_path: Path) -> None:
    given = spec("max-rate-under-sla", limits={"ttft_p99_s": {"at_most": 1e-6}})
    found, _ = searched(given, tmp_path / "out", landscape)
    assert found.answer.best is None and found.answer.chosen == []
    text = (tmp_path / "out/search.txt").read_text()
    assert "No point keeps all limits." in text
    nearest = "point 2, workload.rate=0.5, pool.device_blocks=80, system=fastswitch: ttft_p99_s"
    assert f"Nearest: {nearest}" in text


def test_what_cannot_be_told_cannot_be_an_answer(tmp_path: Path) -> None:
    def small(scenario: dict[str, Any], run: int) -> dict[str, Any]:
        rate, _ = knobs(scenario)
        return (
            {"tbt_p999_s": None if rate == 4.0 else 1.0, "failed": "time limit"}
            if rate == 0.5
            else {"tbt_p999_s": None if rate == 4.0 else 1.0}
        )

    given = spec("max-rate-under-sla", limits={"tbt_p999_s": {"at_most": 2.0}})
    found, _ = searched(given, tmp_path / "out", small)
    assert (found.answer.best or {})["workload.rate"] == 2.0
    told = json.loads((tmp_path / "out/search.json").read_text())["points"]
    assert told[0]["problems"] == ["failed: time limit"]
    assert told[-1]["problems"] == ["tbt_p999_s: n too small"]
    assert found.sweep.failed == 6


def test_a_limit_kept_by_the_mean_alone_is_told(tmp_path: Path) -> None:
    def close(scenario: dict[str, Any], run: int) -> dict[str, Any]:
        return {"ttft_p99_s": knobs(scenario)[0] + 0.1 * run}

    given = spec("max-rate-under-sla", limits={"ttft_p99_s": {"at_most": 2.1}}, runs=3)
    found, _ = searched(given, tmp_path / "out", close)
    assert (found.answer.best or {})["workload.rate"] == 2.0
    assert found.answer.chosen[0].unsure == ("ttft_p99_s",)
    assert "not by its whole interval: ttft_p99_s" in (tmp_path / "out/search.txt").read_text()


def test_a_bound_is_one_limit_with_two_sides() -> None:
    assert Bound(at_most=2.0).excess(3.0) == 0.5 == Bound(at_least=2.0).excess(1.0)
    assert Bound(at_most=0.0).excess(0.0) == 0.0 < Bound(at_most=0.0).excess(0.5)
    with pytest.raises(ValueError, match="one of the two"):
        Bound()


def test_a_point_that_failed_is_never_the_nearest(tmp_path: Path) -> None:
    def fails(scenario: dict[str, Any], run: int) -> dict[str, Any]:
        rate, _ = knobs(scenario)
        return {"ttft_p99_s": rate, **({"failed": "time limit"} if rate == 0.5 else {})}

    given = spec("max-rate-under-sla", limits={"ttft_p99_s": {"at_most": 0.9}})
    searched(given, tmp_path / "out", fails)
    assert "Nearest: point 3, workload.rate=1.0" in (tmp_path / "out/search.txt").read_text()


def test_a_search_has_one_system_whatever_its_scenario_lists(tmp_path: Path) -> None:
    listed = {**SCENARIO, "systems": ["vllm-0.3.3", "+groups"]}
    for values, system in (({}, "fastswitch"), ({"system": "+reuse"}, "+reuse")):
        given = spec("max-rate-under-sla", scenario={**listed}, limits={"jain": {"at_least": 0.1}})
        study = Study(load({**given, "set": values}), None, None)
        assert {trial.system for trial in study.plan.trials} == {system}
        study = Study(load(given), dict(values), None)
        assert {trial.system for trial in study.plan.trials} == {system}


def test_a_rate_to_make_large_is_a_number() -> None:
    given = spec("max-rate-under-sla", limits={"jain": {"at_least": 0.1}})
    with pytest.raises(ConfigError, match="'high' is no rate"):
        load({**given, "space": {"workload.rate": ["high", 0.5]}})
    with pytest.raises(ConfigError, match="None is no rate"):
        load({**given, "space": {"workload.rate": [None, 0.5]}})
