"""What runs of one process keep for each other changes nothing."""

from __future__ import annotations

import pytest

from policy.pools import aging
from runs import serving
from runs.scenario import build
from runs.serving import Kept
from sim.simulate import simulate
from tests.helpers.sweeps import SCENARIO


@pytest.mark.parametrize("kind", ["churn", "shuffle"])
def test_a_run_on_pools_that_others_aged_is_the_run_on_its_own(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aged: list[str] = []
    for name in ("churn", "shuffle"):

        def counted(pool: aging.Pool, *rest: object, act: object = getattr(aging, name)) -> None:
            aged.append(pool.name)
            act(pool, *rest)  # type: ignore[operator]

        monkeypatch.setattr(serving, name, counted)
    kept = Kept()
    for system in ("vllm-0.3.3", "vllm-0.3.3-keep", "fastswitch", "+groups"):
        for run in (0, 1):
            values = {"pool.aging": kind, "system": system, "run": run, "pool.host_blocks": 90}
            scenario = build(SCENARIO, "test").with_values(values)
            aged.clear()
            alone = simulate(scenario)
            assert aged == ["device", "host"]
            aged.clear()
            beside = simulate(scenario, kept=kept)
            if system == "vllm-0.3.3-keep":
                assert not aged  # the same pages, whatever is kept of idle turns
            for name in ("requests", "steps", "copies", "spans", "preemptions"):
                assert alone.table(name).equals(beside.table(name))


def test_of_too_many_those_not_used_for_longest_go() -> None:
    kept = Kept(2)
    kept.add("a", 1)
    kept.add("b", 2)
    assert kept.find("a") == 1
    kept.add("c", 3)
    assert (kept.find("b"), kept.find("a"), kept.find("c")) == (None, 1, 3)
