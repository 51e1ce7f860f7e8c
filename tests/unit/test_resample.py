"""A trace's sessions drawn anew: whole, at the places where sessions began, another draw in every run."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from explore.studies.compare import compare
from explore.studies.estimates import Estimate, estimate_of, speedup_of
from policy.errors import ConfigError
from runs.metrics.stats import mean_and_half_width
from runs.scenario import Scenario, build
from traces.randomness import Streams
from traces.readers.catalog import read_workload
from traces.readers.native import write
from traces.shaping.resample import DRAWN_ANEW, resampled
from traces.workload import Header, Turn, Workload

SECOND = 1_000_000_000


def source(timing: str = "closed") -> Workload:
    """Forty sessions of one to three turns, one a second; the last of each names its parent."""
    turns = []
    for k in range(40):
        for turn in range(1, k % 3 + 2):
            times: dict[str, Any] = {"arrival_ns": k * SECOND}
            if turn > 1:
                times = (
                    {"think_ns": 7 + k}
                    if timing == "closed"
                    else {"arrival_ns": (k + turn) * SECOND}
                )
            parent = f"s{k}/{turn - 1}" if turn == 3 else None
            turns.append(Turn(f"s{k}/{turn}", f"s{k}", turn, 40 + k, 5, parent_id=parent, **times))
    if timing == "open":
        turns.sort(key=lambda one: one.arrival_ns or 0)
    return Workload.of(turns, Header(source="by hand", timing=timing))  # type: ignore[arg-type]


@pytest.mark.parametrize("timing", ["closed", "open"])
def test_as_many_sessions_begin_when_sessions_began_and_each_is_a_whole_one(
    timing: str, tmp_path: Path
) -> None:
    drawn = resampled(source(timing), Streams(1, 2))
    write(drawn, tmp_path / "drawn.jsonl")
    turns = list(read_workload(tmp_path / "drawn.jsonl", None))  # which checks its rules
    assert drawn.header.composed_from[-1] == DRAWN_ANEW
    begins = sorted(one.arrival_ns or 0 for one in turns if one.turn == 1)
    assert begins == [k * SECOND for k in range(40)]
    whole = Counter((one.session_id.split("#")[0]) for one in source(timing))
    found: dict[str, list[Turn]] = {}
    for one in turns:
        found.setdefault(one.session_id, []).append(one)
    assert len(found) == 40
    for session, mine in found.items():
        name, _, mark = session.partition("#")
        assert len(mine) == whole[name] and mine[0].input_tokens == 40 + int(name[1:])
        assert [one.parent_id for one in mine if one.parent_id] == [f"{name}/2#{mark}"] * (
            len(mine) == 3
        )
        if timing == "open":
            assert [(one.arrival_ns or 0) - (mine[0].arrival_ns or 0) for one in mine[1:]] == [
                turn * SECOND for turn in range(2, len(mine) + 1)
            ]


def test_every_run_is_another_draw_and_the_same_run_the_same() -> None:
    def names(run: int) -> list[str]:
        return [one.session_id for one in resampled(source(), Streams(1, run))]

    assert names(0) == names(0) != names(1)
    drawn = Counter(name.split("#")[0] for name in names(0))
    assert 15 < len(drawn) < 35  # 40 of 40 with replacement leave about a third out


def test_sessions_that_launch_others_are_drawn_with_them() -> None:
    rows = [
        Turn("a/1", "a", 1, 10, 5, arrival_ns=0),
        Turn("b/1", "b", 1, 10, 5, gap_ns=3, parent_id="a/1"),
        Turn("c/1", "c", 1, 10, 5, arrival_ns=SECOND),
    ]
    turns = list(resampled(Workload.of(rows, Header(timing="closed")), Streams(5)))
    for one in turns:
        if one.session_id.startswith("b#"):
            assert any(other.request_id == one.parent_id for other in turns)
    assert {one.arrival_ns for one in turns if one.parent_id is None} == {0, SECOND}


def test_a_session_without_an_arrival_has_no_place_to_be_drawn_into() -> None:
    with pytest.raises(ConfigError, match=r"workload\.resample: a/1 has no arrival time"):
        list(
            resampled(
                Workload.of([Turn("a/1", "a", 1, 10, 5)], Header(timing="closed")), Streams(1)
            )
        )


# ---------------------------------------------------------------------- what may be said of such runs


def scenario(folder: Path, **workload: Any) -> Scenario:
    write(source(), folder / "w.jsonl")
    return build(
        {
            "name": "trace",
            "workload": {"file": str(folder / "w.jsonl"), **workload},
            "profile": "a10-llama-3-8b",
            "order": "fcfs",
            "pool": {"device_blocks": 30, "host_blocks": 60, "aging": "none"},
        },
        "test",
    )


def test_a_trace_under_fcfs_replayed_is_one_run_and_has_no_interval(tmp_path: Path) -> None:
    found = compare(scenario(tmp_path), ["+reuse", "fastswitch"], 3, 1)
    assert found.is_one_run
    assert found.estimate("fastswitch", "ttft_p50_s").interval is None
    ratio = found.speedup("fastswitch", "+reuse", "ttft_p50_s")
    assert (ratio.factor, ratio.p, ratio.is_sure) == (None, None, False)
    assert any(note.startswith("One trace, no interval: 3 runs of ") for note in found.notes)


def test_a_trace_drawn_anew_has_one(tmp_path: Path) -> None:
    found = compare(scenario(tmp_path, resample=True), ["fastswitch"], 3, 1)
    assert not found.is_one_run
    assert found.estimate("fastswitch", "ttft_p50_s").interval is not None
    assert any(note.startswith("One trace, resampled: ") for note in found.notes)


def test_draws_of_one_trace_are_as_far_off_as_the_trace_however_many_they_are() -> None:
    values = [1.0, 1.4, 1.2, 1.3]
    plain = [{"metrics": {"ttft_p95_s": value}} for value in values]
    drawn = [{**one, "workload": {"drawn": "sessions"}} for one in plain]
    mean, half = mean_and_half_width(values)
    assert half is not None
    assert estimate_of(plain, "ttft_p95_s") == Estimate(mean, half)
    assert estimate_of(drawn, "ttft_p95_s") == Estimate(mean, half * 5**0.5)
    others = [{"metrics": {"ttft_p95_s": 2 * v + i / 50}} for i, v in enumerate(values)]
    one, other = speedup_of(plain, others, "ttft_p95_s"), speedup_of(drawn, others, "ttft_p95_s")
    assert one.factor is not None and one.p is not None
    assert other.factor == pytest.approx(one.factor**5**0.5)
    assert other.p is not None and other.p > one.p
