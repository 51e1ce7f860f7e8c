"""Notebooks run from their first cell to their last and show what they promise."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    assert "vllm-0.3.3: 40 turns" in text and "fastswitch: 40 turns" in text
    assert "fastswitch: replay of the recorded times is exact" in text
    [table] = [
        one["data"]["text/markdown"] for one in outputs if "text/markdown" in one.get("data", {})
    ]
    assert "| fastswitch / vllm-0.3.3 | throughput_makespan_tok_s |" in table
