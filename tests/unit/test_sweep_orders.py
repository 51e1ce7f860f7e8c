"""A user's own order in sweeps: the same wherever it is given, and never a result of another text."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fastswitch
from explore.studies.plan import expand
from explore.studies.semantics import canonical
from explore.studies.spec import load
from explore.studies.sweep import sweep
from explore.studies.trial import run_trial
from explore.studies.workers.base import run_watched
from policy.errors import ConfigError
from policy.orders.base import Order
from runs.user_order import user_order
from tests.helpers.cells import from_a_cell
from tests.helpers.sweeps import SCENARIO, pretend

MINE = """
from policy.orders.base import Order
from neighbour import WEIGHT

class Mine(Order):
    def key(self, request, now_ns):
        return (WEIGHT * request.priority,)

class Kept(Mine):
    def __init__(self, weight=1):
        self.weight = weight
"""
SHARES = {"shares": [0.3, 0.7]}

#: One point, one system, one run, with priorities to serve by.
ONE: dict[str, Any] = {
    "name": "one",
    "scenario": {
        **SCENARIO,
        "workload": {**SCENARIO["workload"], "priority": SHARES},
        "priority": {"pattern": "none"},  # a built-in order would warn that it reads no pattern
        "pool": {"device_blocks": 40, "host_blocks": 200, "aging": "none"},
    },
    "systems": ["vllm-0.3.3-keep", "fastswitch"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "neighbour.py").write_text("WEIGHT = 2\n")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("mine", "neighbour", "boxes")):
            del sys.modules[name]


def tables(found: Any) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(Path(found.folder).glob("*.csv"))}


def test_a_name_a_cell_and_the_built_in_order_give_equal_tables(folder: Path) -> None:
    built_in = sweep(ONE, folder / "a", values={"order": "priority"}, workers=1)
    assert built_in.results["preemptions"].sum() > 0
    named = sweep(ONE, folder / "b", order="mine:Mine", workers=2)
    cell = sweep(ONE, folder / "c", order=from_a_cell(MINE))
    assert tables(named) == tables(cell) == tables(built_in)
    path = folder / "one.yaml"
    path.write_text(json.dumps(ONE))
    arguments = ["sweep", "run", str(path), "--out", "d", "--order", "mine.py:Mine"]
    told = CliRunner().invoke(fastswitch.main, [*arguments, "--workers", "1"])
    assert told.exit_code == 0, told.output
    assert (folder / "d/results.csv").read_text() == tables(built_in)["results.csv"]


def key(order: Any) -> str:
    return expand(load({**ONE, "systems": []}), None, user_order(order)).keys[0]


def test_the_key_is_that_of_the_text_of_the_order_and_its_neighbours(folder: Path) -> None:
    plain = expand(load({**ONE, "systems": []}), {"order": "priority"}).keys[0]
    first = key("mine.py:Mine")
    assert first != plain and first == key("mine.py:Mine")
    assert key("mine.py:Kept") != first
    (folder / "neighbour.py").write_text("WEIGHT = 3\n")
    second = key("mine.py:Mine")
    assert second != first
    (folder / "mine.py").write_text(MINE + "# changed\n")
    assert key("mine.py:Mine") not in (first, second)


def test_the_key_of_a_cell_is_that_of_its_text(folder: Path) -> None:
    first = key(from_a_cell(MINE))
    assert first == key(from_a_cell(MINE))
    assert first != key(from_a_cell(MINE.replace("(WEIGHT *", "(-WEIGHT *")))


def test_a_changed_order_gives_no_stale_result(folder: Path) -> None:
    first = sweep(ONE, "out", order="mine:Mine", workers=1)
    before = tables(first)
    (folder / "mine.py").write_text(MINE.replace("WEIGHT *", "-WEIGHT *"))
    with pytest.raises(ConfigError, match="'one' under another text of order mine:Mine"):
        sweep(ONE, "out", order="mine:Mine", workers=1)
    again = sweep(ONE, "out", order="mine:Mine", workers=1, extend=True)
    assert tables(again) != before
    with pytest.raises(ConfigError, match="under order mine:Mine, not its scenarios'"):
        sweep(ONE, "out", values={"order": "priority"}, workers=1)


def asked(order: str) -> str:
    own = user_order(order)
    plan = expand(load({**ONE, "systems": ["fastswitch"]}), None, own)
    trial = plan.trials[0]
    return canonical(
        {
            "key": trial.key,
            "scenario": trial.scenario,
            "beside": dict(plan.beside),
            "order": {"text": own.text, "folder": own.folder},
            "seconds": None,
            "memory_mb": None,
        }
    )


@pytest.mark.parametrize("name", ["boxes.inner:Mine", "boxes/inner.py:Mine", "mine:Mine"])
def test_a_worker_somewhere_else_finds_the_order(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child process of a cluster's worker, whose current folder is another."""
    (folder / "boxes").mkdir()
    (folder / "boxes/__init__.py").write_text("")
    (folder / "boxes/inner.py").write_text(
        MINE.replace("from neighbour import WEIGHT", "WEIGHT = 2")
    )
    ask = asked(name)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert "result" in json.loads(run_watched(ask))


