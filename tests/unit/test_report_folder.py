"""`fastswitch report`: a folder becomes its page, and one that is none of ours ends in a clear error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from explore.report import sweep
from explore.studies.output import write
from explore.studies.tables import as_json, from_json
from explore.validation.predict_text import as_json as validation_as_json
from explore.validation.predict_text import from_json as validation_from_json
from tests.helpers.made import compared
from tests.helpers.pages import EVIL, Reader, problems
from tests.helpers.sweeps import SMALL as SWEEP
from tests.helpers.sweeps import made_result, pretend
from tests.unit.test_cli import SMALL, run
from tests.unit.test_predict import PROFILE, slow

SYSTEMS = ("vllm-0.3.3-keep", "fastswitch")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that nobody ran."""
    folder = tmp_path_factory.mktemp("original") / "out"
    write(compared(*SYSTEMS, runs=2), folder, f"fastswitch compare {EVIL}")
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "out"))


def test_the_report_of_a_run_is_written_beside_it(tmp_path: Path) -> None:
    scenario, out = tmp_path / "small.yaml", tmp_path / "run"
    scenario.write_text(yaml.safe_dump(SMALL))
    assert run("simulate", scenario, "--out", out).exit_code == 0
    result = run("report", out)
    assert result.exit_code == 0, result.output
    text = (out / "report.html").read_text()
    assert problems(text) == [] and f"fastswitch simulate {out}/scenario.yaml" in text
    elsewhere = tmp_path / "pages" / "of" / "mine.html"
    assert run("report", out, "--out", elsewhere).exit_code == 0
    assert elsewhere.read_text() == text
    assert (
        run("simulate", scenario, "--out", out).exit_code == 0
    )  # it is still a recording's folder
    assert not list(tmp_path.rglob(".*"))


def test_the_report_of_a_comparison_is_the_page_that_compare_wrote(folder: Path) -> None:
    page = folder / "compare.html"
    before = page.read_text()
    assert problems(before) == [] and EVIL in "".join(Reader(before).text)
    page.unlink()
    assert run("report", folder).exit_code == 0
    assert page.read_text() == before


def test_a_comparison_comes_back_from_its_file() -> None:
    found = compared(*SYSTEMS, runs=3, change=lambda system, i: {"ttft_p95_s": len(system) + i})
    data = json.loads(json.dumps(as_json(found)))
    assert as_json(from_json(data)) == data


def test_the_report_of_a_validation_is_the_page_that_validate_wrote(tmp_path: Path) -> None:
    made = slow(tmp_path / "run", **{"step.base": 80e6})
    out = tmp_path / "checked"
    assert run("validate", made, "--profile", PROFILE, "--out", out).exit_code == 0
    page = out / "validation.html"
    before = page.read_text()
    page.unlink()
    assert run("report", out).exit_code == 0
    assert page.read_text() == before and before.count("data:image/png") == 1
    data = json.loads((out / "validation.json").read_text())
    assert validation_as_json(validation_from_json(data)) == {
        name: value for name, value in data.items() if name != "command"
    }
    (out / "residuals-pretended.png").write_bytes(b"<script>")
    assert run("report", out).exit_code == 0
    assert "data:image" not in page.read_text()


# ---------------------------------------------------------------------- sweeps


def reply(key: str) -> dict[str, Any]:
    number = int(key[:6], 16)
    return {
        "result": made_result(key, ttft_p99_s=1 + number % 7, throughput_tok_s=100 + number % 11)
    }


