"""Timelines: what every request, the device and the link did, on tracks whose slices never overlap."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from explore.exports import export as module
from explore.exports.export import export
from explore.exports.perfetto import pieces
from explore.report import lives
from explore.report.lives import Lives
from policy.errors import ConfigError, InputError
from policy.systems import SYSTEMS
from runs import recording as recordings
from runs.recording import Recording
from runs.scenario import build
from sim.simulate import simulate
from tests.helpers.hand import Hand, every
from tests.helpers.tracks import counter, parsed, problems, slices_of
from tests.unit.test_cli import SMALL, run

TIGHT = {**SMALL, "pool": {"device_blocks": 45, "host_blocks": 120, "aging": "none"}}


def made(system: str, **values: Any) -> Recording:
    return simulate(build({**TIGHT, "system": system, **values}, "test"), decisions=True)


def text_of(recording: Recording) -> str:
    return "".join(pieces(recording))


# ---------------------------------------------------------------------- the checker itself


def track(*slices: tuple[float, float]) -> list[dict[str, Any]]:
    name = {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name", "args": {"name": "t"}}
    return [name] + [
        {"ph": "X", "pid": 1, "tid": 7, "name": "s", "ts": begin, "dur": end - begin}
        for begin, end in slices
    ]


def test_the_checker_sees_what_is_wrong_and_nothing_else() -> None:
    assert problems(track((0, 1), (1, 3), (5, 5))) == []
    assert len(problems(track((0, 2), (1, 3)))) == 1
    assert len(problems(track((0, 9), (1, 3)))) == 1
    assert len(problems(track((3, 1)))) == 1
    assert len(problems(track((0, 1))[1:])) == 1
    assert (
        len(
            problems(
                [*track((0, 1)), {**track((4, 5))[0], "pid": 2}, {**track((4, 5))[1], "pid": 2}]
            )
        )
        == 1
    )
    counted = {"ph": "C", "pid": 1, "tid": 0, "name": "c", "ts": 0, "args": {"c": -1}}
    assert len(problems([counted])) == 1


def test_a_planted_overlap_is_seen_in_a_whole_timeline(monkeypatch: pytest.MonkeyPatch) -> None:
    found = made("vllm-0.3.3-keep")
    assert problems(parsed(text_of(found))) == []
    gap = lives._gap
    monkeypatch.setattr(lives, "_gap", lambda begin, *rest, **how: gap(begin - 1, *rest, **how))
    assert problems(parsed(text_of(found)))


# ---------------------------------------------------------------------- by hand


def by_hand() -> Recording:
    """Steps of 10 ns, step i from 10 i on; steps 1 and 3 begin with a stall."""
    hand = Hand(*every(10, 12), stalls={1: 2, 3: 4}, batch=1)
    hand.prompt("r", 1, 10).tokens("r", (1, 3), (8, 9)).preempted("r", 4)
    hand.copy("d2h", 40, 47, start_ns=41).copy("h2d", 55, 75, start_ns=60)
    hand.request("r", 3, 20, 100, 5, preemptions=1)
    hand.prompt("p", 2, 10).tokens("p", (2, 2), (4, 4))
    hand.request("p", 20, 30, 50, 2)
    hand.request("no", 44, reason="empty prompt")
    hand.prompt("gone", 10, 10).tokens("gone", (10, 10))
    hand.request("gone", 95, 110, status="cancelled", cancel_ns=105, reason="client left")
    hand.request("late", 118, status="unfinished", reason="the engine stopped")
    return hand.recording()


def test_the_life_of_a_preempted_request() -> None:
    events = parsed(text_of(by_hand()))
    assert problems(events) == []
    assert slices_of(events, "r") == [
        (3, 10, "queued"),
        (10, 12, "stalled"),
        (12, 20, "prefill"),
        (20, 30, "decode"),
        (30, 34, "stalled"),
        (34, 40, "decode"),
        (40, 41, "parked"),
        (41, 47, "swap-out"),
        (47, 60, "parked"),
        (60, 75, "swap-in"),
        (75, 80, "parked"),
        (80, 100, "decode"),
    ]


def test_the_lives_of_others() -> None:
    events = parsed(text_of(by_hand()))
    assert slices_of(events, "p") == [(20, 30, "prefill"), (30, 40, "paused"), (40, 50, "decode")]
    assert slices_of(events, "no") == []
    assert slices_of(events, "gone") == [(95, 100, "queued"), (100, 110, "prefill")]
    assert slices_of(events, "late") == [(118, 120, "queued")]
    told = {e["name"]: int(e["ts"] * 1000) for e in events if e["ph"] == "i"}
    assert told == {
        "rejected: empty prompt": 44,
        "cancelled: client left": 110,
        "unfinished: the engine stopped": 120,
    }


def test_a_recompute_and_a_load_for_a_stalled_step() -> None:
    hand = Hand(*every(10, 8), stalls={5: 6}, batch=1)
    hand.prompt("r", 0, 10).tokens("r", (0, 1)).preempted("r", 2, "recompute")
    hand.prompt("r", 5, 12).tokens("r", (5, 6)).request("r", 0, 10, 70, 4)
    hand.copy("h2d", 50, 55, start_ns=51, waited_for=True)
    events = parsed(text_of(hand.recording()))
    assert slices_of(events, "r") == [
        (0, 10, "prefill"),
        (10, 20, "decode"),
        (20, 50, "parked"),
        (50, 51, "stalled"),
        (51, 55, "swap-in"),
        (55, 56, "stalled"),
        (56, 60, "prefill"),
        (60, 70, "decode"),
    ]
    assert [e["args"]["tokens"] for e in events if e["name"] == "prefill" and e["pid"] == 2] == [
        10,
        12,
    ]


def test_the_device_its_stalls_and_its_pools() -> None:
    hand = Hand(10, 30, stalls={1: 5}, batch=2)
    hand.rows["steps"][0].update(prefill_tokens=7, batch=0, free_blocks=9)
    hand.rows["steps"][1].update(kv_tokens=8, free_blocks=9, free_host_blocks=4)
    events = parsed(text_of(hand.recording()))
    assert slices_of(events, "steps") == [(0, 10, "prefill"), (10, 15, "stall"), (15, 30, "decode")]
    assert counter(events, "free device blocks") == [(0, 9)]
    assert counter(events, "free host blocks") == [(0, 0), (10, 4)]
    assert counter(events, "batch") == [(0, 0), (10, 2)]
    last = [e for e in events if e["ph"] == "X" and e["name"] == "decode"]
    assert last[0]["args"] == {"step": 1, "prefill_tokens": 0, "batch": 2, "kv_tokens": 8}


def test_a_copy_out_that_begins_at_once_counts_as_swapped() -> None:
    hand = Hand(*every(10, 8), batch=1).prompt("r", 0, 9).tokens("r", (0, 1), (6, 7))
    hand.preempted("r", 2).copy("d2h", 20, 26).copy("h2d", 45, 55)
    events = parsed(text_of(hand.request("r", 0, 10, 80, 4).recording()))
    assert [state for _, _, state in slices_of(events, "r")] == [
        "prefill", "decode", "swap-out", "parked", "swap-in", "parked", "decode",
    ]  # fmt: skip
    assert counter(events, "swapped") == [(20, 1), (60, 0)]


def test_copies_that_overlap_get_tracks_of_their_own() -> None:
    hand = Hand(100)
    hand.copy("d2h", 0, 50).copy("d2h", 10, 30).copy("d2h", 20, 60).copy("d2h", 28, 40).copy(
        "d2h", 30, 31
    )
    hand.copy("h2d", 5, 9, start_ns=7, ok=False, blocks=3)
    events = parsed(text_of(hand.recording()))
    assert problems(events) == []
    name = "link, device to host"
    assert slices_of(events, name) == [(0, 50, "copy")]
    assert slices_of(events, f"{name} (2)") == [(10, 30, "copy"), (30, 31, "copy")]
    assert slices_of(events, f"{name} (3)") == [(20, 60, "copy")]
    assert slices_of(events, f"{name} (4)") == [(28, 40, "copy")]
    assert slices_of(events, "link, host to device") == [(7, 9, "copy, dropped")]
    (dropped,) = [e for e in events if e["name"] == "copy, dropped"]
    assert dropped["args"]["queued_us"] * 1000 == 2
    assert (dropped["args"]["blocks"], dropped["args"]["bytes"]) == (3, 300)
    assert counter(events, "copies queued or moving, d2h") == [
        (0, 1), (10, 2), (20, 3), (28, 4), (31, 3), (40, 2), (50, 1), (60, 0),
    ]  # fmt: skip


def test_times_are_microseconds_and_not_a_digit_is_lost() -> None:
    hand = Hand(1_234_567_890_123_456_789, 1_234_567_890_123_456_790)
    text = text_of(hand.recording())
    assert '"ts":0.000,"dur":1234567890123456.789' in text
    assert '"ts":1234567890123456.789,"dur":0.001' in text


def test_names_that_could_break_the_file_do_not() -> None:
    names = ['"', "\\", "</script>", "a\nb\x00\x7f", "\u2028é\U0001f600", '","ph":"X', "{}[]"]
    hand = Hand(10)
    for name in names:
        hand.prompt(name, 0, 1).tokens(name, (0, 0)).request(name, 0, 10, 10, session=name)
        hand.copy("d2h", 0, 1, request_id=name)
    text = text_of(hand.recording())
    assert text.isascii() and "\x00" not in text
    events = parsed(text)
    assert [
        e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 2
    ] == names
    assert [e["args"]["request"] for e in events if e["name"] == "copy"] == names


def test_nothing_at_all_is_a_timeline_too() -> None:
    assert problems(parsed(text_of(Hand().recording()))) == []


# ---------------------------------------------------------------------- against the decisions


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_life_is_whole_and_says_what_was_decided(system: str) -> None:
    """Lives come from the tables of spans; what was decided is in decisions.jsonl, apart."""
    found = made(system)
    events = parsed(text_of(found))
    assert problems(events) == []
    ended = {row["request_id"]: row for row in found.table("requests").to_pylist()}
    lives = {name: slices_of(events, name) for name in ended}
    for name, row in ended.items():
        if row["status"] == "finished":
            assert lives[name][0][0] == row["arrival_ns"] and lives[name][-1][1] == row["finish_ns"]
            assert all(a[1] == b[0] for a, b in pairwise(lives[name]))
    steps = found.table("steps").to_pylist()
    states: Counter[str] = Counter()
    for line, step in zip(found.decision_lines(), steps, strict=True):
        decided = json.loads(line)
        middle = (step["start_ns"] + step["stall_ns"] + step["end_ns"]) // 2
        now = {name: state_at(life, middle) for name, life in lives.items()}
        states.update(state for state in now.values() if state)
        assert {n for n, s in now.items() if s == "prefill"} == {n for n, _ in decided["prefill"]}
        assert {n for n, s in now.items() if s == "decode"} == set(decided["decode"])
        if step["stall_ns"]:
            early = step["start_ns"] + step["stall_ns"] // 2
            for name in (*decided["decode"], *(n for n, _ in decided["prefill"])):
                assert state_at(lives[name], early) in ("stalled", "swap-in", "swap-out")
        for name in (*decided["swap_out"], *decided["recompute"]):
            assert state_at(lives[name], step["start_ns"]) in ("parked", "swap-out", "queued")
    assert states["decode"] and states["prefill"] and states["queued"]
    assert found.table("preemptions").num_rows and states["parked"]


def state_at(life: list[tuple[int, int, str]], moment: int) -> str | None:
    return next((state for begin, end, state in life if begin <= moment < end), None)


@pytest.mark.parametrize("system", ["vllm-0.3.3-keep", "fastswitch", "vllm-0.3.3-recompute"])
def test_counters_agree_with_lives(system: str) -> None:
    found = made(system)
    events = parsed(text_of(found))
    lives = [slices_of(events, row["request_id"]) for row in found.table("requests").to_pylist()]
    waiting, swapped = (counter(events, name) for name in ("waiting", "swapped"))
    assert max(value for _, value in waiting) > 1 and max(value for _, value in swapped) > 1
    assert waiting[-1][1] == swapped[-1][1] == 0
    for moment in sorted({begin for life in lives for begin, _, _ in life}):
        waits = preempted = 0
        for life in lives:
            before = [state for begin, _, state in life if begin <= moment]
            if life and before and moment < life[-1][1]:
                begun = {"prefill", "decode"}.intersection(before)
                waits += not begun
                last = [s for s in before if s in ("prefill", "decode", "parked", "swap-out")]
                preempted += bool(begun) and last[-1] in ("parked", "swap-out")
        assert value_at(waiting, moment) == waits
        assert value_at(swapped, moment) == preempted


def value_at(series: list[tuple[int, int]], moment: int) -> int:
    return next((value for at, value in reversed(series) if at <= moment), 0)


def test_token_times_are_those_of_the_first_and_last_token() -> None:
    found = made("fastswitch")
    for row, times in Lives(found).with_token_times():
        assert times.size == row["output_tokens"]
        if row["status"] == "finished":
            assert (times[0], times[-1]) == (row["first_token_ns"], row["finish_ns"])
            assert (times[1:] > times[:-1]).all()


# ---------------------------------------------------------------------- files


def test_a_run_where_the_release_stalls_has_a_timeline() -> None:
    found = made(
        "vllm-0.3.3", order="fcfs", pool={"device_blocks": 45, "host_blocks": 1, "aging": "none"}
    )
    assert found.summary["verdict"]
    assert problems(parsed(text_of(found))) == []


def test_a_timeline_is_written_as_it_is_made(tmp_path: Path) -> None:
    """Memory is that of a few columns of the tables, not of the text."""
    hand = Hand(*every(1000, 30_000), batch=1).prompt("r", 0, 9).tokens("r", (0, 29_999))
    for name, table in hand.request("r", 0, 1000, 30_000_000, 30_000).recording().tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found = Recording({}, tmp_path)
    sizes = []
    for write in (pieces,):
        tracemalloc.start()
        size = sum(len(piece) for piece in write(found))
        sizes.append((size, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
    assert sizes[0][0] > 3_000_000 and sizes[0][1] < 3_000_000, sizes


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_a_file_is_the_same_bytes_each_time_and_packed_if_its_name_says_so(
    name: str, tmp_path: Path
) -> None:
    found = made("fastswitch")
    export(found, "perfetto", tmp_path / name)
    export(found, "perfetto", tmp_path / f"again-{name}")
    data = (tmp_path / name).read_bytes()
    assert data == (tmp_path / f"again-{name}").read_bytes()
    text = gzip.decompress(data) if name.endswith("gz") else data
    assert data[4:8] == bytes(4) or not name.endswith("gz")  # the time of its making
    assert text.decode() == text_of(found)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"again-{name}"])


def test_what_cannot_be_written_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = by_hand()
    with pytest.raises(ConfigError, match=r"nowhere/t.json: cannot be written: No such file"):
        export(found, "perfetto", tmp_path / "nowhere" / "t.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder: cannot be written"):
        export(found, "perfetto", tmp_path / "folder")
    with pytest.raises(ConfigError, match="'csv' is not one of perfetto, vllm, aiperf, llm-d"):
        export(found, "csv", tmp_path / "t.csv")

    def breaks(_: Recording) -> Any:
        yield "{"
        raise InputError("steps.parquet: torn")

    monkeypatch.setitem(module.WRITERS, "perfetto", breaks)
    with pytest.raises(InputError):
        export(found, "perfetto", tmp_path / "t.json")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_killed_run_has_no_timeline(tmp_path: Path) -> None:
    (tmp_path / "requests.journal.jsonl").write_text("")
    with pytest.raises(ConfigError, match="the run was killed"):
        export(recordings.load(tmp_path), "perfetto", tmp_path / "t.json")


def test_the_command_writes_what_an_export_of_the_folder_writes(tmp_path: Path) -> None:
    scenario = tmp_path / "small.yaml"
    scenario.write_text(json.dumps(TIGHT))
    one, other, out = (tmp_path / name for name in ("one.json.gz", "other.json.gz", "run"))
    result = run("simulate", scenario, "--out", out, "--perfetto", one)
    assert result.exit_code == 0, result.output
    result = run("export", out, "--format", "perfetto", "--out", other)
    assert result.exit_code == 0, result.output
    assert one.read_bytes() == other.read_bytes()
    assert problems(parsed(gzip.decompress(one.read_bytes()).decode())) == []
    assert run("export", tmp_path, "--format", "vllm", "--out", other).exit_code == 3
