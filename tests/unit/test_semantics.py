"""What a stored result answers for: its key changes with everything it depends on, and only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from explore.studies import semantics
from explore.studies.semantics import Inputs, digest, key_of, portable
from explore.studies.trial import run_trial
from policy.errors import InputError
from runs.scenario import build
from tests.helpers.sweeps import SCENARIO
from traces.generators import agent
from traces.generators.files import GeneratorFile, save_generator


def key(**values: Any) -> str:
    return key_of(build(SCENARIO, "test").with_values(values), Inputs())


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 1},
        {"run": 1},
        {"workload.rate": 3.0},
        {"system": "+reuse"},
        {"system": {"base": "fastswitch", "name": "fastswitch", "threads": 2}},
        {"profile": "h100-llama-3-8b"},
        {"profile_values.transfer.per_call": 1.0},
        {"pool.watermark": 0.02},
        {"order": "vtc"},
    ],
    ids=str,
)
def test_the_key_changes_with_what_a_result_depends_on(values: dict[str, Any]) -> None:
    assert key(**values) != key()


@pytest.mark.parametrize(
    "values",
    [
        {"name": "other"},
        {"description": "other"},
        {"systems": ["+reuse"]},
        {"pool.block_size": 16},  # the default, written out
        {"system": "fastswitch"},
    ],
    ids=str,
)
def test_the_key_does_not_change_with_names_and_written_out_defaults(
    values: dict[str, Any],
) -> None:
    assert key(**values) == key()


def test_another_semantics_version_knows_no_old_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(semantics, "SEMANTICS", semantics.SEMANTICS + 1)
    assert key() != before


def test_a_file_counts_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    row = '{"request_id":"a","input_tokens":5,"output_tokens":2,"arrival_s":0.0}\n'
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text(row)
    two.write_text(row)
    assert key(workload=str(one)) == key(workload=str(two))
    two.write_text(row.replace("5", "6"))
    assert key(workload=str(one)) != key(workload=str(two))
    with pytest.raises(InputError, match="nothing"):
        key(workload=str(tmp_path / "nothing"))


def test_a_generators_own_file_counts_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    made = GeneratorFile(fitted_on="by hand", conversations=7, rate=0.5, model=agent.MODEL)
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    save_generator(made, one)
    save_generator(made, two)
    before = key(workload={"generator": str(one)})
    assert key(workload={"generator": str(two)}) == before
    assert key(workload={"generator": str(two)}, seed=1) != before
    assert key(workload={"generator": str(two), "conversations": 3}) != before
    save_generator(made.model_copy(update={"rate": 0.6}), two)
    assert key(workload={"generator": str(two)}) != before
    with pytest.raises(InputError, match="nothing"):
        key(workload={"generator": str(tmp_path / "nothing.yaml")})


def test_a_portable_scenario_means_the_same_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.jsonl").write_text("")
    made = portable(build({**SCENARIO, "workload": "w.jsonl"}, "test"))
    assert made["workload"]["file"] == str(tmp_path / "w.jsonl")
    assert made["profile"] == "a10-llama-3-8b"
    made = portable(build({**SCENARIO, "workload": {"generator": "mine.yaml"}}, "test"))
    assert made["workload"] == {"generator": str(tmp_path / "mine.yaml")}


#: Digest of a few small results under semantics.SEMANTICS, to nine digits. If it changes, results
#: have changed: raise SEMANTICS by one and put both new numbers here.
GOLDEN = (4, "8601074083bed0addfca4ca1fc70626583abac26c20ff0d1899abb0ef8c60509")
CASES: tuple[dict[str, Any], ...] = (
    {"system": "vllm-0.3.3-keep"},
    {"system": "fastswitch", "pool.aging": "churn"},
    {"system": "vllm-0.3.3", "order": "fcfs", "workload.rate": 8.0},
    {"system": "+cost", "profile_values.transfer.per_call": 100_000.0},
)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return f"{value:.9g}" if isinstance(value, float) else value


def test_results_change_only_with_the_semantics_version() -> None:
    results = []
    for values in CASES:
        scenario = build(SCENARIO, "test").with_values(values)
        asked = {"key": key_of(scenario, Inputs()), "scenario": portable(scenario)}
        reply = json.loads(run_trial(json.dumps({**asked, "memory_mb": None})))
        results.append(_rounded(reply["result"]))
    assert (semantics.SEMANTICS, digest(json.dumps(results, sort_keys=True))) == GOLDEN
