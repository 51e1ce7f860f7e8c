"""`fastswitch systems`, `orders`, `metrics`: everything there is has a sentence that is true of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import fastswitch
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


def test_scenarios_that_ship_are_listed_with_what_they_say_of_themselves() -> None:
    told = {one["name"]: one["sentence"] for one in json.loads(said("scenarios", "--json"))}
    assert list(told) == sorted(path.stem for path in (ROOT / "scenarios").glob("*.yaml"))
    assert "Llama-3-8B on an A10" in told["paper-8b-a10"]
    assert all(load(name) for name in told)


def test_without_a_command_it_says_what_it_can_answer_by_commands_that_exist() -> None:
    greeting = said()
    commands = set(re.findall(r"fastswitch ((?:machine |trace )?[a-z]+)", greeting))
    assert len(commands) > 8
    for command in commands:
        assert "Usage:" in said(*command.split(), "--help")


@pytest.mark.parametrize(
    ("term", "word", "meaning"),
    [
        ("parking", "parking", "taking KV off the device that nobody computes on"),
        ("+groups", "+groups", "dynamic block groups"),
        ("ttft_p99_s", "TTFT P50, TTFT P95, TTFT P99, TTFT P99.9", "percentiles"),
        ("TTFT P95", "TTFT P50, TTFT P95, TTFT P99, TTFT P99.9", "percentiles"),
        ("h2d", "device / host", "is a load"),
        ("fastswitch-arc", "fastswitch-lru, fastswitch-arc, fastswitch-isolated-lru", "gives way"),
    ],
)
def test_the_glossary_tells_a_word_a_system_and_a_metric(
    term: str, word: str, meaning: str
) -> None:
    [found] = json.loads(said("glossary", term, "--json"))
    assert found["name"] == word
    assert meaning in found["sentence"]


def test_the_glossary_knows_every_name_that_a_page_can_show_and_names_the_neighbour_of_others() -> (
    None
):
    for name in (*SYSTEMS, *ORDERS, *words.HEADINGS):
        assert said("glossary", name)
    found = CliRunner().invoke(main, ["glossary", "preemptoin"])
    assert found.exit_code == 2
    assert "did you mean 'preemption'?" in found.output


def test_what_python_offers_is_shown_to_whoever_asks() -> None:
    assert {"compare", "load_scenario", "simulate", "sweep"} <= set(dir(fastswitch))
    assert all(getattr(fastswitch, name) for name in dir(fastswitch) if name[0] != "_")
