"""A user's own order: found where it is named, refused in words, and the same wherever it is given."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import fastswitch
from explore.studies.compare import compare
from explore.studies.comparison import Comparison
from explore.studies.tables import as_csv
from policy.errors import ConfigError
from policy.orders.base import Order
from policy.orders.guard import Guarded
from policy.orders.static import StaticPriority
from runs import recording
from runs.scenario import Scenario, load
from runs.user_order import UserOrder, user_order
from tests.helpers.cells import from_a_cell
from tests.helpers.small import draw
from tests.unit.test_cli import SMALL

ROOT = Path(__file__).resolve().parents[2]

#: Static priority, as a user would write it down again.
MINE = """
from policy.orders.base import Order
from neighbour import WEIGHT

class Mine(Order):
    def key(self, request, now_ns):
        return (WEIGHT * request.priority,)

class Holder:
    class Inner(Mine):
        pass

class NoOrder:
    pass

class Unsteady(Mine):
    def key(self, request, now_ns):
        return (id(request),)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder of a user who has written an order."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "neighbour.py").write_text("WEIGHT = 2\n")
    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump(
            {**SMALL, "workload": {"file": "w.jsonl"}, "priority": {"frequency": 0.2}, "pool": POOL}
        )
    )
    lines = [{"format": "fastswitch-workload/1", "timing": "open"}]
    lines += [
        {
            "request_id": f"r{i}",
            "input_tokens": 40 + 30 * (i % 5),
            "output_tokens": 20 + i,
            "arrival_s": 0.1 * i,
            "priority": i * 7 % 4,
        }
        for i in range(24)
    ]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    yield tmp_path
    for name in [name for name in sys.modules if name not in before]:
        if name.startswith(("mine", "neighbour", "broken", "json_")):
            del sys.modules[name]


POOL = {"device_blocks": 40, "host_blocks": 200, "aging": "none"}


def scenario() -> Scenario:
    return load("small.yaml")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, [str(a) for a in arguments])


# ---------------------------------------------------------------------- finding


@pytest.mark.parametrize("text", ["mine:Mine", "mine.py:Mine", "./mine.py:Mine", "{}/mine.py:Mine"])
def test_an_order_is_found_in_a_module_or_a_file(text: str, folder: Path) -> None:
    text = text.replace("{}", str(folder))
    before = list(sys.path)
    found = user_order(text)
    assert sys.path == before
    assert found.name == "mine:Mine"
    assert found.source_hash == hashlib.sha256(MINE.encode()).hexdigest()[:16]
    assert found.text == text
    assert isinstance(found.make(draw), Guarded) and found.make(draw).name == "mine:Mine"
    assert found.make(draw) is not found.make(draw)


def test_a_nested_class_is_named_with_dots(folder: Path) -> None:
    assert user_order("mine:Holder.Inner").name == "mine:Holder.Inner"


def test_a_file_is_read_anew_and_its_changes_change_the_hash(folder: Path) -> None:
    first = user_order("mine.py:Mine")
    (folder / "mine.py").write_text(MINE + "\n# changed\n")
    assert user_order("mine.py:Mine").source_hash != first.source_hash


def test_a_file_named_like_a_library_does_not_replace_it(folder: Path) -> None:
    (folder / "json.py").write_text(MINE)
    assert user_order("json.py:Mine").name == "json:Mine"
    assert sys.modules["json"] is json