def test_a_clusters_worker_that_has_imported_an_order_imports_a_changed_one_anew(
    folder: Path,
) -> None:
    first = json.loads(run_watched(asked("mine:Mine")))["result"]
    (folder / "mine.py").write_text(MINE.replace("WEIGHT *", "-WEIGHT *"))
    for name in ("mine", "neighbour"):
        del sys.modules[name]
    second = json.loads(run_watched(asked("mine:Mine")))["result"]
    assert first["metrics"] != second["metrics"]


def test_an_order_that_differs_where_it_runs_is_a_failure(folder: Path) -> None:
    ask = asked("mine.py:Mine")
    (folder / "mine.py").write_text(MINE + "# changed\n")
    assert "order or program differ here" in json.loads(run_trial(ask))["failed"]


class Late(Order):
    """Whoever came last."""

    def key(self, request: Any, now_ns: int) -> tuple[int]:
        return (-request.arrival_ns,)


def test_an_object_stays_here_and_says_what_it_cannot_have(folder: Path) -> None:
    for more, words in (
        ({"workers": 2}, "an object cannot go to other processes; name it as module:"),
        ({"engine": "dask", "start_cluster": True}, "an object cannot go to other processes"),
        ({"seconds": 5.0}, "an object's trials run in this process, without limits"),
        ({"memory_mb": 100}, "an object's trials run in this process, without limits"),
    ):
        with pytest.raises(ConfigError, match=words):
            sweep(ONE, folder / "out", order=Late, **more)  # type: ignore[arg-type]
    assert not (folder / "out").exists()


def test_what_its_source_does_not_tell_is_refused(folder: Path) -> None:
    from_text = user_order("mine.py:Kept")
    assert from_text.sources()["name"] == "mine:Kept"
    import mine  # type: ignore[import-not-found]

    with pytest.raises(
        ConfigError, match=r"mine:Kept: an object with values of its own \(weight\)"
    ):
        sweep(ONE, folder / "out", order=mine.Kept(3))
    nowhere = type("Made", (Late,), {"__module__": "nowhere_"})
    with pytest.raises(ConfigError, match="nowhere_:Made: its source cannot be read"):
        sweep(ONE, folder / "out", order=nowhere)
    assert not (folder / "out").exists()


def test_a_swept_order_and_an_own_one_do_not_go_together(folder: Path) -> None:
    with pytest.raises(ConfigError, match="order: swept, and --order is given too"):
        pretend({**ONE, "grid": {"order": ["fcfs", "vtc"]}}, folder / "out", order=Late)


def test_a_broken_order_is_refused_before_anything_runs(folder: Path) -> None:
    class Broken(Order):
        def key(self, request: Any, now_ns: int) -> Any:
            return float("nan")

    with pytest.raises(ConfigError, match="which is not a tuple of numbers"):
        sweep(ONE, folder / "out", order=Broken)
    assert not (folder / "out").exists()


def test_a_search_takes_an_order_too(folder: Path) -> None:
    given = {
        "recipe": "max-rate-under-sla",
        "scenario": ONE["scenario"],
        "space": {"workload.rate": [1.0, 2.0]},
        "limits": {"ttft_p50_s": {"at_most": 100.0}},
        "runs": 1,
    }
    own = fastswitch.search(given, folder / "a", order=from_a_cell(MINE))
    plain = fastswitch.search(given, folder / "b", values={"order": "priority"}, workers=1)
    assert (own.folder / "search.csv").read_text() == (plain.folder / "search.csv").read_text()
