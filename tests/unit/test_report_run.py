"""The report of a run: what is packed into it is what the recording says, and nothing gets out of it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explore import words
from explore.report import lanes, levels
from explore.report.anatomy import Gaps, Parts
from explore.report.clients import Clients, Exact, Spread
from explore.report.lanes import STATES, varints
from explore.report.lives import Lives
from explore.report.run import page
from policy.errors import ConfigError
from runs.metrics import fairness
from runs.metrics.columns import columns_of
from runs.metrics.stats import percentile
from runs.metrics.summary import summarise
from runs.recording import Recording
from runs.scenario import build
from sim.simulate import simulate
from tests.helpers.hand import Hand, every
from tests.helpers.pages import EVIL, Reader, block, problems, requests_of, slices_of
from tests.unit.test_cli import SMALL

MS = 1_000_000
TIGHT = {**SMALL, "pool": {"device_blocks": 45, "host_blocks": 120, "aging": "none"}}


@pytest.fixture(scope="module")
def found() -> Recording:
    return simulate(build({**TIGHT, "system": "vllm-0.3.3-keep"}, "test"))


@pytest.fixture(scope="module")
def made(found: Recording) -> str:
    return page(found)


def whole(hand: Hand, **facts: Any) -> Recording:
    """By hand, with the summary that a run would have."""
    recording = hand.recording()
    more = {"device_blocks": 10, "host_blocks": 20, "scenario": "s", "system": "x", "order": "fcfs"}
    recording.summary.update({**more, **facts})
    recording.summary["metrics"] = summarise(recording)
    return recording


def by_hand(name: str = "r", **more: Any) -> Hand:
    """Steps of 10 ms; steps 1 and 3 begin with a stall; one request is preempted."""
    hand = Hand(*every(10 * MS, 12), stalls={1: 2 * MS, 3: 4 * MS}, batch=1)
    hand.prompt(name, 1, 10).tokens(name, (1, 3), (8, 9)).preempted(name, 4)
    hand.copy("d2h", 40 * MS, 47 * MS, start_ns=41 * MS, request_id=name)
    hand.copy("h2d", 55 * MS, 75 * MS, start_ns=60 * MS, request_id=name)
    return hand.request(name, 3 * MS, 20 * MS, 100 * MS, 5, preemptions=1, **more)


# ---------------------------------------------------------------------- the lanes


def test_the_slices_of_the_page_are_the_life_by_hand() -> None:
    text = page(whole(by_hand()))
    assert slices_of(text)["r"] == [
        (3000, 10000, "queued"),
        (10000, 12000, "stalled"),
        (12000, 20000, "prefill"),
        (20000, 30000, "decode"),
        (30000, 34000, "stalled"),
        (34000, 40000, "decode"),
        (40000, 41000, "parked"),
        (41000, 47000, "swap-out"),
        (47000, 60000, "parked"),
        (60000, 75000, "swap-in"),
        (75000, 80000, "parked"),
        (80000, 100000, "decode"),
    ]
    table = requests_of(text)
    assert (table["ttft"], table["e2e"], table["preemptions"]) == ([17000], [97000], [1])


def test_every_slice_of_a_run_is_in_the_page(found: Recording, made: str) -> None:
    packed = slices_of(made)
    states: set[str] = set()
    for life in Lives(found):
        mine = packed[life.row["request_id"]]
        assert mine == [
            ((one.begin + 500) // 1000, (one.end + 500) // 1000, one.name) for one in life.slices
        ]
        states.update(one.name for one in life.slices)
    assert len(packed) == found.table("requests").num_rows
    assert {"queued", "prefill", "decode", "parked", "swap-in", "swap-out"} <= states


def test_a_lane_holds_one_request_at_a_time_and_there_are_no_more_than_needed(made: str) -> None:
    table, lives = requests_of(made), slices_of(made)
    placed: dict[int, list[tuple[int, int]]] = {}
    for name, lane in zip(table["request_id"], table["lane"], strict=True):
        placed.setdefault(lane, []).append((lives[name][0][0], lives[name][-1][1]))
    assert sorted(placed) == list(range(table["lanes"]))
    assert all(a[1] <= b[0] for mine in placed.values() for a, b in pairwise(sorted(mine)))
    spans = [span for mine in placed.values() for span in mine]
    at_once = max(sum(b <= t < e for b, e in spans) for t, _ in spans)
    assert table["lanes"] == at_once


@given(st.lists(st.integers(0, 2**45), max_size=40))
def test_numbers_of_seven_bits_a_byte_come_back(values: list[int]) -> None:
    found, value, shift = [], 0, 0
    for byte in varints(np.array(values, dtype=np.int64)):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            found.append(value)
            value = shift = 0
    assert found == values


def test_of_too_many_requests_the_slowest_are_drawn_and_the_page_says_so(
    found: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "MAX_REQUESTS", 12)
    text = page(found)
    table = requests_of(text)
    rows = found.table("requests").to_pylist()
    assert len(table["row"]) == 12 < len(rows)
    assert f"12 of {len(rows)} requests are drawn" in text
    slow = sorted(rows, key=lambda row: row["arrival_ns"] - row["first_token_ns"])[:3]
    assert {row["request_id"] for row in slow} <= set(table["request_id"])
    shown = {int(value) for _, name, value in Reader(text).attributes if name == "data-request"}
    assert shown and shown <= set(table["row"])


def test_too_many_slices_are_joined_and_no_time_is_lost(
    found: Recording, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = slices_of(made)
    count = sum(map(len, before.values()))
    monkeypatch.setattr(lanes, "MAX_SLICES", count // 2)
    text = page(found)
    after = slices_of(text)
    assert sum(map(len, after.values())) <= count // 2
    assert "are drawn as part of the one before" in text
    for name, mine in after.items():
        assert (mine[0][0], mine[-1][1]) == (before[name][0][0], before[name][-1][1])
        assert all(a[2] != b[2] for a, b in pairwise(mine))
    assert [row for row in Reader(text).cells if "made" in row] == [
        row for row in Reader(made).cells if "made" in row
    ]


# ---------------------------------------------------------------------- below the lanes


def series_of(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    scale = requests_of(text)["series"]
    values = np.frombuffer(block(text, "series"), dtype="<u2").reshape(-1, scale["bins"])
    tops = scale["tops"].items()
    return scale, {name: values[i] / 65535 * top for i, (name, top) in enumerate(tops)}


def test_queues_and_link_of_the_page_hold_all_the_time_there_was(
    found: Recording, made: str
) -> None:
    scale, series = series_of(made)
    width = scale["end"] / 1e6 / scale["bins"]
    lived = sum(s.end - s.begin for life in Lives(found) for s in life.slices) / 1e9
    counted = sum(series[name].sum() for name in levels.GROUPS) * width
    assert counted == pytest.approx(lived, rel=1e-3)
    copies = columns_of(found, "copies")
    for way in ("h2d", "d2h"):
        mine = np.array(copies["direction"]) == way
        moving = np.zeros(int(copies["end_ns"].max()) // 1000 + 1, dtype=bool)
        for begin, end in zip(copies["start_ns"][mine], copies["end_ns"][mine], strict=True):
            moving[begin // 1000 : end // 1000] = True
        assert series[way].sum() * width == pytest.approx(moving.sum() / 1e6, rel=0.02)


def test_pools_by_hand() -> None:
    hand = Hand(4 * MS, 8 * MS, batch=1).prompt("r", 0, 1).tokens("r", (0, 1))
    hand.rows["steps"][0].update(free_blocks=10, free_host_blocks=15)
    hand.rows["steps"][1].update(free_blocks=5, free_host_blocks=20)
    scale, series = series_of(page(whole(hand.request("r", 0, 4 * MS, 8 * MS, 2))))
    half = scale["bins"] // 2
    assert series["device"][:half] == pytest.approx(0) and series["host"][half:] == pytest.approx(0)
    assert series["device"][half:] == pytest.approx(0.5, abs=1e-4)
    assert series["host"][:half] == pytest.approx(0.25, abs=1e-4)


def test_fairness_over_time_is_what_the_metric_is_a_mean_of() -> None:
    hand = Hand(*every(30_000 * MS, 8), batch=2)
    for turn in range(4):
        begin, first, end = (60_000 * MS * turn + ms * MS for ms in (0, 30_000, 59_000))
        for name, last in (("a", 2 * turn + 1), ("b", 2 * turn)):
            request = f"{name}{turn}"
            if name == "b" and turn in (1, 2):
                hand.request(request, begin, session=name, status="cancelled", cancel_ns=end)
                continue
            hand.prompt(request, 2 * turn, 10).tokens(request, (2 * turn, last))
            hand.request(request, begin, first, end, 2, session=name)
    found = whole(hand)
    told = requests_of(page(found))["jain"]
    columns = [columns_of(found, name) for name in ("workload", "requests", "steps", "spans")]
    assert [tuple(one[1:]) for one in told] == [
        (round(one.jain or 0, 4), one.gap) for one in fairness.windows(*columns)
    ]
    jains = [jain for _, jain, _ in told]
    assert len(told) == 4 and 0.5 <= min(jains) < 0.6
    assert found.summary["metrics"]["jain"] == pytest.approx(np.mean(jains), abs=1e-3)


# ---------------------------------------------------------------------- the slowest, and clients


def test_the_states_of_a_request_add_up_to_its_latency(found: Recording) -> None:
    first, whole_ = Parts("first_token_ns"), Parts("finish_ns")
    gaps = Gaps(0.0)
    tokens = 0
    both = Lives(found)
    for number, (life, (_, times)) in enumerate(zip(both, both.with_token_times(), strict=True)):
        first.add(number, life)
        whole_.add(number, life)
        gaps.add(number, life, times)
        tokens += max(0, times.size - 1)
    assert gaps.count == tokens > 1000
    for late in gaps.longest():
        assert sum(late.states) == late.gap
    for parts in (first, whole_):
        slowest = parts.slowest()
        assert len(slowest) == -(-parts.count // 100)
        assert all(sum(one.states) == one.total for one in slowest)
    ttft = max(
        row["first_token_ns"] - row["arrival_ns"] for row in found.table("requests").to_pylist()
    )
    assert first.slowest()[0].total == ttft


def test_the_longest_gap_is_named_with_what_it_was() -> None:
    text = page(whole(by_hand()))
    assert "Too few gaps between tokens" in text
    gaps = Gaps(15.0 * MS)
    lives = Lives(whole(by_hand()))
    for number, (life, (_, times)) in enumerate(zip(lives, lives.with_token_times(), strict=True)):
        gaps.add(number, life, times)
    (late,) = gaps.longest()
    spent = dict(zip(STATES, late.states, strict=True))
    assert (late.gap, late.begin) == (50 * MS, 40 * MS)
    assert {name: ns for name, ns in spent.items() if ns} == {
        "decode": 10 * MS,
        "parked": 19 * MS,
        "swap-out": 6 * MS,
        "swap-in": 15 * MS,
    }


def test_percentiles_of_buckets_are_those_of_the_samples_within_a_thousandth() -> None:
    values = np.random.default_rng(1).lognormal(17, 2, 5000).astype(np.int64)
    spread, exact = Spread(), Exact()
    spread.add(values[:100])
    spread.add(values[100:])
    for value in values.tolist():
        exact.add(value)
    for q in (50.0, 95.0, 99.0, 99.9):
        want = percentile(values, q)
        assert want is not None
        assert exact.percentile(q) == (want / 1e9, None)
        assert spread.percentile(q)[0] == pytest.approx(want / 1e9, rel=1.1e-3)
    assert len(spread.tail()) == len(exact.tail()) > 60
    for (x, share), (y, same) in zip(spread.tail(), exact.tail(), strict=True):
        assert share == same and x == pytest.approx(y, rel=1.1e-3)
    few = Spread()
    few.add(values[:300])
    assert few.percentile(99.0) == (None, None)
    for _ in range(60):
        exact.add_left(7_000_000_000)  # longer than all, though they left so early
    assert exact.percentile(99.0) == (None, 7.0)


def test_each_client_has_its_own_latency_and_small_ones_are_put_together() -> None:
    names = [f"c{i}" for i in range(12) for _ in range(20 - i)] + [None]
    clients = Clients(names)
    assert list(clients.ttft) == ["all", "c0", "c1", "c2", "c3", "c4", "c5", "all others"]
    for name in names:
        row = {"client_id": name, "arrival_ns": 0, "first_token_ns": 5, "status": "finished"}
        clients.add(row, np.array([5, 9], dtype=np.int64))
    clients.add({**row, "status": "rejected"}, np.array([5, 9], dtype=np.int64))
    assert {name: one.count for name, one in clients.ttft.items()} == {
        "all": len(names), "c0": 20, "c1": 19, "c2": 18, "c3": 17, "c4": 16, "c5": 15, "all others": 70,
    }  # fmt: skip
    assert clients.tbt["c3"].count == 17
    assert list(Clients([None, None]).ttft) == ["all"]


# ---------------------------------------------------------------------- the page


def test_a_page_is_whole_has_its_sections_and_may_load_nothing(made: str) -> None:
    assert problems(made) == []
    read = Reader(made)
    assert read.headings[1:] == [
        "Requests over time", "The slowest 1 %", "Latency", "All numbers", "Where this comes from",
    ]  # fmt: skip
    assert len(read.scripts) == 1
    labels = {value for _, name, value in read.attributes if name == "role"}
    assert {"application", "status", "region", "img"} <= labels
    assert len(made.encode()) < 200_000


def test_the_numbers_are_those_of_the_run(found: Recording, made: str) -> None:
    texts = [text for _, text in Reader(made).cells]
    for name in ("ttft_p50_s", "tbt_p99_s", "preemptions", "stall_share"):
        _, unit, factor = words.HEADINGS[name]
        value = found.summary["metrics"][name]
        assert value is not None
        told = str(value) if name == "preemptions" else words.significant(value * factor)
        assert f"{told} {unit}".strip() in texts
    assert ("small", words.TOO_SMALL) in Reader(made).cells  # P99.9 of some dozens
    origin = found.summary["provenance"]
    assert origin["scenario_hash"] in made and origin["commit"] in made
    assert "fastswitch simulate run/scenario.yaml --out again" in made


def test_the_same_run_gives_the_same_bytes(found: Recording, made: str) -> None:
    assert page(found) == made


def test_nothing_from_outside_gets_out_of_its_place() -> None:
    hand = by_hand(EVIL, client_id=EVIL, session=EVIL)
    hand.request(
        "-->", 5 * MS, status="cancelled", cancel_ns=9 * MS, reason=EVIL, client_id="other"
    )
    facts = dict.fromkeys(("scenario", "system", "order", "verdict", "profile"), EVIL)
    origin = {"commit": EVIL, "libraries": {EVIL: EVIL}, "order": {"name": EVIL}}
    workload = {"source": EVIL, "composed_from": []}
    found = whole(hand, **facts, provenance=origin, workload=workload, warnings=[EVIL])
    text = page(found)
    assert problems(text) == []
    read = Reader(text)
    assert "".join(read.text).count(EVIL) > 12 and len(read.scripts) == 1
    table = requests_of(text)
    assert EVIL in table["request_id"] and EVIL in table["client_id_names"]
    assert EVIL in table["reason_names"]
    assert "Latency, client by client" in read.headings
    assert "2 clients; those with most requests are shown." in read.text


def test_a_run_in_which_nothing_happened_has_a_page() -> None:
    text = page(whole(Hand().request("no", 5, reason="empty prompt")))
    assert problems(text) == []
    assert "No step was made." in text and "No turn finished." in text
    assert "script" not in Reader(text).tags


def test_a_run_that_was_killed_has_none() -> None:
    found = whole(by_hand())
    found.summary["is_complete"] = False
    with pytest.raises(ConfigError, match="was killed"):
        page(found)


def test_what_is_packed_is_strict_json(made: str) -> None:
    text = block(made, "requests").decode()
    json.loads(text, parse_constant=pytest.fail)
