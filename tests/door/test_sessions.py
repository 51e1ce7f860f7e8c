"""What a served session leaves behind: it replays, it is a workload, and offline it is what it was live."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("tokenizers")

from click.testing import CliRunner

import fastswitch
from explore.validation.validate import replay
from policy.systems import SYSTEMS
from runs.recording import JOURNAL, load
from sim.simulate import simulate
from tests.helpers.door import Door, open_door, requests_of, scenario, wait_for
from traces.readers.catalog import read_workload

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def crowd(door: Door, clients: int, turns: int = 2) -> None:
    """Conversations at once, each going on from what it was answered; every third has no session's name."""

    together = threading.Barrier(clients)

    def talk(k: int) -> None:
        together.wait(20)
        said = [{"role": "user", "content": f"client {k}: " + "lorem " * (k % 5)}]
        for turn in range(turns):
            more: dict[str, Any] = {} if k % 3 == 0 else {"session_id": f"s{k}"}
            asked = {"messages": said, "max_tokens": 30 + 5 * (k % 4), "ignore_eos": True}
            status, answer = door.ask(CHAT, {**asked, "priority": k % 3, "user": f"u{k}", **more})
            assert status == 200, answer
            text = answer["choices"][0]["message"]["content"]
            assert len(text) == 30 + 5 * (k % 4) == answer["usage"]["completion_tokens"]
            said += [
                {"role": "assistant", "content": text},
                {"role": "user", "content": f"more {turn}"},
            ]

    threads = [threading.Thread(target=talk, args=(k,)) for k in range(clients)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(60)
        assert not one.is_alive()


@pytest.mark.parametrize("system", ["fastswitch", "vllm-v1"])
def test_a_session_replays_to_the_last_line(tmp_path: Path, system: str) -> None:
    session_replays(tmp_path / "run", system)


@pytest.mark.full
@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_a_session_of_every_system_replays_to_the_last_line(tmp_path: Path, system: str) -> None:
    session_replays(tmp_path / "run", system)


def session_replays(run: Path, system: str) -> None:
    order = "fcfs" if system.startswith("vllm-0.3.3") else "priority"
    values = {"system": system, "order": order}
    with open_door(run, values, scale=100) as door:
        crowd_of(door, order)
    assert door.error is None
    found = replay(run)
    assert found.difference is None
    assert found.equal_lines > 50
    rows = requests_of(run)
    assert {row["status"] for row in rows.values()} == {"finished"}


def crowd_of(door: Door, order: str) -> None:
    if order == "priority":
        crowd(door, 8)
        return
    for _ in range(6):
        assert door.ask(PLAIN, {"prompt": "x" * 100, "max_tokens": 30})[0] == 200


def test_later_turns_find_their_parents_by_their_tokens(tmp_path: Path) -> None:
    with open_door(tmp_path / "run") as door:
        crowd(door, 6, turns=3)
    rows = {row["request_id"]: row for row in load(tmp_path / "run").rows("workload")}
    children = [row for row in rows.values() if row["parent_id"] is not None]
    assert len(children) == 12
    for row in children:
        parent = rows[row["parent_id"]]
        assert row["session_id"] == parent["session_id"]
        assert row["turn"] == parent["turn"] + 1
        assert row["parent_prefix_tokens"] >= parent["input_tokens"]


def test_live_is_offline(tmp_path: Path) -> None:
    """The session as a workload, simulated: the same preemptions, first tokens to the nanosecond."""
    run, file = tmp_path / "run", tmp_path / "session.jsonl"
    with open_door(run, scale=3) as door:  # slow, so that they meet on a busy host too
        crowd(door, 12)
    done = CliRunner().invoke(fastswitch.main, ["trace", "convert", str(run), "-o", str(file)])
    assert done.exit_code == 0, done.output
    live = requests_of(run)
    again = simulate(scenario(workload={"file": str(file)}))
    offline = {row["request_id"]: row for row in again.rows("requests")}
    assert sum(row["preemptions"] for row in live.values()) > 0
    for name, row in live.items():
        for field in ("preemptions", "parkings", "output_tokens", "first_token_ns", "finish_ns"):
            assert offline[name][field] == row[field], (name, field)


def test_a_session_is_a_workload_of_lengths_as_they_were_and_of_who_left(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", scale=1) as door:
        assert door.ask(PLAIN, {"prompt": "abc", "max_tokens": 4})[0] == 200
        stream = threading.Thread(
            target=lambda: door.ask(PLAIN, {"prompt": "abc", "max_tokens": 300, "ignore_eos": True})
        )
        stream.start()
        wait_for(lambda: door.front.live)
        time.sleep(0.2)
        door.stop()
        stream.join()
    turns = {turn.request_id: turn for turn in read_workload(tmp_path / "run")}
    rows = requests_of(tmp_path / "run")
    assert turns["q1"].output_tokens == rows["q1"]["output_tokens"]
    assert turns["q2"].cancel_ns == rows["q2"]["cancel_ns"] - rows["q2"]["arrival_ns"]


def test_what_a_journal_has_is_there_without_run_json(tmp_path: Path) -> None:
    """A session that was killed."""
    with open_door(tmp_path / "run") as door:
        for _ in range(3):
            door.ask(PLAIN, {"prompt": "abc", "max_tokens": 2})
        journal = (tmp_path / "run" / JOURNAL).read_text()
    (tmp_path / "run" / "run.json").unlink()
    found = load(tmp_path / "run")
    assert found.summary == {"is_complete": False}
    assert len(list(found.rows("requests"))) == 3 == len(journal.splitlines())


def test_prompts_are_kept_only_when_asked(tmp_path: Path) -> None:
    for keep in (False, True):
        run = tmp_path / str(keep)
        with open_door(run, keep_prompts=keep) as door:
            door.ask(PLAIN, {"prompt": "secret", "max_tokens": 2}, x_request_id="mine")
        text = (run / "asked.jsonl").read_text()
        assert '"x_request_id": "mine"' in text
        assert ("prompt" in text) == keep
