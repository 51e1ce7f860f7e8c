"""The three outputs of a comparison say the same thing."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest

from explore import words
from explore.studies.estimates import SPEEDUPS
from explore.studies.tables import as_csv, as_json, as_text, speedup_table, text_table
from tests.helpers.made import compared

BOTH, KEEP, OURS = "vllm-0.3.3", "vllm-0.3.3-keep", "fastswitch"


def change(system: str, run: int) -> dict[str, Any]:
    """Different everywhere, and one metric without samples in one run."""
    found: dict[str, Any] = {"ttft_p95_s": (3.0 if system != OURS else 1.5) + run / 7}
    return {**found, "ttft_p999_s": None if (system, run) == (OURS, 1) else 9.0}


def test_a_table_has_its_first_column_to_the_left_and_the_others_to_the_right() -> None:
    text = text_table(["system", "TTFT"], [["a", "1.25"], ["longer name", "n too small"]])
    assert text.splitlines() == [
        "system              TTFT",
        "------------------------",
        "a                   1.25",
        "longer name  n too small",
    ]


def test_csv_and_json_hold_the_same_numbers_to_the_last_digit() -> None:
    found = compared(KEEP, OURS, runs=3, change=change)
    loaded = json.loads(json.dumps(as_json(found)))
    rows = list(csv.DictReader(io.StringIO(as_csv(found))))
    from_csv = {
        (row["system"], int(row["run"]), row["metric"]): float(row["value"])
        if row["value"]
        else None
        for row in rows
    }
    from_json = {
        (name, run, metric): value
        for name, system in loaded["systems"].items()
        for run, result in enumerate(system["runs"])
        for metric, value in result["metrics"].items()
    }
    assert from_csv == from_json
    assert len(rows) == len(from_csv) == 2 * 3 * len(found.results[OURS][0]["metrics"])
    assert from_csv[OURS, 1, "ttft_p999_s"] is None


def test_the_estimates_in_json_are_those_of_its_runs() -> None:
    found = compared(KEEP, OURS, runs=3, change=change)
    systems = as_json(found)["systems"]
    values = [run["metrics"]["ttft_p95_s"] for run in systems[OURS]["runs"]]
    assert systems[OURS]["estimates"]["ttft_p95_s"]["value"] == pytest.approx(sum(values) / 3)
    assert systems[OURS]["estimates"]["ttft_p999_s"]["value"] is None
    assert systems[KEEP]["estimates"]["ttft_p999_s"]["value"] == pytest.approx(9.0)


def test_json_gives_speed_ups_over_every_baseline_but_oneself() -> None:
    systems = as_json(compared(BOTH, KEEP, OURS, change=change))["systems"]
    assert {name: list(system["speedups"]) for name, system in systems.items()} == {
        BOTH: [KEEP],
        KEEP: [BOTH],
        OURS: [BOTH, KEEP],
    }
    assert list(systems[OURS]["speedups"][KEEP]) == list(SPEEDUPS)


def test_json_has_everything_that_is_said_elsewhere() -> None:
    found = compared(KEEP, OURS, runs=2, change=change, facts=lambda _s, _r: {"warnings": ["far"]})
    whole = as_json(found)
    assert json.loads(json.dumps(whole)) == whole
    assert (whole["notes"], whole["load"]["words"]) == (found.notes, found.load.words)
    assert whole["load"]["share"] == found.load.share
    assert whole["assumptions"].keys() == found.profile_assumptions.keys()
    assert whole["systems"][OURS]["switches"]["reuse"] is True
    assert whole["provenance"]["seed"] == found.scenario.seed


def test_the_text_shows_each_estimate_and_each_speed_up_as_it_is_worded() -> None:
    found = compared(BOTH, KEEP, OURS, change=change)
    text = as_text(found)
    for name in found.systems:
        assert words.estimate(found.estimate(name, "ttft_p95_s"), "ttft_p95_s") in text
    assert words.ratio(found.speedup(OURS, KEEP, "ttft_p95_s")) in text
    assert words.load(found) in text and words.provenance(found) in text
    for baseline in (BOTH, KEEP):
        assert f"Times better than {baseline}\n" + speedup_table(found, baseline) in text


def test_the_text_says_n_too_small_and_makes_no_number_up() -> None:
    found = compared(KEEP, OURS, change=lambda _s, _r: {"ttft_p99_s": None})
    assert as_text(found).count(words.TOO_SMALL) == 2 + 1  # both systems, and their ratio


def test_a_baseline_that_never_swaps_is_loud_in_the_text() -> None:
    nothing = {"preemptions": 0, "blocks_in": 0, "blocks_out": 0}
    text = as_text(compared(KEEP, OURS, change=lambda _s, _r: nothing))
    assert "the baseline never swaps at this load: swapping cannot matter here" in text
    assert f"\nATTENTION: {KEEP} never preempts here." in text


def test_a_mechanism_that_does_not_pay_is_in_the_text_in_words() -> None:
    worse = compared(
        "+groups", "+reuse", change=lambda s, _r: {"tbt_p99_s": 3.0 if s == "+reuse" else 1.0}
    )
    line = "  KV reuse (+reuse against +groups): does not pay: worse in TBT P99 0.33x"
    assert line in as_text(worse).splitlines()


def test_a_system_alone_is_compared_with_nothing() -> None:
    text = as_text(compared(KEEP))
    assert "Times better" not in text and "mechanism" not in text
