"""Notebooks run from their first cell to their last and show what they promise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from notebooks import make

pytestmark = pytest.mark.full

jupytext = pytest.importorskip("jupytext", reason="notebooks need the extra [notebooks]")
nbclient = pytest.importorskip("nbclient", reason="notebooks need the extra [notebooks]")

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.filterwarnings("ignore")  # the kernel's libraries warn of each other
def test_calibrate_and_validate_tells_its_story_with_pictures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for needed in ("torch", "safetensors", "tokenizers", "gguf"):
        pytest.importorskip(needed, reason=f"the executor needs {needed}")
    monkeypatch.setenv("NOTEBOOK_REPEATS", "6")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = jupytext.read(NOTEBOOKS / "01_calibrate_and_validate.py")
    nbclient.NotebookClient(
        book, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS.parent)}}
    ).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [one for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == 3
    text = "".join(one.get("text", "") for one in outputs)
    assert "paged: 40 turns" in text and "fastswitch: 40 turns" in text
    assert "fastswitch: replay of the recorded times is exact" in text
    [table] = [
        one["data"]["text/markdown"] for one in outputs if "text/markdown" in one.get("data", {})
    ]
    assert "| fastswitch / paged | throughput_live_tok_s |" in table


def executed(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **size: str) -> Any:
    """A notebook run small, and its output written as the committed one is."""
    monkeypatch.setenv("NOTEBOOK_REPEATS", "2")
    for variable, value in size.items():
        monkeypatch.setenv(f"NOTEBOOK_{variable}", value)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    text = make.write(name, make.run(name), tmp_path).read_text(encoding="utf-8")
    assert list(tmp_path.glob(f"{name}-*.png"))
    return text.partition("## The answer, to quote")[0], text.rpartition("```\n")[2]


@pytest.mark.filterwarnings("ignore")
def test_what_if_says_of_every_pair_at_which_costs_it_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body, answer = executed("02_what_if", monkeypatch, tmp_path, CONVERSATIONS="40")
    assert "64 simulations, 0 failed" in body
    assert "n too small" in body  # forty conversations cannot tell a P99 of TTFT
    verdicts = re.findall(r"^- \*\*(.+)\*\* \(`\S+` against `\S+`\)\. (.+)$", answer, re.MULTILINE)
    assert len(verdicts) == 6
    for _, words in verdicts:
        assert "TTFT P99: no difference shown at any cost." in words
    [ours] = [words for name, words in verdicts if name == "vLLM's layout, synchronous"]
    assert re.search(r"stall share: better at .*10 us, \d\S*x \([\d.]+-[\d.]+\)", ours)
    assert re.search(r"Stalls take [\d.]+ ±[\d.]+ % of all time", answer)


@pytest.mark.filterwarnings("ignore")
def test_fairness_names_a_knee_and_what_it_is_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body, answer = executed("03_fairness", monkeypatch, tmp_path, CONVERSATIONS="80")
    assert "18 simulations, 0 failed" in body
    assert re.findall(r"^- \*\*head start (\d+)\.\*\*", answer, re.MULTILINE) == [
        "60",
        "250",
        "1000",
        "4000",
        "16000",
    ]
    assert re.search(r"preempts [\d.]+ ±[\d.]+ times a run", answer)
    assert re.search(r"can show: (\d+ weighted tokens, with|none that was tried)", answer)


@pytest.mark.filterwarnings("ignore")
def test_capacity_gives_users_or_says_that_the_answer_lies_beyond(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body, answer = executed("04_capacity", monkeypatch, tmp_path, SCALE="0.3")
    assert "32 simulations" in body
    for gpu in ("A10", "H100"):
        # a peak so short breaks nothing on the H100, and the answer is a bound
        number = r"(more than \d+|fewer than \d+|[\d.]+ ±[\d.]+)"
        assert re.search(rf"\*\*One {gpu}\*\* carries {number}[^.]* users with", answer)
    assert re.search(r"TTFT P95 falls\s+from [\d.]+ ±[\d.]+ s to [\d.]+ ±[\d.]+ s", answer)
