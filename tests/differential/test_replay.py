"""A recording replayed: the same decisions, or the first one that differs."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import fastswitch
from explore.validation import validate
from policy.errors import ConfigError, InputError
from policy.orders.base import Order
from policy.plan import Copy, CopyResult
from policy.systems import SYSTEMS
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario, build
from runs.serving import aging_lengths, make_scheduler
from runs.user_order import user_order
from sim import simulate as machine
from sim.device import Device
from sim.engine import Engine
from sim.replay import Difference, Replayed, replay
from tests.helpers.replay_machine import rough_run
from tests.helpers.small import IDS_NAME, random_ids
from traces.randomness import Streams

ORDERS = ("random", "markov", "fcfs", "vtc")
CHAT = {
    "generator": "chat",
    "conversations": 10,
    "rate": 5.0,
    "context_cap": 400,
    "think": "exponential",
    "think_mean_s": 1.0,
}


def scenario(**values: Any) -> Scenario:
    """Overloaded: a device for two or three conversations of ten."""
    data: dict[str, Any] = {
        "name": "replayed",
        "profile": "a10-llama-3-8b",
        "workload": CHAT,
        "pool": {"device_blocks": 40, "host_blocks": 60},
        "limits": {"max_model_len": 400},
        "priority": {"frequency": 0.1},
        "last_turn_known": True,
    }
    return build({**data, **values}, "test")


def open_workload(folder: Path, seed: int) -> str:
    """Clients that leave, prompts that repeat half of what was said, rows that cannot be served."""
    rng = random.Random(seed)
    header = {"format": "fastswitch-workload/1", "timing": "open"}
    lines = [json.dumps({**header, "block_size": IDS_NAME, "hash_scope": "global"})]
    arrival = 0.0
    for index in range(30):
        arrival += rng.choice([0.0, 0.05, 0.4])
        row = {
            "request_id": f"r{index}",
            "session_id": f"s{index % 6}",
            "turn": index // 6 + 1,
            "input_tokens": rng.choice([0, rng.randrange(1, 390), rng.randrange(1, 390)]),
            "output_tokens": rng.randrange(0, 60),
            "arrival_s": round(arrival, 3),
            "client_id": f"k{index % 2}",
        }
        if rng.random() < 0.4:
            row["parent_prefix_tokens"] = rng.randrange(0, 200)
        row["hash_ids"] = random_ids(rng, row["input_tokens"])
        if rng.random() < 0.4:
            row["cancel_s"] = rng.choice([0.0, 0.01, 0.5, 3.0])
        lines.append(json.dumps(row))
    path = folder / f"w{seed}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def record(
    found: Scenario, fails: Callable[[Copy], bool] | None = None, order: Order | None = None
) -> Recording:
    """What `simulate` does in memory, with copies that may fail."""
    setup = machine.prepare(found)
    scheduler = make_scheduler(setup, order)
    recorder = Recorder(decisions=True, aging=aging_lengths(setup))
    engine = machine.make_engine(setup, scheduler, recorder, "counts")
    engine.link._fails = fails
    engine.env.run(until=engine.env.process(engine.run()))
    return recorder.close(machine._facts(setup, scheduler, engine))


def now_and_then(seed: int) -> Callable[[Copy], bool]:
    rng = random.Random(seed)
    return lambda _copy: rng.random() < 0.1


def assert_equal(replayed: Replayed, recording: Recording) -> None:
    assert replayed.difference is None
    assert replayed.equal_lines == recording.table("steps").num_rows > 0


def statuses(recording: Recording) -> list[str]:
    return list(recording.table("requests")["status"].to_pylist())


# ---------------------------------------------------------------------- equal


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_decides_the_same_again_under_every_order(
    system: str, order: str, tmp_path: Path
) -> None:
    preemptions, cancelled, failed = 0, 0, 0
    for seed, workload in enumerate((CHAT, CHAT, open_workload(tmp_path, 1))):
        found = scenario(workload=workload, system=system, order=order, seed=seed)
        recording = record(found, now_and_then(seed) if seed else None)
        assert_equal(replay(recording, found), recording)
        preemptions += recording.table("preemptions").num_rows
        cancelled += statuses(recording).count("cancelled")
        failed += recording.table("copies")["ok"].to_pylist().count(False)
    assert preemptions
    assert cancelled
    assert (
        failed
        or SYSTEMS[system].options.preemption == "recompute"
        or (system, order) == ("vllm-0.3.3", "fcfs")
    )


@pytest.mark.parametrize("system", ["fastswitch", "vllm-0.3.3", "vllm-v1"])
def test_who_leaves_at_once_after_a_step_without_time_leaves_at_once_again(
    system: str, tmp_path: Path
) -> None:
    """The first turn is too long and is rejected by a step that takes no time; the next one comes with
    that step's end, and has left before the plan after it."""
    turns = [
        {"request_id": "a/1", "session_id": "a", "turn": 1, "input_tokens": 700, "arrival_s": 0.0},
        {"request_id": "a/2", "session_id": "a", "turn": 2, "input_tokens": 30, "think_s": 0.0},
        {"request_id": "b/1", "session_id": "b", "turn": 1, "input_tokens": 30, "arrival_s": 1.0},
    ]
    turns[1]["cancel_s"] = 0.0
    path = tmp_path / "w.jsonl"
    header = {"format": "fastswitch-workload/2", "timing": "closed"}
    rows = [header, *({"output_tokens": 5, **turn} for turn in turns)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = scenario(workload=str(path), system=system)
    recording = record(found)
    assert statuses(recording) == ["rejected", "cancelled", "finished"]
    assert_equal(replay(recording, found), recording)


@pytest.mark.parametrize("overlap", ["sync", "async", "adaptive"])
@pytest.mark.parametrize("aging", ["none", "churn", "shuffle"])
def test_pools_are_aged_and_clocks_tick_as_they_did(overlap: str, aging: str) -> None:
    found = scenario(
        system={"base": "fastswitch", "overlap": overlap, "between_turns": "keep_device"},
        order="random",
        priority={"period_s": 0.05},
        pool={"device_blocks": 40, "host_blocks": 30, "aging": aging},
    )
    recording = record(found)
    assert recording.table("preemptions").num_rows
    assert_equal(replay(recording, found), recording)


@pytest.mark.counted
@pytest.mark.parametrize("part", range(4))
def test_a_machine_with_times_of_its_own_is_replayed(
    part: int, seeds: Callable[[int, int], range], tmp_path: Path
) -> None:
    """Late plans, late looks at copies, failed copies, replies that stop early, stopped runs."""
    seen = dict.fromkeys(("finished", "cancelled", "unfinished", "rejected"), 0)
    unnumbered = failed = 0
    for seed in seeds(80, 800)[part::4]:
        rng = random.Random(seed)
        by_clock = {"priority": {"period_s": 0.2}} if rng.random() < 0.3 else {}
        found = scenario(
            workload=rng.choice([CHAT, open_workload(tmp_path, seed)]),
            system=rng.choice(list(SYSTEMS)),
            order=rng.choice(ORDERS),
            pool={
                "device_blocks": rng.randrange(26, 60),
                "host_blocks": rng.choice([0, 20, 60, 400]),
                "aging": rng.choice(["none", "churn", "shuffle"]),
            },
            last_turn_known=rng.random() < 0.5,
            seed=seed,
            **by_clock,
        )
        failing, stop = rng.choice([0.0, 0.3]), rng.random() < 0.3
        recording = rough_run(found, seed, failing=failing, stop=stop)
        assert_equal(replay(recording, found), recording)
        for status in statuses(recording):
            seen[status] += 1
        unnumbered += sum("before_step" in note for note in recording.notes)
        failed += recording.table("copies")["ok"].to_pylist().count(False)
    assert min(seen.values()) > 0, seen
    assert unnumbered > 20
    assert failed > 5


def test_the_end_that_vllm_would_have_come_to_is_replayed() -> None:
    found = scenario(
        system="vllm-0.3.3", order="fcfs", pool={"device_blocks": 40, "host_blocks": 4}
    )
    recording = record(found)
    assert recording.summary["verdict"]
    assert_equal(replay(recording, found), recording)
    recording.summary["verdict"] = None
    difference = replay(recording, found).difference
    assert difference is not None
    assert difference.where == "the verdict of vLLM 0.3.3"


def test_a_users_own_order_is_replayed_when_it_is_given() -> None:
    class Longest(Order):
        def key(self, request: Any, now_ns: int) -> tuple[int]:
            return (-request.input_tokens,)

    own = user_order(Longest())
    recording = record(scenario(), order=own.make(Streams(0, 0)))
    assert_equal(replay(recording, scenario(), Longest()), recording)
    assert_equal(replay(recording, scenario(), own), recording)
    with pytest.raises(ConfigError, match=r"made with '.*Longest', and this is .* --order"):
        replay(recording, scenario())


# ---------------------------------------------------------------------- planted changes


def one_token_late(device: Device) -> tuple[str, ...]:
    """Whoever is done learns it in the next decode step."""
    late: tuple[str, ...] = getattr(device, "late", ())
    device.late = END_DECODE(device)  # type: ignore[attr-defined]
    return late


def no_first_token(device: Device, plan: Any, lost: set[str], end_ns: int) -> tuple[str, ...]:
    """A prefill yields nothing, so every reply takes a step more."""
    finished = END_PREFILL(device, plan, lost, end_ns)
    for name, _ in plan.prefill:
        device.served[name].produced -= 1
    return finished


def swapped_completions(engine: Engine) -> tuple[CopyResult, ...]:
    """Of several copies that ended at once, the first is taken for the last and did not go well."""
    results = ENDED_COPIES(engine)
    if len(results) < 2:
        return results
    first, *rest, last = results
    return (last._replace(ok=False), *rest, first)


def forgotten_completions(engine: Engine) -> tuple[CopyResult, ...]:
    return ENDED_COPIES(engine)[:-1]


def deaf_to_leavers(engine: Engine, now: int) -> None:
    engine._cancels.clear()


def tokens_for_all(engine: Engine, plan: Any, lost: set[str]) -> None:
    """A failed load costs nobody the token."""


END_DECODE, END_PREFILL, ENDED_COPIES = Device.end_decode, Device.end_prefill, Engine._ended_copies
PLANTED: dict[str, tuple[type, str, Any]] = {
    "a reply ends one token late": (Device, "end_decode", one_token_late),
    "a prefill yields no token": (Device, "end_prefill", no_first_token),
    "completions are swapped": (Engine, "_ended_copies", swapped_completions),
    "completions are lost": (Engine, "_ended_copies", forgotten_completions),
    "nobody ever leaves": (Engine, "_cancel", deaf_to_leavers),
    "a lost token is counted": (Engine, "_report", tokens_for_all),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_change_in_the_machine_breaks_the_replay(
    what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = scenario(workload=open_workload(tmp_path, 1), order="random", system="fastswitch")
    recording = record(found, now_and_then(3))
    assert_equal(replay(recording, found), recording)
    monkeypatch.setattr(*PLANTED[what])
    replayed = replay(recording, found)
    assert replayed.difference is not None
    assert 0 < replayed.equal_lines < recording.table("steps").num_rows
    if replayed.difference.where == f"line {replayed.equal_lines + 1} of decisions.jsonl":
        assert replayed.difference.recorded == recording.decisions[replayed.equal_lines]
    assert replayed.difference.recorded != replayed.difference.replayed


# ---------------------------------------------------------------------- changed recordings


@pytest.fixture
def small() -> tuple[Scenario, Recording]:
    found = scenario(order="markov")
    return found, record(found)


def difference_of(small: tuple[Scenario, Recording]) -> Difference:
    found, recording = small
    difference = replay(recording, found).difference
    assert difference is not None
    return difference


def test_a_line_edited_by_hand_is_the_one_that_differs(small: tuple[Scenario, Recording]) -> None:
    lines = small[1].decisions
    true = lines[40]
    lines[40] = true.replace('"free_host_blocks":', '"free_host_blocks":1')
    assert difference_of(small) == Difference("line 41 of decisions.jsonl", lines[40], true)


def test_a_line_taken_out_or_put_in_is_noticed(small: tuple[Scenario, Recording]) -> None:
    lines = small[1].decisions
    last, count = lines.pop(), len(lines)
    where = f"line {count + 1} of decisions.jsonl"
    assert difference_of(small) == Difference(where, "nothing", last)
    lines += [last, "{}"]
    where = f"line {count + 2} of decisions.jsonl"
    assert difference_of(small) == Difference(where, "{}", "the run is over")


def test_the_arrivals_of_another_seed_do_not_fit(small: tuple[Scenario, Recording]) -> None:
    other = record(scenario(order="markov", seed=1))
    for table in ("workload", "requests"):
        small[1].tables[table] = other.tables[table]
    small[1].notes[:] = [*small[1].notes[:1], *other.notes[1:]]
    assert "decisions.jsonl" in difference_of(small).where


def test_another_seed_or_size_decides_otherwise(small: tuple[Scenario, Recording]) -> None:
    found, recording = small
    assert replay(recording, found.with_values({"seed": 1})).difference
    assert replay(recording, found.with_values({"pool.device_blocks": 41})).difference


def change_column(recording: Recording, table: str, column: str, row: int, value: Any) -> None:
    rows = recording.tables[table].to_pylist()
    rows[row][column] = value
    changed = recording.tables[table].from_pylist(rows, schema=recording.tables[table].schema)
    recording.tables[table] = changed


def test_a_copy_that_never_was_is_named(small: tuple[Scenario, Recording]) -> None:
    change_column(small[1], "copies", "copy_id", 3, 1 << 20)
    difference = difference_of(small)
    assert difference.where.startswith(f"copy {1 << 20}, seen before step ")
    assert difference.replayed == "nothing"


def test_a_copy_of_other_blocks_is_named(small: tuple[Scenario, Recording]) -> None:
    change_column(small[1], "copies", "blocks", 3, 999)
    assert "999 blocks" in difference_of(small).recorded


def test_a_step_that_did_not_wait_for_its_copy_is_named() -> None:
    found = scenario(order="random", system="+groups")
    recording = record(found)
    rows = recording.tables["copies"].to_pylist()
    row = next(k for k, copy in enumerate(rows) if copy["waited_for"])
    for late in range(row, len(rows)):
        step = rows[late]["seen_step"]
        change_column(recording, "copies", "seen_step", late, step + 1)
    difference = difference_of((found, recording))
    assert difference.replayed == "the step waits for it"


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"before_step":"x","now_ns":1,"copies":0}', "7"])
def test_a_torn_note_is_bad_input(small: tuple[Scenario, Recording], note: str) -> None:
    small[1].notes.insert(1, note)
    with pytest.raises(InputError, match=r"replay\.jsonl:2: "):
        replay(small[1], small[0])


def test_sizes_and_rows_that_are_missing_are_bad_input(small: tuple[Scenario, Recording]) -> None:
    found, recording = small
    notes = list(recording.notes)
    recording.notes[0] = '{"aging":[]}'
    with pytest.raises(InputError, match="which lengths the pools were aged with"):
        replay(recording, found)
    recording.notes[:] = notes
    recording.tables["requests"] = recording.tables["requests"].slice(1)
    with pytest.raises(InputError, match="is missing"):
        replay(recording, found)
    del recording.summary["host_blocks"]
    with pytest.raises(InputError, match="host_blocks"):
        replay(recording, found)


def test_a_missing_step_is_bad_input(small: tuple[Scenario, Recording]) -> None:
    small[1].tables["steps"] = small[1].tables["steps"].slice(1)
    with pytest.raises(InputError, match="step 1 where 0 was due"):
        replay(small[1], small[0])


# ---------------------------------------------------------------------- the command


def run(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording whose workload and scenario are gone, and whose profile nobody has."""
    found = scenario(workload=open_workload(tmp_path, 2), order="random")
    path = tmp_path / "found.yaml"
    path.write_text(found.as_yaml())
    assert run("simulate", path, "--decisions", "--out", tmp_path / "first").exit_code == 0
    shutil.move(tmp_path / "first", tmp_path / "moved")
    path.unlink()
    (tmp_path / "w2.jsonl").unlink()
    resolved = tmp_path / "moved" / "scenario.yaml"
    data = yaml.safe_load(resolved.read_text())
    resolved.write_text(yaml.safe_dump({**data, "profile": "a-machine-nobody-has"}))
    return tmp_path / "moved"


def test_a_recording_is_enough_to_replay_by_itself(folder: Path) -> None:
    result = run("validate", folder, "--replay")
    assert result.exit_code == 0, result.output
    count = len((folder / "decisions.jsonl").read_text().splitlines())
    assert result.stdout == f"{folder}: replayed, all {count} lines of decisions.jsonl are equal\n"
    assert validate.replay(folder) == Replayed(count, None)
    assert fastswitch.replay(folder) == Replayed(count, None)


def edit(folder: Path, line: int) -> tuple[str, str]:
    path = folder / "decisions.jsonl"
    lines = path.read_text().splitlines()
    true = lines[line]
    lines[line] = true.replace('"free_device_blocks":', '"free_device_blocks":9')
    path.write_text("\n".join(lines) + "\n")
    return lines[line], true


def test_the_first_line_that_differs_is_shown_in_both_versions(folder: Path) -> None:
    false, true = edit(folder, 12)
    edit(folder, 30)
    result = run("validate", folder, "--replay")
    assert result.exit_code == 4
    assert result.stderr.splitlines() == [
        f"error: {folder}: line 13 of decisions.jsonl differs in free_device_blocks;"
        " 12 lines before it are equal",
        f"  recorded: {false}",
        f"  replayed: {true}",
    ]


def test_json_says_it_to_machines(folder: Path) -> None:
    result = run("validate", folder, "--replay", "--json")
    count = len((folder / "decisions.jsonl").read_text().splitlines())
    equal = {"run": str(folder), "equal_lines": count, "difference": None}
    assert (result.exit_code, json.loads(result.stdout)) == (0, [equal])
    false, true = edit(folder, 12)
    result = run("validate", folder, "--replay", "--json")
    difference = {"where": "line 13 of decisions.jsonl", "recorded": false, "replayed": true}
    differs = {"run": str(folder), "equal_lines": 12, "difference": difference}
    assert (result.exit_code, json.loads(result.stdout)) == (4, [differs])


def test_several_recordings_are_replayed_at_once(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    edit(tmp_path / "other", 0)
    result = run("validate", folder, tmp_path / "other", "--replay")
    assert result.exit_code == 4
    assert "all" in result.stdout
    assert "line 1 of decisions.jsonl" in result.stderr


def test_a_recording_without_decisions_cannot_be_replayed(folder: Path) -> None:
    (folder / "replay.jsonl").unlink()
    result = run("validate", folder, "--replay")
    assert result.exit_code == 2
    assert "no replay.jsonl" in result.stderr
    (folder / "decisions.jsonl").unlink()
    result = run("validate", folder, "--replay")
    assert result.exit_code == 2
    assert "no decisions.jsonl; record it again with --decisions" in result.stderr


def test_what_is_no_recording_is_bad_input(tmp_path: Path) -> None:
    assert run("validate", tmp_path, "--replay").exit_code == 3
    assert run("validate", "--replay").exit_code == 2
    result = run("validate", tmp_path)
    assert (result.exit_code, "--replay" in result.stderr) == (2, True)