def test_what_was_found_before_is_not_looked_for_again(folder: Path) -> None:
    found = user_order("mine:Mine")
    assert user_order(found) is found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "lifo",
            "'lifo' is neither one of fcfs, .* nor module:MyOrder nor path/to/file.py:MyOrder",
        ),
        ("vtc", "vtc is built in; a scenario names it"),
        (":Mine", "is neither one of"),
        ("mine:", "is neither one of"),
        ("absent:Mine", "no module absent in .* or on the path; a file is named with its ending"),
        ("mine.absent:Mine", "no module mine.absent in "),
        ("absent.py:Mine", "absent.py is not a file"),
        ("mine:Yours", "mine has no Yours"),
        ("mine:NoOrder", "is no policy.orders.base.Order"),
        ("mine:WEIGHT", "2 is neither an Order nor makes one"),
        ("mine:Unsteady", "order mine:Unsteady: it is not deterministic"),
        ("broken1.py:X", "broken1.py: importing it raised SyntaxError"),
        (
            "broken2:X",
            "broken2: importing it raised ModuleNotFoundError: No module named 'nowhere_'",
        ),
        ("broken3.py:X", "broken3.py: importing it raised ZeroDivisionError"),
        ("..:X", "importing it raised"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(text: str, words: str, folder: Path) -> None:
    (folder / "broken1.py").write_text("class X(:\n")
    (folder / "broken2.py").write_text("import nowhere_\n")
    (folder / "broken3.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=words):
        user_order(text)
    assert not [name for name in sys.modules if name.startswith("broken")]


def test_an_object_that_cannot_be_made_says_so_when_it_is_made() -> None:
    made = UserOrder("mine:X", None, None, lambda _draw: 1 // 0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="order mine:X: making it raised integer division"):
        made.make(draw)


def test_what_has_neither_file_nor_text_has_no_hash() -> None:
    made = type("Made", (Order,), {"__module__": "nowhere_"})
    found = user_order(made)
    assert (found.name, found.source_hash, found.text) == ("nowhere_:Made", None, None)


# ---------------------------------------------------------------------- the same wherever it is given


def numbers(found: Comparison) -> tuple[str, str]:
    """Tables, and what the figures are drawn from."""
    series = [result["series"] for results in found.results.values() for result in results]
    return as_csv(found), json.dumps(series)


def test_a_cell_a_name_and_the_built_in_order_give_equal_tables(folder: Path) -> None:
    systems, runs = ["vllm-0.3.3-keep", "fastswitch"], 2
    plain = scenario()
    built_in = compare(plain.with_values({"order": "priority"}), systems, runs, 1)
    assert built_in.results["fastswitch"][0]["metrics"]["preemptions"] > 0
    cell = from_a_cell(MINE)
    for order, workers in (
        ("mine:Mine", 1),
        ("mine.py:Mine", 2),
        (cell, None),
        (cell(), 1),
        (StaticPriority(), None),
    ):
        found = compare(plain, systems, runs, workers, order=order)
        assert numbers(found) == numbers(built_in), order
        assert found.provenance["order"]["name"] == found.results["fastswitch"][0]["order"]
        assert ":" in found.provenance["order"]["name"]
    assert built_in.provenance["order"] is None


def test_another_order_gives_other_tables(folder: Path) -> None:
    class Last(Order):
        def key(self, request: Any, now_ns: int) -> tuple[int]:
            return (-request.arrival_ns,)

    one, other = (compare(scenario(), ["fastswitch"], 1, 1, order=o) for o in ("mine:Mine", Last))
    assert numbers(one) != numbers(other)


def test_an_object_does_not_travel_and_says_so(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="an object cannot go to other processes; name it as module:"
    ):
        compare(scenario(), ["fastswitch"], 2, 2, order=StaticPriority())


def test_state_does_not_leak_from_run_to_run(folder: Path) -> None:
    class Remembering(Order):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def arrived(self, request: Any, now_ns: int) -> None:
            self.seen.append(request.request_id)

        def key(self, request: Any, now_ns: int) -> tuple[int]:
            return (-len(self.seen),)

    given = Remembering()
    first, second = (fastswitch.simulate(scenario(), order=given) for _ in range(2))
    assert first.tables == second.tables
    assert given.seen == []


def test_an_order_without_a_name_of_its_own_is_not_taken_for_fcfs(folder: Path) -> None:
    """The base class is called fcfs, and under FCFS the baselines follow the release."""
    chosen = scenario().with_values({"system": "vllm-0.3.3", "order": "fcfs"})
    assert fastswitch.simulate(chosen).summary["planner"] == "release"
    own = fastswitch.simulate(chosen, order="mine:Mine").summary
    assert (own["planner"], own["order"]) == ("rules", "mine:Mine")


# ---------------------------------------------------------------------- the command


def test_the_command_takes_an_order_and_a_replay_needs_it(folder: Path) -> None:
    command = ("simulate", "small.yaml", "--out", "run", "--decisions", "--order", "mine:Mine")
    assert run(*command).exit_code == 0
    summary = recording.load(Path("run")).summary
    assert summary["order"] == "mine:Mine"
    assert summary["provenance"]["order"] == user_order("mine:Mine").facts
    assert "all" in run("validate", "run", "--replay", "--order", "mine.py:Mine").stdout
    refused = run("validate", "run", "--replay")
    assert refused.exit_code == 2
    assert "made with 'mine:Mine', and this is fcfs; name a user's own with --order" in (
        refused.output
    )
    assert run("validate", "run", "--profile", "x", "--order", "mine:Mine").exit_code == 2


def test_the_command_compares_under_an_order(folder: Path) -> None:
    options = ("small.yaml", "--systems", "fastswitch", "--seeds", 1, "--json", "--workers", 1)
    named = json.loads(run("compare", *options, "--order", "mine.py:Mine").stdout)
    built_in = json.loads(run("compare", *options, "--order", "priority").stdout)
    assert named["provenance"]["order"]["name"] == "mine:Mine"
    assert built_in["provenance"]["order"] is None
    first, second = (found["systems"]["fastswitch"]["runs"][0] for found in (named, built_in))
    assert first["metrics"] == second["metrics"]


def test_the_installed_command_finds_a_module_in_the_current_folder(folder: Path) -> None:
    """Its own folder, not the current one, is first on the path."""
    command = [str(Path(sys.executable).with_name("fastswitch")), "simulate", "small.yaml"]
    command += ["--out", "run", "--order", "mine:Mine"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    assert recording.load(Path("run")).summary["order"] == "mine:Mine"


@pytest.mark.parametrize("command", ["simulate", "realrun", "compare"])
def test_a_broken_order_ends_the_command_before_anything_runs(command: str, folder: Path) -> None:
    result = run(command, "small.yaml", "--out", "run", "--order", "mine:Unsteady")
    assert result.exit_code == 2
    assert "error: order mine:Unsteady: it is not deterministic" in result.output
    assert len(result.output.strip().splitlines()) <= 5 and "Traceback" not in result.output
    assert not Path("run").exists()


def test_an_order_that_breaks_only_in_the_run_ends_it_in_words(folder: Path) -> None:
    (folder / "mine.py").write_text(
        MINE.replace("WEIGHT *", "{'r9': None}.get(request.request_id, 1) *")
    )
    result = run("simulate", "small.yaml", "--out", "run", "--order", "mine.py:Mine")
    assert result.exit_code == 2
    assert "order mine:Mine: key raised TypeError (its line mine.py:7)" in result.output
    assert not Path("run").exists()


def test_a_scenario_cannot_name_code(folder: Path) -> None:
    """A file is data; only who types a command, or writes Python, runs code."""
    result = run("simulate", "small.yaml", "--out", "run", "--set", "order=mine:Mine")
    assert result.exit_code == 2
    assert "'mine:Mine' is not one of fcfs" in result.output
    assert "mine" not in sys.modules