def test_the_report_of_a_sweep(tmp_path: Path) -> None:
    spec = {**SWEEP, "name": EVIL, "scenarios": [{"name": EVIL}, {"name": "plain"}]}
    pretend(spec, tmp_path / "out", reply)
    assert run("report", tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert problems(text) == []
    read = Reader(text)
    assert "4 points, 2 systems: 16 of 16 trials done, 0 failed, 0 missing." in read.text
    knobs = [value for tag, name, value in read.attributes if name == "data-knobs"]
    # rows of both tables, points of both pictures: every knob has its choice
    assert len(knobs) == 8 + 4 + 2 * 8
    assert {tuple(map(int, one.split(","))) for one in knobs} == {
        (system, label, rate) for system in (0, 1) for label in (0, 1) for rate in (0, 1)
    }
    selects = [value for tag, name, value in read.attributes if name == "data-knob"]
    assert selects == ["0", "1", "2"]
    assert any(cell[1] == "yes" for cell in read.cells)


def test_of_too_many_points_the_best_are_in_the_tables_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend({**SWEEP, "grid": {"workload.rate": [1.0, 2.0, 3.0, 4.0]}}, tmp_path / "out", reply)
    monkeypatch.setattr(sweep, "MAX_ROWS", 3)
    assert run("report", tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert "3 of 8 rows, the best first" in text and "3 of 4 rows, the best first" in text
    assert text.count("<tr data-knobs") == 3 + 3
    assert ("better", "yes") in Reader(text).cells


def test_failed_and_missing_trials_are_told(tmp_path: Path) -> None:
    def failing(key: str) -> dict[str, Any]:
        return {"failed": f"no room {EVIL}"} if int(key[0], 16) % 2 else reply(key)

    out = tmp_path / "out"
    found = pretend({**SWEEP, "runs": 4}, out, failing, shard=(1, 2))
    assert found.failed and found.missing and found.done
    assert run("report", out).exit_code == 0
    text = (out / "report.html").read_text()
    assert problems(text) == []
    told = "".join(Reader(text).text)
    assert f"{found.failed} failed, {found.missing} missing" in told
    assert f"{found.failed} trials: no room {EVIL}" in told


def test_a_sweep_of_one_run_and_one_point_says_that_nothing_can_be_said(tmp_path: Path) -> None:
    spec = {"name": "one", "scenario": SWEEP["scenario"], "systems": ["fastswitch"], "runs": 1}
    pretend(spec, tmp_path / "out", reply)
    assert run("report", tmp_path / "out").exit_code == 0
    text = (tmp_path / "out" / "report.html").read_text()
    assert problems(text) == [] and "script" not in Reader(text).tags
    assert "no intervals" in text and "its only point" in text


# ---------------------------------------------------------------------- what is no report


def broken(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "compare.json").write_text(text) and None


def changed(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "compare.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "compare.json"
        data = json.loads(path.read_text())
        del data["systems"]["fastswitch"]["runs"][0][name]
        path.write_text(json.dumps(data))

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (broken("{"), "not JSON"),
        (broken("[]"), "compare.json: is not what this version writes"),
        (broken('{"a": NaN}'), "is not what this version writes"),
        (changed(format="fastswitch-compare/1"), "compare again"),
        (changed(systems={}), "different numbers of runs"),
        (changed(load=3), "compare.json"),
        (changed(scenario={"name": 3}), "scenario"),
        (changed(notes=[7]), "compare.json"),
        (without("metrics"), "KeyError"),
        (without("series"), "KeyError"),
        (lambda folder: (folder / "compare.json").unlink(), "holds none of run.json"),
        (lambda folder: os.truncate(folder / "compare.json", 1000), "not JSON"),
    ],
)
def test_a_folder_that_is_not_ours_ends_in_a_clear_error(
    folder: Path, change: Callable[[Path], None], told: str
) -> None:
    before = (folder / "compare.html").read_bytes()
    change(folder)
    result = run("report", folder)
    assert result.exit_code in (2, 3) and isinstance(result.exception, SystemExit)
    assert told in result.output
    assert len(result.output.splitlines()) <= 5 and "Traceback" not in result.output
    assert (folder / "compare.html").read_bytes() == before


def test_a_page_that_cannot_be_written_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("report", folder, "--out", tmp_path / "file" / "page.html")
    assert result.exit_code == 2 and "cannot be written" in result.output
    (tmp_path / "taken.html").mkdir()
    result = run("report", folder, "--out", tmp_path / "taken.html")
    assert result.exit_code == 2 and "cannot be written" in result.output
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = run("report", tmp_path / "no")
    assert result.exit_code == 3 and "holds none of" in result.output
