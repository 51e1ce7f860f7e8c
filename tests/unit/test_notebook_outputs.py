"""The committed output of notebooks belongs to their source and is whole."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from notebooks import make

FIGURE = base64.b64encode(b"a picture").decode()


@pytest.mark.parametrize("name", make.NAMES)
def test_the_committed_output_belongs_to_its_source(name: str) -> None:
    text = (make.OUTPUT / f"{name}.md").read_text(encoding="utf-8")
    assert text.splitlines()[0] == make.first_line(name), f"run: python -m notebooks.make {name}"
    pictures = re.findall(r"!\[figure \d\]\((\S+\.png)\)", text)
    assert pictures == sorted(path.name for path in make.OUTPUT.glob(f"{name}-*.png"))
    assert pictures
    assert "## The answer, to quote" in text
    assert "Traceback" not in text


def test_every_notebook_but_the_one_that_times_its_machine_has_committed_output() -> None:
    there = {path.stem for path in make.HERE.glob("[0-9]*.py")}
    assert there == {*make.NAMES, "01_calibrate_and_validate"}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook that names a scenario that names a profile, and others that nobody names."""
    for name in ("notebooks", "scenarios", "profiles"):
        (tmp_path / name).mkdir()
    (tmp_path / "notebooks/02_x.py").write_text('sweep({"scenario": "busy"})')
    (tmp_path / "scenarios/busy.yaml").write_text("profile: gpu")
    (tmp_path / "scenarios/calm.yaml").write_text("profile: cpu")
    (tmp_path / "profiles/gpu.json").write_text("{}")
    (tmp_path / "profiles/cpu.json").write_text("{}")
    monkeypatch.setattr(make, "HERE", tmp_path / "notebooks")
    monkeypatch.setattr(make, "SCENARIOS", tmp_path / "scenarios")
    monkeypatch.setattr(make, "PROFILES", tmp_path / "profiles")
    return tmp_path


@pytest.mark.parametrize(
    "path", ["notebooks/02_x.py", "scenarios/busy.yaml", "profiles/gpu.json", None]
)
def test_an_output_is_stale_after_any_change_of_what_it_was_made_from(
    house: Path, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = make.first_line("02_x")
    if path is None:
        monkeypatch.setattr(make, "SEMANTICS", make.SEMANTICS + 1)
    else:
        changed = house / path
        changed.write_text(changed.read_text() + " ")
    assert make.first_line("02_x") != before


def test_a_change_of_what_it_does_not_name_leaves_an_output_as_good(house: Path) -> None:
    before = make.first_line("02_x")
    (house / "scenarios/calm.yaml").write_text("profile: other")
    (house / "profiles/cpu.json").write_text("{ }")
    assert make.first_line("02_x") == before


def cell(kind: str, source: str, *outputs: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(cell_type=kind, source=source, outputs=list(outputs))


def test_the_plainest_form_of_every_output_is_written_in_place_of_the_last(house: Path) -> None:
    out = house / "output"
    out.mkdir()
    (out / "02_x-7.png").write_bytes(b"of an older source")
    (out / "03_y-1.png").write_bytes(b"another's")
    book = SimpleNamespace(
        metadata={"made_from": make.first_line("02_x")},
        cells=[
            cell("markdown", "# Why"),
            cell(
                "code",
                "print(1)",
                {"name": "stdout", "text": "1\n"},
                {"name": "stderr", "text": "a warning of this machine"},
                {"data": {"text/plain": "<Markdown>", "text/markdown": "**Yes.**"}},
                {"data": {"text/plain": "<Figure>", "image/png": FIGURE}},
                {"data": {"text/plain": "42"}},
            ),
        ],
    )
    path = make.write("02_x", book, out)
    assert path.read_text() == (
        f"{make.first_line('02_x')}\n\n# Why\n\n```python\nprint(1)\n```\n\n```\n1\n```\n\n**Yes.**\n\n"
        "![figure 1](02_x-1.png)\n\n```\n42\n```\n"
    )
    assert sorted(one.name for one in out.iterdir()) == ["02_x-1.png", "02_x.md", "03_y-1.png"]
    assert (out / "02_x-1.png").read_bytes() == b"a picture"
