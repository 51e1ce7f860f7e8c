"""`fastswitch systems`, `orders`, `metrics`: everything there is has a sentence that is true of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main
from explore import words
from explore.studies.compare import compare
from policy.orders.catalog import ORDERS
from policy.systems import SYSTEMS
from runs.known import orders_told, system_told, systems_told
from runs.scenario import load

ROOT = Path(__file__).resolve().parents[2]


def said(*words_typed: str) -> str:
    found = CliRunner().invoke(main, words_typed)
    assert found.exit_code == 0, found.output
    return found.output


def test_every_system_has_one_sentence_and_no_two_have_the_same() -> None:
    told = systems_told()
    assert [one["name"] for one in told] == list(SYSTEMS)
    sentences = [one["sentence"] for one in told]
    assert len(set(sentences)) == len(sentences)
    assert all(sentence and not sentence.endswith("with ") for sentence in sentences)


def test_a_sentence_of_differences_leads_to_the_system() -> None:
    told = system_told(SYSTEMS["fastswitch-lru"])
    assert told["sentence"] == "fastswitch with host_eviction lru"
    assert system_told(SYSTEMS["vllm-v1-offload-all"])["sentence"] == (
        "vllm-v1-offload with offload all"
    )


def test_what_a_system_is_equal_to_names_a_test_that_exists() -> None:
    shown = [one["equal_to"].rpartition(" ")[2] for one in systems_told() if one["equal_to"]]
    assert len(shown) == 5
    assert all((ROOT / path).exists() for path in shown)


def test_the_commands_print_names_and_sentences() -> None:
    assert "vllm-v1+swap" in said("systems")
    one = said("systems", "vllm-v1")
    assert "prefix_sharing: True" in one
    assert "equals every step" in one
    assert json.loads(said("systems", "fastswitch", "--json"))[0]["switches"]["reuse"] is True
    assert [line.split()[0] for line in said("orders").splitlines()] == list(ORDERS)
    assert all(one["sentence"] for one in orders_told())
    assert [one["name"] for one in json.loads(said("metrics", "--json"))] == list(words.HEADINGS)


@pytest.mark.parametrize("command", ["orders", "metrics"])
def test_they_are_for_machines_too(command: str) -> None:
    assert json.loads(said(command, "--json"))
    assert said(command)


def test_a_name_that_is_not_one_is_refused() -> None:
    found = CliRunner().invoke(main, ["systems", "vllm-v9"])
    assert found.exit_code == 2
    assert "'vllm-v9' is not one of" in found.output


def test_a_comparison_says_where_v1_is_not_the_release() -> None:
    scenario = load("cpu-smoke")
    found = compare(scenario, ["paged-keep", "vllm-v1"], runs=1, workers=1)
    assert "vllm-v1: V1's queues under random, which the release does not know." in found.notes
    assert not any("thirteen" in note for note in found.notes)
