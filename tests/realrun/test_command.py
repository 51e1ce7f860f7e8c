"""`fastswitch realrun` as a user types it, interrupts it and kills it."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch", reason="the executor needs torch")
for _needed in ("safetensors", "tokenizers", "gguf"):
    pytest.importorskip(_needed, reason=f"the executor needs {_needed}")

import fastswitch
from policy.errors import InputError
from runs.recording import JOURNAL, load
from tests.helpers.real import ROOM, write_workload

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_scenario(folder: Path, sessions: int) -> Path:
    data = {
        "name": "real",
        "workload": str(write_workload(folder / "w.jsonl", sessions=sessions)),
        "profile": "a10-llama-3-8b",
        "pool": ROOM,
        "limits": {"max_model_len": 60, "max_num_seqs": 4},
        "priority": {"pattern": "random", "frequency": 0.5},
    }
    path = folder / "real.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def command(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, [str(a) for a in arguments])


@contextmanager
def running(scenario: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, once three requests have ended."""
    arguments = [
        "realrun",
        str(scenario),
        "--model",
        "random:tiny",
        "--decisions",
        "--out",
        str(out),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "fastswitch", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        journal = out / JOURNAL
        while not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)  # of this test's watch, not of anything that is measured
        try:
            yield process
        finally:
            process.kill()


def test_a_run_says_what_it_was_and_replays(tmp_path: Path) -> None:
    scenario, out = write_scenario(tmp_path, 4), tmp_path / "run"
    result = command("realrun", scenario, "--model", "random:tiny", "--decisions", "--out", out)
    assert result.exit_code == 0, result.output
    assert "random:tiny on cpu" in result.output
    assert "12 finished, 0 rejected" in result.output
    replayed = command("validate", out, "--replay")
    assert replayed.exit_code == 0, replayed.output
    assert "lines of decisions.jsonl are equal" in replayed.output
    summary = load(out).summary
    assert summary["machine"] == "real"
    assert summary["provenance"]["torch"] == torch.__version__
    replies = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    assert len(replies) == 12


def test_a_tampered_decision_fails_the_replay_and_is_shown(tmp_path: Path) -> None:
    scenario, out = write_scenario(tmp_path, 4), tmp_path / "run"
    command("realrun", scenario, "--model", "random:tiny", "--decisions", "--out", out)
    path = out / "decisions.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace('"free_host_blocks":', '"free_host_blocks":1')
    path.write_text("\n".join(lines) + "\n")
    result = command("validate", out, "--replay")
    assert result.exit_code == 4
    assert "line 5 of decisions.jsonl differs in free_host_blocks" in result.output


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    scenario, out = write_scenario(tmp_path, 4), tmp_path / "run"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    result = command("realrun", scenario, "--model", "random:tiny", "--out", out)
    assert result.exit_code == 2
    assert "is not empty" in result.output
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--model", "random:huge"], "random:huge is not one of"),
        (["--model", "nowhere"], "is no folder"),
        (["--model", "random:tiny", "--temperature", "-1"], "temperature"),
        (["--model", "random:tiny", "--conversation", "c.jsonl"], "has no tokenizer"),
        (["--model", "random:tiny", "--set", "pool.device_blocks=1"], ""),
    ],
)
def test_a_bad_option_is_one_error_and_leaves_nothing(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    out = tmp_path / "run"
    result = command("realrun", write_scenario(tmp_path, 2), *arguments, "--out", out)
    if not problem:  # a pool of one block is no error: everybody is refused with a reason
        assert "0 finished, 6 rejected" in result.output
        return
    assert result.exit_code == 2
    assert problem in result.output
    assert len(result.output.splitlines()) <= 5
    assert not out.exists()


def test_an_interrupt_drains_and_keeps_what_was_recorded(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with running(write_scenario(tmp_path, 2000), out) as process:
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
    assert time.monotonic() - begin < 10 + 5  # what the issue allows, and a busy machine's start
    recording = load(out)
    assert recording.summary["was_stopped"]
    statuses = recording.table("requests")["status"].to_pylist()
    assert statuses.count("finished") >= 3
    assert set(statuses) == {"finished", "unfinished"}
    assert command("validate", out, "--replay").exit_code == 0


def test_a_killed_run_still_tells_who_had_ended(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with running(write_scenario(tmp_path, 2000), out) as process:
        process.kill()
        process.wait()
    whole = (out / JOURNAL).read_bytes().count(b"\n")
    with (out / JOURNAL).open("a") as file:
        file.write('{"request_id": "torn')
    recording = load(out)
    assert recording.summary == {"is_complete": False}
    requests = recording.table("requests")
    assert requests.num_rows == whole
    assert set(requests["status"].to_pylist()) == {"finished"}
    with pytest.raises(InputError, match=r"steps\.parquet"):
        recording.table("steps")
    result = command("validate", out, "--replay")
    assert result.exit_code == 2
    assert "the run was killed" in result.output


def test_a_damaged_journal_names_its_line(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"request_id": "a"}\n')
    with pytest.raises(InputError, match=rf"{JOURNAL}:1: is not a request's row"):
        load(tmp_path)
