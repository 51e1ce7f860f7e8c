"""What `compare` says of its numbers: intervals, load, what pays, and what must not be believed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from explore.studies import compare as module
from explore.studies import trial
from explore.studies.compare import compare, num_trials
from explore.studies.estimates import Estimate, Ratio
from explore.studies.store import STUDY
from explore.studies.tables import as_json
from explore.studies.worth import worth
from policy.errors import ConfigError, InputError
from policy.orders.base import Order
from policy.systems import BASELINES
from policy.views import RequestView
from runs.scenario import build
from tests.helpers.made import Change, compared, scenario_of
from tests.helpers.sweeps import SCENARIO, keys, tree
from tests.helpers.typed import ROOT, environment, fastswitch

KEEP, OURS = "paged-keep", "fastswitch"


def always(**metrics: Any) -> Change:
    return lambda _system, _run: metrics


def only(system: str, **metrics: Any) -> Change:
    """Metrics of one system; the others keep theirs."""
    return lambda name, _run: metrics if name == system else {}


# ---------------------------------------------------------------------- numbers


def test_an_estimate_is_the_mean_over_runs_with_its_interval() -> None:
    found = compared(OURS, runs=3, change=lambda _s, run: {"ttft_p95_s": float(run + 1)})
    estimate = found.estimate(OURS, "ttft_p95_s")
    assert estimate.value == pytest.approx(2.0)
    assert estimate.half == pytest.approx(4.303 / math.sqrt(3))


def test_one_run_has_no_interval() -> None:
    found = compared(KEEP, OURS, runs=1, change=only(OURS, ttft_p95_s=0.5))
    assert found.estimate(OURS, "ttft_p95_s") == Estimate(0.5, None)
    assert found.speedup(OURS, KEEP, "ttft_p95_s") == Ratio(2.0, None)


def test_a_run_with_too_few_samples_leaves_no_mean_of_the_others() -> None:
    found = compared(OURS, runs=3, change=lambda _s, run: {"ttft_p99_s": None if run == 1 else 1.0})
    assert found.estimate(OURS, "ttft_p99_s") == Estimate(None)


def test_ratios_are_paired_by_run() -> None:
    """The baseline is three times slower in every run, however different the runs are."""
    slow = {KEEP: 3.0, OURS: 1.0}
    found = compared(KEEP, OURS, runs=3, change=lambda s, run: {"ttft_p95_s": slow[s] * 10.0**run})
    ratio = found.speedup(OURS, KEEP, "ttft_p95_s")
    assert (ratio.value, ratio.factor) == (pytest.approx(3.0), pytest.approx(1.0))


def test_more_is_better_of_throughput_and_less_of_everything_else() -> None:
    found = compared(KEEP, OURS, change=only(OURS, throughput_tok_s=2000.0, tbt_p99_s=2.0))
    assert found.speedup(OURS, KEEP, "throughput_tok_s").value == pytest.approx(2.0)
    assert found.speedup(OURS, KEEP, "tbt_p99_s").value == pytest.approx(0.5)


@pytest.mark.parametrize("value", [None, 0, 0.0])
def test_what_one_of_the_two_has_not_has_no_ratio(value: float | None) -> None:
    found = compared(KEEP, OURS, change=only(KEEP, ttft_p999_s=value))
    assert found.speedup(OURS, KEEP, "ttft_p999_s") == Ratio(None)


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(2.0, 1.5), "better"),
        (Ratio(0.5, 1.5), "worse"),
        (Ratio(1.4, 1.5), ""),  # its interval holds one
        (Ratio(0.7, 1.5), ""),
        (Ratio(1.01, 1.001), ""),  # sure, and not worth naming
        (Ratio(0.99, 1.001), ""),
        (Ratio(2.0, None), ""),
        (Ratio(None, None), ""),
    ],
)
def test_better_and_worse_are_said_of_a_whole_interval_and_a_notable_difference(
    ratio: Ratio, verdict: str
) -> None:
    assert ratio.is_better == (verdict == "better")
    assert ratio.is_worse == (verdict == "worse")


def test_systems_are_run_once_each_in_the_order_asked_for() -> None:
    found = compared(OURS, "-keep", OURS, "vllm-0.3.3-keep", runs=2)
    assert found.systems == (OURS, "vllm-0.3.3-keep")
    assert {name: len(runs) for name, runs in found.results.items()} == {
        OURS: 2,
        "vllm-0.3.3-keep": 2,
    }
    assert found.baselines == ("vllm-0.3.3-keep",)


def test_an_unknown_system_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match="'vllm-9' is not one of"):
        compared("vllm-9")


MINE = {"name": "mine", "base": "fastswitch", "reuse": False}


def served(scenario: dict[str, Any], systems: list[Any]) -> dict[str, Any]:
    found = compare(build({"name": "own", **scenario}, "own"), systems, runs=1, workers=1)
    return {name: runs[0]["switches"] for name, runs in found.results.items()}


def test_own_systems_stand_side_by_side_with_named_ones(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("base: vllm-v1\nvictim: least_computed\n")
    found = served(SCENARIO, [OURS, MINE, str(path)])
    assert list(found) == [OURS, "mine", "other"]
    assert (found[OURS]["reuse"], found["mine"]["reuse"]) == (True, False)
    assert found["other"]["victim"] == "least_computed"
    assert list(served({**SCENARIO, "systems": [KEEP, MINE]}, [])) == [KEEP, "mine"]


@pytest.mark.parametrize(
    ("systems", "says"),
    [
        ([MINE, {**MINE, "reuse": True}], "two that differ are called mine; name them apart"),
        ([{"base": "fastswitch", "alocator": "paged"}], "system: system.alocator: unknown"),
        (["none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_own_systems_that_mean_nothing_are_refused(systems: list[Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        served(SCENARIO, systems)


def test_the_progress_bar_knows_how_many_runs_there_will_be() -> None:
    scenario = scenario_of(systems=[KEEP, OURS])
    assert num_trials(scenario, None, 4) == 8
    assert num_trials(scenario, [OURS, OURS, "+groups"], 3) == 6


# ---------------------------------------------------------------------- load in words


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        (2000.0, "light load: there is room for nearly everybody"),
        (1300.0, "below saturation"),
        (1000.0, "near saturation, where memory management decides the tail"),
        (500.0, "overload: the queue grows as long as turns arrive"),
    ],
)
def test_the_load_is_named_by_its_share_of_what_the_baseline_can_do(
    capacity: float, words: str
) -> None:
    found = compared(KEEP, OURS, change=always(capacity_tok_s=capacity))
    assert found.load.share == pytest.approx(1000.0 / capacity)
    assert found.load.words.startswith(words)


def test_the_load_is_that_of_the_baseline_that_keeps_kv() -> None:
    both = compared(*BASELINES, OURS, change=only(KEEP, capacity_tok_s=4000.0))
    assert (both.load.baseline, both.load.share) == (KEEP, 0.25)
    neither = compared(OURS, "+groups", change=only(OURS, capacity_tok_s=4000.0))
    assert (neither.load.baseline, neither.load.share) == (OURS, 0.25)


def test_a_baseline_that_never_swaps_is_said_loudly() -> None:
    nothing = only(KEEP, preemptions=0, blocks_in=0, blocks_out=0)
    found = compared(KEEP, OURS, change=nothing)
    assert found.load.words == (
        "the baseline never swaps at this load: swapping cannot matter here"
    )
    assert (
        f"ATTENTION: {KEEP} never preempts here. Speed-ups over it say nothing about swapping."
        in found.notes
    )


def test_one_preemption_in_one_run_is_swapping() -> None:
    def change(system: str, run: int) -> dict[str, Any]:
        return {"preemptions": 1 if run == 2 else 0, "blocks_in": 0, "blocks_out": 0}

    found = compared(KEEP, OURS, change=change)
    assert not [note for note in found.notes if "ATTENTION" in note]
    assert "never swaps" not in found.load.words


def test_turns_that_all_arrive_at_once_are_no_load() -> None:
    found = compared(KEEP, OURS, change=always(offered_tok_s=None))
    assert (found.load.offered, found.load.share) == (None, None)
    assert found.load.words == "all turns arrive at once: no load can be stated"


def searched(reached_at: float | None, **scenario: Any) -> tuple[float | None, list[float], str]:
    """The capacity, the rates tried for it and the words, where no run reached it."""
    tried: list[float] = []

    def pushed(rate: float) -> dict[str, Any]:
        tried.append(rate)
        reached = reached_at is not None and rate >= reached_at
        return {"capacity_tok_s": 4000.0 if reached else None}

    found = compared(KEEP, OURS, change=always(capacity_tok_s=None), pushed=pushed, **scenario)
    return found.load.capacity, tried, found.load.words


def test_a_baseline_that_was_not_pushed_is_pushed_harder_until_it_is() -> None:
    capacity, tried, words = searched(8.0)
    assert (capacity, tried) == (4000.0, [2.0, 4.0, 8.0])
    assert words.startswith("light load")


def test_the_search_for_capacity_ends() -> None:
    capacity, tried, words = searched(None)
    assert (capacity, len(tried)) == (None, module.MAX_DOUBLINGS)
    assert words == "the baseline never reached its capacity, so the share is not known"


def test_a_file_has_no_rate_to_double(tmp_path: Any) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text("")
    capacity, tried, _ = searched(8.0, workload={"file": str(path)})
    assert (capacity, tried) == (None, [])


# ---------------------------------------------------------------------- notes


def test_a_comparison_of_two_planners_says_so() -> None:
    found = compared(
        "vllm-0.3.3",
        "vllm-0.3.3-keep",
        OURS,
        facts=lambda s, _r: {"order": "fcfs", "planner": "rules" if s == OURS else "release"},
    )
    assert found.notes[0] == (
        "Under fcfs vllm-0.3.3, vllm-0.3.3-keep follow vLLM 0.3.3's own planner and the others the"
        " thirteen rules, so more than memory management differs."
    )
    assert not compared(KEEP, OURS).notes


def test_a_run_that_ended_early_says_where_it_would_have_stopped() -> None:
    died = compared(
        KEEP, OURS, facts=lambda s, r: {"verdict": "aborts" if (s, r) == (KEEP, 3) else None}
    )
    assert (died.verdict(KEEP), died.verdict(OURS)) == ("aborts", None)
    assert f"{KEEP} did not finish: aborts." in died.notes


def test_an_extrapolated_profile_is_warned_of_once() -> None:
    found = compared(KEEP, OURS, facts=lambda _s, _r: {"warnings": ["batch reached 300"]})
    assert found.notes == ["Warning: batch reached 300."]


def test_a_field_that_none_of_the_systems_reads_is_warned_of() -> None:
    values = {"vtc.head_start": 3, "groups.initial_blocks": 7}
    found = compare(SMALL.with_values(values), [KEEP, OURS], 1, 1)
    told = [note for note in found.notes if "changes nothing" in note]
    assert told == ["Warning: vtc: changes nothing: is read by order vtc."]


@pytest.mark.parametrize(("runs", "warns"), [(2, True), (4, True), (5, False)])
def test_few_runs_are_called_few(runs: int, warns: bool) -> None:
    notes = compared(KEEP, OURS, runs=runs).notes
    assert any(note.startswith(f"{runs} runs: intervals are wide") for note in notes) == warns


def test_one_run_is_called_one() -> None:
    assert compared(KEEP, OURS, runs=1).notes == [
        "One run, no interval: which system is better cannot be said."
    ]


# ---------------------------------------------------------------------- what a mechanism is worth


def words_of(**metrics: Any) -> str:
    """Of KV reuse, where `+reuse` differs from `+groups` by these."""
    (found,) = worth(compared("+groups", "+reuse", change=only("+reuse", **metrics)))
    assert (found.mechanism, found.system, found.against) == ("KV reuse", "+reuse", "+groups")
    return found.words


def test_a_mechanism_that_pays_says_in_what_and_how_many_times() -> None:
    assert words_of(ttft_p99_s=0.5, throughput_tok_s=1100.0) == (
        "pays: TTFT P99 2.00x, throughput 1.10x"
    )


def test_a_mechanism_that_does_not_pay_is_said_in_words() -> None:
    assert words_of(ttft_p95_s=2.0, throughput_tok_s=900.0) == (
        "does not pay: worse in TTFT P95 0.50x, throughput 0.90x"
    )


def test_a_mechanism_that_gives_and_takes_is_mixed() -> None:
    assert words_of(tbt_p999_s=2.0, ttft_p99_s=0.5) == (
        "mixed: better in TTFT P99 2.00x; worse in TBT P99.9 0.50x"
    )


def test_a_worse_median_is_not_passed_over() -> None:
    assert words_of(ttft_p50_s=2.0) == "does not pay: worse in TTFT P50 0.50x"


def test_a_difference_too_small_to_name_is_none() -> None:
    assert words_of(ttft_p95_s=0.995) == "no difference shown with these runs"


def test_one_run_says_nothing_about_a_mechanism() -> None:
    (found,) = worth(compared("+groups", "+reuse", runs=1, change=only("+reuse", ttft_p95_s=0.1)))
    assert found.words == "no interval, so nothing can be said"


def test_only_pairs_that_were_run_are_judged() -> None:
    assert worth(compared(OURS, "vllm-0.3.3")) == []
    pairs = [(w.system, w.against) for w in worth(compared(*BASELINES, "+groups", "+reuse", OURS))]
    assert pairs == [
        ("+groups", KEEP),
        ("+reuse", "+groups"),
        (OURS, "+reuse"),
        (KEEP, "paged"),
    ]


# ---------------------------------------------------------------------- workers


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fastswitch import compare, load_scenario\n"
        'found = compare(load_scenario("paper-8b-a10", {"workload.conversations": 2}),'
        ' ["fastswitch"], runs=2, workers=2)\n'
        "print(found.runs)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert (ended.stdout, ended.stderr) == ("2\n", "")


# ---------------------------------------------------------------------- kept


SMALL = build({**SCENARIO, "name": "small"}, "test")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the trials that run from now on."""
    asked: list[str] = []

    real = trial.run_trial

    def run_trial(ask: str, order: Any = None) -> str:
        asked.append(json.loads(ask)["key"])
        return real(ask, order)

    monkeypatch.setattr(trial, "run_trial", run_trial)
    return asked


