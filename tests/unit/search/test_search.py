"""Searches as a whole: the same answer however they ran, and mistakes told in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import fastswitch
from explore.search.spec import SEARCHES, load
from policy.errors import ConfigError, FaultError
from tests.helpers.searches import SPACE, searched, spec
from tests.helpers.sweeps import SCENARIO, damage, full_after, keys, tree

LIMITS = {"ttft_p99_s": {"at_most": 3.0}}
RANGES: dict[str, Any] = {
    "workload.rate": {"low": 0.1, "high": 10.0, "scale": "log"},
    "pool.device_blocks": {"low": 40, "high": 400},
    "system": ["fastswitch", "+groups"],
}
OPTUNA: dict[str, Any] = {"method": "optuna", "points": 24, "batch": 6, "space": RANGES}


def smooth(scenario: dict[str, Any], run: int) -> dict[str, Any]:
    """Best at a rate of 3, with 200 blocks, under +groups."""
    rate, blocks = scenario["workload"]["rate"], scenario["pool"]["device_blocks"]
    lost = (rate - 3) ** 2 + ((blocks - 200) / 100) ** 2 + (scenario.get("system") != "+groups")
    return {
        "goodput_per_s": 10 - lost + 0.01 * run,
        "slo_attainment": 1.0,
        "ttft_p99_s": lost,
        "throughput_tok_s": 100 * rate,
    }


def goodput(**more: Any) -> dict[str, Any]:
    return spec("max-goodput-under-slo", slo={"ttft_s": 1.0}, **more)


def needs_optuna() -> None:
    pytest.importorskip("optuna", reason="optuna is not installed: pip install '.[search]'")


# ---------------------------------------------------------------------- the same answer


def test_optuna_comes_near_the_optimum_of_a_known_function(tmp_path: Path) -> None:
    needs_optuna()
    found, engine = searched(goodput(**OPTUNA), tmp_path / "out", smooth)
    best = found.answer.best or {}
    assert best["system"] == "+groups"
    assert (
        smooth(
            {
                "workload": {"rate": best["workload.rate"]},
                "system": best["system"],
                "pool": {"device_blocks": best["pool.device_blocks"]},
            },
            0,
        )["goodput_per_s"]
        > 9
    )
    assert engine.asked <= 48
    assert len(found.answer.points) == 24


@pytest.mark.parametrize("more", [OPTUNA, {}], ids=["optuna", "exhaustive"])
def test_a_search_that_was_stopped_ends_like_one_that_was_not(
    more: dict[str, Any], tmp_path: Path
) -> None:
    if more:
        needs_optuna()
    searched(goodput(**more), tmp_path / "whole", smooth)
    out = tmp_path / "stopped"
    for stop_after in (1, 9, 12):
        with pytest.raises(KeyboardInterrupt):
            searched(goodput(**more), out, smooth, stop_after=stop_after)
        assert not (out / "search.json").exists()
    _, engine = searched(goodput(**more), out, smooth)
    assert engine.asked == (48 if more else 24) - 22
    assert tree(out) == tree(tmp_path / "whole")


def test_a_finished_search_runs_nothing_again(tmp_path: Path) -> None:
    needs_optuna()
    searched(goodput(**OPTUNA), tmp_path / "out", smooth)
    before = tree(tmp_path / "out")
    _, engine = searched(goodput(**OPTUNA), tmp_path / "out", smooth)
    assert engine.asked == 0
    assert tree(tmp_path / "out") == before


def test_another_seed_asks_for_other_points(tmp_path: Path) -> None:
    needs_optuna()
    few = {**OPTUNA, "points": 2}
    found = [searched(goodput(**few, seed=s), tmp_path / str(s), smooth)[0] for s in (0, 1)]
    assert found[0].answer.points[0].values != found[1].answer.points[0].values


def test_one_worker_or_two_give_the_same_bytes(tmp_path: Path) -> None:
    """Real simulations, in real processes."""
    needs_optuna()
    given = goodput(
        method="optuna",
        points=6,
        batch=3,
        runs=1,
        space={"workload.rate": {"low": 0.5, "high": 4.0}, "system": ["fastswitch", "+groups"]},
        limits={"slo_attainment": {"at_least": 0.0}},
    )
    trees = []
    for workers in (1, 2):
        fastswitch.search(given, tmp_path / str(workers), workers=workers)
        trees.append(tree(tmp_path / str(workers)))
    assert trees[0] == trees[1]
    assert "search.json" in trees[0]


def test_sobol_points_are_those_of_a_sweep(tmp_path: Path) -> None:
    from explore.studies.plan import expand
    from explore.studies.spec import load as load_sweep

    given = goodput(method="sobol", points=16, seed=3, space=RANGES)
    found, _ = searched(given, tmp_path / "out", smooth)
    sobol = {"points": 16, "seed": 3, "parameters": RANGES}
    plan = expand(load_sweep({"scenario": SCENARIO, "sobol": sobol}))
    theirs = [(t.values["workload.rate"], t.values["pool.device_blocks"]) for t in plan.trials]
    ours = [
        (p.values["workload.rate"], p.values["pool.device_blocks"]) for p in found.answer.points
    ]
    assert ours == theirs


def test_a_failed_trial_is_told_to_optuna_as_one_and_is_tried_again(tmp_path: Path) -> None:
    needs_optuna()

    def failing(scenario: dict[str, Any], run: int) -> dict[str, Any]:
        return (
            {"failed": "no memory"}
            if scenario.get("system") == "fastswitch"
            else smooth(scenario, run)
        )

    found, _ = searched(goodput(**OPTUNA), tmp_path / "out", failing)
    assert (found.answer.best or {})["system"] == "+groups"
    assert found.sweep.failed > 0
    again, _ = searched(goodput(**OPTUNA), tmp_path / "out", smooth)
    whole, _ = searched(goodput(**OPTUNA), tmp_path / "whole", smooth)
    assert again.sweep.failed == 0
    assert again.answer.best == whole.answer.best


# ---------------------------------------------------------------------- mistakes


MISTAKES = {
    "unknown field": ({"recipes": "x"}, "recipes: Extra inputs"),
    "unknown recipe": ({"recipe": "fastest"}, "recipe: Input should be"),
    "no slo": ({"recipe": "max-goodput-under-slo"}, "needs slo"),
    "no rate": ({"space": {"pool.device_blocks": [1]}}, "needs workload.rate in its space"),
    "no sla": ({"limits": {}}, "needs limits, the SLA"),
    "unknown metric": ({"limits": {"ttft_p98_s": {"at_most": 1}}}, "'ttft_p98_s' is not one of"),
    "two sides": ({"limits": {"jain": {"at_most": 1, "at_least": 0}}}, "one of the two"),
    "no side": ({"limits": {"jain": {}}}, "one of the two"),
    "attainment of nothing": ({"limits": {"slo_attainment": {"at_least": 1}}}, "need slo"),
    "no space": ({"space": {}}, "space: Dictionary should have at least 1"),
    "empty list": ({"space": {"workload.rate": []}}, "space.workload.rate: List should have"),
    "twice": ({"space": {"workload.rate": [1.0, 1.0]}}, "1.0 is there twice"),
    "endless": (
        {"space": RANGES, "method": "exhaustive"},
        "method: exhaustive: a space without end, limit 5000",
    ),
    "large": (
        {"space": {**SPACE, "seed": {"low": 0, "high": 999}}, "method": "exhaustive"},
        "exhaustive: a space of 12000 points, limit 5000",
    ),
    "no budget": ({"space": RANGES}, "points: optuna: say how many points may be tried"),
    "a budget for all": ({"points": 7}, "points: the whole space is run"),
    "many Sobol points": ({"method": "sobol", "points": 5001}, "sobol: at most 5000"),
    "many trials": ({"method": "optuna", "points": 100_000}, "200000 trials, limit 100000"),
    "no knob": ({"space": {**SPACE, "run": [1]}}, "run: cannot be swept"),
    "inside": ({"space": {**SPACE, "workload": [{}]}}, "is inside it, and both are swept"),
    "no field": ({"space": {**SPACE, "pool.blocks": [1]}}, "pool.blocks: there is no such field"),
    "no value": ({"space": {"workload.rate": [-1.0]}}, "workload.rate: Input should be greater"),
    "infinite": ({"limits": {"jain": {"at_least": float("inf")}}}, "limits|JSON compliant"),
}


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_a_mistake_is_told_before_anything_runs(name: str, tmp_path: Path) -> None:
    change, words = MISTAKES[name]
    given = {**spec("max-rate-under-sla", limits=LIMITS), **change}
    if given.get("method") == "optuna" or (name == "no budget"):
        needs_optuna()
    with pytest.raises(ConfigError, match=words) as found:
        searched(given, tmp_path / "out", smooth)
    assert len(str(found.value).splitlines()) <= 5
    assert not (tmp_path / "out").exists()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(fastswitch.main, ["search", *(str(a) for a in arguments)])


def test_a_mistake_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(
        "scenario: paper-8b-a10\nrecipe: pareto\nspace:\n  workload.rate: [1.0]\npoint: 3\n"
    )
    told = run(path, "--out", tmp_path / "out")
    assert told.exit_code == 2
    assert "s.yaml:5: point: Extra inputs" in told.output
    path.write_text("recipe: [\n")
    assert "s.yaml:2: " in run(path, "--out", tmp_path / "out").output
    assert "neither a file nor one of front, rate" in run("x", "--out", tmp_path / "out").output
    path.write_text("- 1\n")
    assert "not a mapping" in run(path, "--out", tmp_path / "out").output
    assert not (tmp_path / "out").exists()


def test_without_optuna_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "explore.search.asking", raising=False)
    with pytest.raises(ConfigError, match=r"optuna is not installed; the extra \[search\]"):
        searched(goodput(**OPTUNA), tmp_path / "out", smooth)


def reading(**more: Any) -> dict[str, Any]:
    """A search of which `fastswitch` alone reads one knob."""
    space = {
        "system": ["paged-keep", "fastswitch"],
        "groups.initial_blocks": {"low": 2, "high": 90},
    }
    return spec("pareto", method="optuna", points=12, batch=1, space=space, **more)


def test_a_batch_of_points_that_do_not_read_a_knob_is_no_end_of_the_search(tmp_path: Path) -> None:
    needs_optuna()

    def better_without(scenario: dict[str, Any], run: int) -> dict[str, Any]:
        is_ours = scenario["system"] == "fastswitch"
        return {"throughput_tok_s": 100.0 if is_ours else 900.0, "ttft_p99_s": 1.0 + is_ours}

    found, _ = searched(reading(), tmp_path / "out", better_without)
    assert len(found.answer.points) == 12


@pytest.mark.parametrize("method", ["optuna", "sobol"])
def test_what_no_point_of_the_space_reads_is_refused(tmp_path: Path, method: str) -> None:
    if method == "optuna":
        needs_optuna()
    given = {**reading(set={"vtc.head_start": 3}), "method": method}
    with pytest.raises(ConfigError, match=r"vtc: changes nothing: is read by order vtc; take it"):
        searched(given, tmp_path / "out", smooth)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- the folder


def test_folders_of_something_else_are_left_alone(tmp_path: Path) -> None:
    from tests.helpers.sweeps import SMALL, pretend

    pretend(SMALL, tmp_path / "sweep")
    with pytest.raises(ConfigError, match="holds another study, 'small', not 'made'"):
        searched(goodput(), tmp_path / "sweep", smooth)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"file.out: cannot be written"):
        searched(goodput(), tmp_path / "file/out", smooth)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="holds something that is no study; it was left alone"):
        searched(goodput(), tmp_path / "mine", smooth)
    searched(goodput(), tmp_path / "out", smooth)
    with pytest.raises(ConfigError, match="'made' of another search"):
        searched(goodput(attainment=0.5), tmp_path / "out", smooth)
    changed, engine = searched(goodput(attainment=0.5), tmp_path / "out", smooth, extend=True)
    assert engine.asked == 0 and changed.answer.best


def test_another_version_of_optuna_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_optuna()
    from explore.search import asking

    searched(goodput(**OPTUNA), tmp_path / "out", smooth)
    before = asking.VERSION
    monkeypatch.setattr(asking, "VERSION", "99.0")
    with pytest.raises(ConfigError, match=f"of another optuna, {before}, not 99.0"):
        searched(goodput(**OPTUNA), tmp_path / "out", smooth)


def test_two_searches_cannot_write_to_one_folder(tmp_path: Path) -> None:
    from explore.studies.store import claimed

    with claimed(tmp_path / "out"), pytest.raises(ConfigError, match="another study is writing"):
        searched(goodput(), tmp_path / "out", smooth)


def test_a_corrupt_result_costs_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    searched(goodput(), out, smooth)
    before = tree(out)
    assert damage(out, "UPDATE result SET text='{' WHERE key=?", keys(out)[0]) == 1
    found, engine = searched(goodput(), out, smooth)
    assert engine.asked == 1
    assert any("was corrupt" in note for note in found.sweep.notes)
    assert tree(out) == before


def test_a_disk_that_is_full_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    searched(goodput(), tmp_path / "whole", smooth)
    for pages in (8, 14, 20):
        out = tmp_path / f"full{pages}"
        with (
            full_after(pages),
            pytest.raises(FaultError, match="disk is full\nWhat was finished is kept"),
        ):
            searched(goodput(), out, smooth)
        searched(goodput(), out, smooth)
        assert tree(out) == tree(tmp_path / "whole")


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize("path", sorted(SEARCHES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_searches_that_ship_can_be_run(path: Path, tmp_path: Path) -> None:
    if load(path).spec.how == "optuna":
        needs_optuna()
    told = run(path.stem, "--out", tmp_path / "out", "--dry-run")
    assert told.exit_code == 0, told.output
    assert "nothing was written" in told.output and not (tmp_path / "out").exists()
    facts = json.loads(run(path.stem, "--out", tmp_path / "o", "--dry-run", "--json").stdout)
    assert facts["trials"] == facts["points"] * facts["runs"]


def test_the_search_in_the_documents_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs/formats.md").read_text()
    block = text.split("## Search (YAML)")[1].split("```yaml")[1].split("```")[0]
    assert load(yaml.safe_load(block)).spec.size == 8


def test_the_command_answers_and_says_where(tmp_path: Path) -> None:
    path, out = tmp_path / "s.yaml", tmp_path / "out"
    given = spec("max-rate-under-sla", limits={"ttft_p50_s": {"at_most": 100.0}}, runs=1)
    given["space"] = {"workload.rate": [1.0, 2.0]}
    path.write_text(yaml.safe_dump(given))
    told = run(path, "--out", out, "--workers", 1)
    assert told.exit_code == 0, told.output
    assert "Best: point 1, workload.rate=2.0" in told.stdout
    assert "One run each" in told.stdout
    again = json.loads(run(path, "--out", out, "--json").stdout)
    assert again["chosen"] == [1]
    assert again == json.loads((out / "search.json").read_text())


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from explore.studies import engine as module
    from tests.helpers.searches import Landscaped

    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(goodput()))
    monkeypatch.setattr(module, "make_workers", lambda *_: Landscaped(smooth, 3))
    told = run(path, "--out", tmp_path / "out")
    assert told.exit_code == 130
    assert "the same command goes on" in told.output