def test_a_comparison_goes_on_where_it_was_cut_off_and_is_printed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(monkeypatch)
    whole = compare(SMALL, [KEEP, OURS], 3, 1)
    total = len(asked)  # those in search of the capacity too
    assert total >= 6

    def stops() -> None:
        if len(asked) == total + 2:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compare(SMALL, [KEEP, OURS], 3, 1, stops, out=out)
    assert as_json(compare(SMALL, [KEEP, OURS], 3, 1, out=out)) == as_json(whole)
    assert len(asked) == 2 * total
    assert as_json(compare(SMALL, [KEEP, OURS], 3, 1, out=out)) == as_json(whole)
    assert len(asked) == 2 * total
    more = compare(SMALL, [KEEP, OURS, "+groups"], 3, 1, out=out)
    assert len(asked) == 2 * total + 3 and more.results[OURS] == whole.results[OURS]


def test_another_comparison_is_refused_and_left_alone_unless_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compare(SMALL, [OURS], 1, 1, out=out)
    before, before_keys = tree(out), set(keys(out))
    for values, words in (
        ({"workload.rate": 9.0}, "'small' of another scenario"),
        ({"name": "other"}, "another study, 'small', not 'other'"),
    ):
        with pytest.raises(ConfigError, match=f"holds {words}.*--overwrite"):
            compare(SMALL.with_values(values), [OURS], 1, 1, out=out)
    with pytest.raises(ConfigError, match="'small' of another study, terminating, not steady"):
        compare(SMALL, [OURS], 1, 1, study="steady-state", out=out)
    assert tree(out) == before
    compare(SMALL.with_values({"workload.rate": 9.0}), [OURS], 1, 1, out=out, overwrite=True)
    assert not set(keys(out)) & before_keys


def test_results_of_an_earlier_version_are_not_written_over_unasked(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a comparison without its runs"):
        compare(SMALL, [OURS], 1, 1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["compare.json"]
    compare(SMALL, [OURS], 1, 1, out=tmp_path, overwrite=True)


def test_a_run_that_fails_ends_the_comparison_with_its_own_error(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text('{"request_id": "a", "input_tokens": -1, "output_tokens": 1}\n')
    values = {"workload": {"file": str(path)}}
    with pytest.raises(InputError, match="input_tokens"):
        compare(SMALL.with_values(values), [OURS], 1, 1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_order_with_values_of_its_own_is_compared_but_not_kept(tmp_path: Path) -> None:
    class Valued(Order):
        def __init__(self) -> None:
            self.weight = 2.0

        def key(self, request: RequestView, now_ns: int) -> tuple[float]:
            return (self.weight * request.num_tokens,)

    assert compare(SMALL, [OURS], 1, order=Valued()).runs == 1
    with pytest.raises(ConfigError, match="an object with values of its own"):
        compare(SMALL, [OURS], 1, order=Valued(), out=tmp_path / "out")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_ctrl_c_ends_at_once_without_tracebacks_and_the_same_command_goes_on(
    tmp_path: Path, workers: str
) -> None:
    path, out = tmp_path / "s.json", tmp_path / "out"
    path.write_text(json.dumps(SCENARIO))
    command = fastswitch("compare", path, "--systems", OURS, "--out", out, "--workers", workers)
    long = [*command, "--seeds", "900"]
    running = subprocess.Popen(
        long, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (out / STUDY).exists() or not keys(out):
        assert running.poll() is None
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert (
        told == f"stopped; what was finished is in {out}, the same command goes on\ninterrupted\n"
    )
    done = len(keys(out))
    assert 0 < done < 900
    ended = subprocess.run(
        [*command, "--seeds", "2"], cwd=ROOT, env=environment(), capture_output=True, check=True
    )
    assert b"2 runs" in ended.stdout and (out / "compare.html").exists()
