"""Scenarios: YAML without surprises, settings by dotted path, messages that say where."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate import profile as profiles
from policy.errors import ConfigError
from policy.orders.catalog import ORDERS, OrderSettings
from policy.systems import SYSTEMS
from runs.scenario import (
    MAX_BLOCKS,
    SCENARIOS,
    RateSpec,
    Scenario,
    build,
    find,
    load,
    merge,
    parse_settings,
    schema,
)
from traces.yaml import MAX_BYTES, MAX_DEPTH, parse_yaml

SHIPPED = sorted(path.stem for path in SCENARIOS.glob("*.yaml"))
CHAT = {"generator": "chat", "conversations": 3, "rate": 1.0}
LEAST: dict[str, Any] = {"workload": CHAT, "profile": "a10-llama-3-8b"}


def scenario(**values: Any) -> Scenario:
    """The least scenario with some sections, as a file would give them."""
    return build({**LEAST, **values}, "here")


def refusal(function: Callable[[], Any]) -> str:
    """What a ConfigError says; it fits the five lines that an error may have."""
    with pytest.raises(ConfigError) as refused:
        function()
    assert len(str(refused.value).splitlines()) <= 5
    return str(refused.value)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


# ---------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", "010"),
        ("0o17", "0o17"),
        ("0x10", "0x10"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("y", "y"),
        ("=", "="),
        ("<<", "<<"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("tRUE", "tRUE"),
        ("1e", "1e"),
        (".", "."),
        ("0", 0),
        ("-7", -7),
        ("+1", 1),
        ("1e3", 1000.0),
        ("1E-3", 0.001),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("12.5e+1", 125.0),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1e3'", "1e3"),
        ('"no"', "no"),
        ("!!str 5", "5"),
        ("{<<: {b: 1}}", {"<<": {"b": 1}}),
        ("[1, [no], {a: 010}]", [1, ["no"], {"a": "010"}]),
    ],
)
def test_plain_scalars_are_read_as_yaml_1_2_reads_them(text: str, value: Any) -> None:
    found = parse_yaml(f"a: {text}", "here")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "s.yaml:3: 'a' is given twice"),
        ("a:\n  b: 1\n  b: 1", "s.yaml:3: 'b' is given twice"),
        ('a: 1\n"a": 2', "s.yaml:2: 'a' is given twice"),
        ("- {a: 1, a: 1}", "s.yaml:1: 'a' is given twice"),
        ("a: &x 1\nb: *x", "s.yaml:2: aliases are not allowed"),
        ("a: &x [*x]", "s.yaml:1: aliases are not allowed"),
        ("a: [", "s.yaml:1: "),
        ("a: 1\n b: 2", "s.yaml:2: "),
        ("a: 1\n---\nb: 2", "s.yaml:2: but found another document"),
        ("a: 1\nb: !!python/object/apply:os.getcwd []", "s.yaml:2: could not determine"),
        ("a: !mine 1", "s.yaml:1: could not determine"),
        ("a: " + "9" * 5000, "s.yaml:1: a number of 5000 digits, limit 64"),
        ("a: " + nested(MAX_DEPTH), f"s.yaml:1: nested deeper than {MAX_DEPTH}"),
        ("a: " + "[" * 100_000, f"s.yaml:1: nested deeper than {MAX_DEPTH}"),
        ("a: " + "x" * MAX_BYTES, f"s.yaml: larger than {MAX_BYTES} bytes"),
        ("é" * (MAX_BYTES // 2 + 1), f"s.yaml: larger than {MAX_BYTES} bytes"),
    ],
    ids=lambda value: value[:24],
)
def test_what_yaml_should_not_do_is_refused_with_its_line(text: str, says: str) -> None:
    assert refusal(lambda: parse_yaml(text, "s.yaml")).startswith(says)


def test_what_is_just_within_the_limits_is_read() -> None:
    found = parse_yaml(nested(MAX_DEPTH), "here")
    for _ in range(MAX_DEPTH - 1):
        (found,) = found
    assert found == []
    text = "x" * (MAX_BYTES - len("a: "))
    assert parse_yaml(f"a: {text}", "here") == {"a": text}


@pytest.mark.parametrize(
    "text",
    [
        "? [1, 2]\n: 3",
        "? {a: b}\n: 3",
        "a: !!map [b]",
        "a: !!bool maybe",
        "a: !!int ''",
        "a: !!float ''",
        "a: !!timestamp yesterday",
        "a: \x01",
        "a: \x00",
        "name: \udcff",
    ],
    ids=ascii,
)
def test_odd_yaml_is_refused_like_any_other(text: str) -> None:
    assert refusal(lambda: parse_yaml(text, "s.yaml")).startswith("s.yaml")


@given(st.text(max_size=40))
def test_any_text_is_yaml_or_refused(text: str) -> None:
    try:
        parse_yaml(text, "s.yaml")
    except ConfigError as error:
        assert str(error).startswith("s.yaml")


# ---------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"bogus": 1}, "here: bogus: there is no such field"),
        ({"pool": {"size": 1}}, "here: pool.size: there is no such field"),
        ({"seed": 1.0}, "here: seed: Input should be a valid integer"),
        ({"seed": True}, "here: seed: Input should be a valid integer"),
        ({"seed": "1"}, "here: seed: Input should be a valid integer"),
        ({"seed": -1}, "here: seed: Input should be greater than or equal to 0"),
        ({"seed": None}, "here: seed: "),
        ({"name": 5}, "here: name: Input should be a valid string"),
        ({"pool": None}, "here: pool: "),
        ({"pool": {"block_size": 0}}, "here: pool.block_size: "),
        ({"pool": {"watermark": 1}}, "here: pool.watermark: "),
        ({"pool": {"watermark": float("nan")}}, "here: pool.watermark: "),
        ({"pool": {"aging": "old"}}, "here: pool.aging: "),
        ({"last_turn_known": "yes"}, "here: last_turn_known: "),
        ({"systems": "fastswitch"}, "here: systems: "),
        ({"workload": 5}, "here: workload: "),
        ({"workload": {}}, "here: workload: give a file or a generator"),
        ({"workload": {**CHAT, "file": "x"}}, "here: workload: give a file or a generator"),
        ({"workload": {"generator": "chat"}}, "here: workload: generator chat needs conversations"),
        ({"workload": {"generator": "talk"}}, "here: workload.generator: "),
        ({"workload": {"generator": "code", "rate": 1.0}}, "here: workload: generator code needs"),
        (
            {"workload": {**CHAT, "context_cap": 9, "uncapped": True}},
            "here: workload: give context_",
        ),
        ({"workload": {**CHAT, "arrivals": {"law": "gamma"}}}, "here: workload.arrivals: "),
        ({"workload": {**CHAT, "arrivals": {"cv": 2}}}, "here: workload.arrivals: "),
        ({"workload": {**CHAT, "arrivals": {"law": "zipf"}}}, "here: workload.arrivals.law: "),
        ({"workload": {**CHAT, "priority": {"shares": []}}}, "here: workload.priority.shares: "),
        ({"workload": {"file": "x", "hash_block": 16}}, "here: workload: hash_block is a gen"),
        ({"workload": {"file": "x", "arrivals": {}}}, "here: workload: arrivals needs rate"),
        ({"workload": {**CHAT, "rate": float("inf")}}, "here: workload.rate: "),
        ({"workload": {**CHAT, "rate": float("nan")}}, "here: workload.rate: "),
        ({"workload": {**CHAT, "rate": 0}}, "here: workload.rate: "),
        ({"workload": {**CHAT, "think_mean_s": float("nan")}}, "here: workload.think_mean_s: "),
        ({"priority": {"frequency": float("nan")}}, "here: priority.frequency: "),
        ({"priority": {"frequency": 1.5}}, "here: priority.frequency: "),
        ({"priority": {"pattern": "zigzag"}}, "here: priority.pattern: "),
        ({"profile_values": {"step.base": "x"}}, "here: profile_values.step.base: "),
        ({"profile_values": {"step.base": True}}, "here: profile_values.step.base: "),
        ({"order": "alphabet"}, "here: order: 'alphabet' is not one of fcfs, "),
        (
            {"system": "slowswitch"},
            "system: 'slowswitch' is not one of those that `fastswitch systems`",
        ),
        ({"systems": ["slowswitch"]}, "system: 'slowswitch' is not one of those that "),
        ({"system": {"reuse": "yes"}}, "system.reuse: 'yes' is not of type bool"),
        ({"system": {"bogus": 1}}, "system.bogus: unknown; "),
        (
            {"system": {"engine": "steam"}},
            "system.engine: 'steam' is not one of ranked, vllm-0.3.3",
        ),
        ({"priority": {"pattern": "markov"}}, "priority.frequency: order markov needs it"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(
    values: dict[str, Any], says: str
) -> None:
    assert refusal(lambda: scenario(**values)).startswith(says)


@pytest.mark.parametrize("missing", ["workload", "profile"])
def test_a_section_that_must_be_there_is_missed_by_name(missing: str) -> None:
    data = {name: value for name, value in LEAST.items() if name != missing}
    assert refusal(lambda: build(data, "here")) == f"here: {missing}: Field required"


def test_what_is_not_said_has_its_default() -> None:
    found = scenario()
    assert (found.name, found.system, found.order_name, found.seed, found.run) == (
        "unnamed",
        "fastswitch",
        "fcfs",
        0,
        0,
    )
    assert (found.pool.block_size, found.pool.watermark, found.pool.aging) == (16, None, "churn")
    assert (found.limits.max_num_seqs, found.limits.max_paddings) == (None, 256)
    assert found.resolve_system() is SYSTEMS["fastswitch"]
    assert found.order_settings() == OrderSettings()
    assert found.rates == RateSpec(
        step_ns=30_000_000, load_ns_per_block=100_000, store_ns_per_block=100_000
    )


def test_a_system_may_be_a_mapping_of_switches() -> None:
    found = scenario(system={"base": "fastswitch", "reuse": False}).resolve_system()
    assert found.switches() == {**SYSTEMS["fastswitch"].switches(), "reuse": False}


def test_the_schema_for_editors_knows_every_field_and_forbids_others() -> None:
    found = schema()
    assert set(found["properties"]) == set(Scenario.model_fields)
    assert found["additionalProperties"] is False


# ---------------------------------------------------------------------- orders and their updates


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "fcfs"),
        ({"priority": {"pattern": "random", "frequency": 0.1}}, "random"),
        ({"priority": {"pattern": "markov", "frequency": 0.1}}, "markov"),
        ({"order": "vtc"}, "vtc"),
        ({"order": "priority"}, "priority"),
        ({"order": "fcfs", "priority": {"pattern": "markov"}}, "fcfs"),
        ({"order": "vtc", "priority": {"pattern": "markov", "frequency": 0.1}}, "vtc"),
    ],
    ids=str,
)
def test_the_order_is_the_named_one_else_the_pattern_else_fcfs(
    values: dict[str, Any], name: str
) -> None:
    assert scenario(**values).order_name == name
    assert name in ORDERS


@pytest.mark.parametrize(
    ("values", "period"),
    [
        ({}, (1, None)),
        ({"order": "priority"}, (1, None)),
        ({"priority": {"pattern": "markov", "frequency": 0.04}}, (25, None)),
        ({"priority": {"pattern": "random", "frequency": 1}}, (1, None)),
        ({"priority": {"pattern": "random", "frequency": 0.7}}, (Fraction(10, 7), None)),
        ({"priority": {"pattern": "random", "frequency": 0.3}}, (Fraction(10, 3), None)),
        ({"priority": {"pattern": "markov", "period_s": 1.5}}, (None, 1_500_000_000)),
        ({"priority": {"period_s": 0.001}}, (None, 1_000_000)),
        ({"order": "vtc"}, (16, None)),
        ({"order": "vtc", "vtc": {"update_steps": 3}}, (3, None)),
        ({"order": "vtc", "priority": {"period_s": 2.0, "frequency": 0.5}}, (16, None)),
    ],
    ids=str,
)
def test_priorities_are_updated_as_often_as_the_scenario_says(
    values: dict[str, Any], period: tuple[int | Fraction | None, int | None]
) -> None:
    assert scenario(**values).update_period() == period


@pytest.mark.parametrize(
    ("priority", "says"),
    [
        ({"pattern": "random"}, "priority.frequency: order random needs it"),
        ({"frequency": 0.1, "period_s": 1.0}, "priority: give frequency or period_s, not both"),
    ],
    ids=str,
)
def test_a_pattern_needs_one_period_and_not_two(priority: dict[str, Any], says: str) -> None:
    assert refusal(lambda: scenario(priority=priority)).startswith(says)


@pytest.mark.parametrize("priority", [{"frequency": 1e-320}, {"period_s": 1e300}], ids=str)
def test_a_period_beyond_all_numbers_is_refused(priority: dict[str, Any]) -> None:
    found = refusal(lambda: scenario(priority={"pattern": "random", **priority}))
    assert "priority" in found


# ---------------------------------------------------------------------- --set


@pytest.mark.parametrize(
    ("pairs", "values"),
    [
        ((), {}),
        (("pool.aging=none",), {"pool.aging": "none"}),
        (("seed=3", "seed=4"), {"seed": 4}),
        (("workload.rate=1e-1",), {"workload.rate": 0.1}),
        (("systems=[fastswitch, -keep]",), {"systems": ["fastswitch", "-keep"]}),
        (("description=a=b",), {"description": "a=b"}),
        (("name=010",), {"name": "010"}),
        (("order=",), {"order": None}),
        (("system={reuse: true}",), {"system": {"reuse": True}}),
    ],
    ids=str,
)
def test_settings_are_a_path_and_a_yaml_value(
    pairs: tuple[str, ...], values: dict[str, Any]
) -> None:
    assert parse_settings(pairs) == values


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("seed", "--set 'seed': must be name=value, like pool.aging=none"),
        ("=3", "--set '=3': must be name=value, like pool.aging=none"),
        ("seed=[", "--set seed:1: "),
        ("a={b: 1, b: 2}", "--set a:1: 'b' is given twice"),
        ("name=\udcff", "--set name"),
    ],
    ids=ascii,
)
def test_a_setting_that_is_none_is_refused_by_its_name(pair: str, says: str) -> None:
    assert refusal(lambda: parse_settings((pair,))).startswith(says)


@pytest.mark.parametrize(
    ("data", "path", "merged"),
    [
        ({}, "seed", {"seed": 9}),
        ({"seed": 1, "run": 2}, "seed", {"seed": 9, "run": 2}),
        ({}, "a.b.c", {"a": {"b": {"c": 9}}}),
        ({"a": {"b": 1, "c": 2}}, "a.b", {"a": {"b": 9, "c": 2}}),
        ({"a": {"b": 1}}, "a", {"a": 9}),
        ({}, "profile_values.step.base", {"profile_values": {"step.base": 9}}),
        (
            {"profile_values": {"step.base": 1.0, "step.per_sequence": 2.0}},
            "profile_values.step.base",
            {"profile_values": {"step.base": 9, "step.per_sequence": 2.0}},
        ),
        ({"workload": "w.csv"}, "workload.rate", {"workload": {"file": "w.csv", "rate": 9}}),
        ({"workload": "w.csv"}, "workload", {"workload": 9}),
    ],
    ids=str,
)
def test_a_dotted_path_replaces_one_value(
    data: dict[str, Any], path: str, merged: dict[str, Any]
) -> None:
    before = json.dumps(data)
    assert merge(data, {path: 9}) == merged
    assert json.dumps(data) == before


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("seed.x", "--set seed.x: seed is not a mapping"),
        ("workload.rate.x", "--set workload.rate.x: rate is not a mapping"),
    ],
)
def test_a_path_through_a_number_is_refused(path: str, says: str) -> None:
    data = {"seed": 1, "workload": {"rate": 1}}
    assert refusal(lambda: merge(data, {path: 9})) == says


def test_an_unknown_path_is_refused_when_the_scenario_is_built() -> None:
    found = refusal(lambda: scenario().with_values({"pool.colour": "red"}))
    assert found == "--set: pool.colour: there is no such field"


def test_a_scenario_may_give_priorities_their_shares() -> None:
    found = load("paper-8b-a10", {"workload.priority.shares": [0.1, 0.9]}).workload.priority
    assert found is not None
    assert found.shares == (0.1, 0.9)


def test_with_values_changes_what_it_names_and_nothing_else() -> None:
    before = scenario(seed=3, pool={"aging": "none"})
    after = before.with_values({"pool.device_blocks": 7, "profile_values.step.base": 1})
    assert before == scenario(seed=3, pool={"aging": "none"})
    assert after == scenario(
        seed=3, pool={"aging": "none", "device_blocks": 7}, profile_values={"step.base": 1.0}
    )


def test_profile_values_reach_the_profile_by_the_paths_they_name() -> None:
    found = scenario(profile_values={"step.base": 5, "transfer.per_call": 0.5})
    profile = profiles.load(found.profile).with_values(found.profile_values)
    assert (profile.step.base.value, profile.transfer.per_call.value) == (5.0, 0.5)
    assert (profile.step.base.kind, profile.step.base.source) == ("assumed", "set by the scenario")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("step.speed", 1.0, "profile_values.step.speed: no such number in a profile"),
        ("speed", 1.0, "profile_values.speed: no such number in a profile"),
        ("model.layers", 1.0, "profile_values.model.layers: no such number in a profile"),
        ("step.base", -1.0, "profile_values.step.base: -1.0 is not a number >= 0"),
        ("step.base", float("nan"), "profile_values.step.base: nan is not a number >= 0"),
        ("step.base", float("inf"), "profile_values.step.base: inf is not a number >= 0"),
    ],
)
def test_a_profile_value_that_cannot_be_is_refused_by_its_path(
    path: str, value: float, says: str
) -> None:
    profile = profiles.load(scenario(profile_values={path: value}).profile)
    assert refusal(lambda: profile.with_values({path: value})) == says


# ---------------------------------------------------------------------- files


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def written(folder: Path, **values: Any) -> str:
    """A scenario file; JSON is YAML."""
    return write(folder / "mine.yaml", json.dumps({**LEAST, **values}))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_is_valid_with_its_profile_and_all_its_systems(name: str) -> None:
    found = load(name)
    assert found.name == name
    assert found.description
    profiles.load(found.profile).with_values(found.profile_values)
    assert found.order_name in ORDERS
    assert found == load(str(SCENARIOS / f"{name}.yaml"))


def test_scenarios_ship() -> None:
    assert "paper-8b-a10" in SHIPPED


def test_set_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    path = written(tmp_path, seed=5, pool={"watermark": 0.2})
    found = load(path, {"pool.watermark": 0.3, "run": 2})
    assert (found.seed, found.pool.watermark, found.run) == (5, 0.3, 2)
    assert found.pool.block_size == 16


@pytest.mark.parametrize(("given", "name"), [({}, "mine"), ({"name": "yours"}, "yours")], ids=str)
def test_a_scenario_without_a_name_is_called_as_its_file(
    tmp_path: Path, given: dict[str, Any], name: str
) -> None:
    assert load(written(tmp_path, **given)).name == name


@pytest.mark.parametrize("spec", ["w.jsonl", {"file": "w.jsonl", "rate": 2.0}], ids=str)
def test_a_workload_file_is_found_beside_the_scenario(tmp_path: Path, spec: Any) -> None:
    write(tmp_path / "w.jsonl", "")
    found = load(written(tmp_path, workload=spec)).workload
    assert found.file == str(tmp_path / "w.jsonl")
    assert found.rate == (None if isinstance(spec, str) else 2.0)


def test_a_workload_may_be_a_path_that_settings_add_to(tmp_path: Path) -> None:
    write(tmp_path / "w.jsonl", "")
    found = load(written(tmp_path, workload="w.jsonl"), {"workload.think": "none"}).workload
    assert (found.file, found.think) == (str(tmp_path / "w.jsonl"), "none")


@pytest.mark.parametrize("absolute", [True, False])
def test_a_workload_file_that_is_not_beside_is_left_as_it_is_written(
    tmp_path: Path, *, absolute: bool
) -> None:
    name = str(tmp_path / "elsewhere" / "w.jsonl") if absolute else "no-such-file.jsonl"
    assert load(written(tmp_path, workload=name)).workload.file == name


def test_a_message_about_a_file_names_the_file(tmp_path: Path) -> None:
    for text, says in (
        ("a: 1\na: 2\n", ":2: 'a' is given twice"),
        ("- a\n", ": not a mapping"),
        ("", ": not a mapping"),
        ("{workload: w, profile: p, seed: x}", ": seed: Input should be a valid integer, not 'x'"),
    ):
        path = write(tmp_path / "broken.yaml", text)
        assert refusal(lambda path=path: load(path)) == path + says


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert refusal(lambda: load(str(path))).startswith(f"{path}: cannot be read: ")


@pytest.mark.parametrize(
    "name", ["no-such", "", "../scenarios", "/", "a\0b", "a" * 300], ids=lambda name: name[:12]
)
def test_what_is_no_scenario_is_refused_with_the_names_that_are(name: str) -> None:
    assert refusal(lambda: find(name)).endswith(
        f"is neither a file nor one of {', '.join(SHIPPED)}"
    )


def test_a_workload_file_with_an_impossible_name_is_left_to_be_missed(tmp_path: Path) -> None:
    name = "w" * 300
    assert load(written(tmp_path, workload=name)).workload.file == name


# ---------------------------------------------------------------------- there and back


#: Words that YAML 1.1 and 1.2, or a careless writer and reader, take for different things.
WORDS = st.sampled_from(
    ["1e3", "-.5", ".5e3", "1.5e3", "010", "no", "null", "", "~", "- a", "a: b", "#", "é\u2028\x85"]
)
TEXTS = WORDS | st.text(max_size=30)

SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "name": TEXTS,
        "description": TEXTS,
        "workload": st.fixed_dictionaries(
            {"file": TEXTS},
            optional={
                "rate": st.floats(1e-9, 1e9),
                "think": st.sampled_from(["human", "none"]),
            },
        ),
        "profile_values": st.dictionaries(TEXTS, st.floats(0, 1e300), max_size=3),
        "system": st.sampled_from(sorted(SYSTEMS)) | st.just({"base": "-keep", "name": "no"}),
        "systems": st.lists(st.sampled_from(sorted(SYSTEMS)), max_size=3),
        "priority": st.fixed_dictionaries(
            {}, optional={"frequency": st.floats(1e-6, 1), "share": st.floats(0.001, 0.999)}
        ),
        "pool": st.fixed_dictionaries(
            {},
            optional={
                "device_blocks": st.integers(1, MAX_BLOCKS),
                "watermark": st.floats(0, 0.999),
            },
        ),
        "last_turn_known": st.booleans(),
        "seed": st.integers(0, 1 << 70),
    },
)


@given(SECTIONS)
def test_a_scenario_written_out_is_read_back_as_it_was(sections: dict[str, Any]) -> None:
    before = scenario(**sections)
    assert build(parse_yaml(before.as_yaml(), "here"), "here") == before


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_scenario_written_to_a_file_is_loaded_as_it_was(
    tmp_path: Path, name: str
) -> None:
    before = load(name)
    assert load(write(tmp_path / "copy.yaml", before.as_yaml())) == before


def test_priorities_can_be_shares() -> None:
    """A list within `workload`, which is no JSON any more when it is looked at."""
    workload = {**CHAT, "priority": {"shares": [0.3, 0.7], "by": "client"}}
    found = build(
        {**scenario().model_dump(mode="json", exclude_unset=True), "workload": workload}, "here"
    )
    assert found.workload.priority is not None
    assert found.workload.priority.shares == (0.3, 0.7)
    assert build(found.model_dump(mode="json", exclude_unset=True), "here") == found


def test_a_scenario_is_written_out_with_every_default() -> None:
    found = parse_yaml(scenario().as_yaml(), "here")
    assert set(found) == set(Scenario.model_fields)
    assert found["hysteresis"] == {
        "gap": 0.0,
        "min_run_steps": 0,
        "max_parkings": 3,
        "token_quantum": 16,
    }
    assert found["movement"] == {
        "every": 32,
        "blocks": 64,
        "depth": 0.25,
        "low": 0.02,
        "high": 0.05,
    }


def test_thresholds_that_cross_are_refused_before_anything_runs() -> None:
    says = r"^.*movement\.low: 0\.1 is not below movement\.high 0\.05$"
    with pytest.raises(ConfigError, match=says):
        scenario(movement={"low": 0.1})


def test_a_file_put_in_place_of_a_generator_takes_all_with_it_that_was_the_generators() -> None:
    scenario = load("paper-8b-a10", {"workload.file": "mine.csv", "workload.think": "none"})
    assert scenario.workload.file == "mine.csv"
    assert scenario.workload.think == "none"
    assert (scenario.workload.generator, scenario.workload.rate) == (None, None)
    again = scenario.with_values(
        {"workload.generator": "chat", "workload.conversations": 5, "workload.rate": 1.0}
    )
    assert (again.workload.file, again.workload.generator) == (None, "chat")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (
            "workload.ratee",
            3,
            "--set: workload.ratee: there is no such field; did you mean 'rate'?",
        ),
        ("pool.colour", 3, "--set: pool.colour: there is no such field"),
        (
            "workload.arrivals.lw",
            "x",
            "--set: workload.arrivals.lw: there is no such field; did you",
        ),
        (
            "workload.rate",
            "fast",
            "--set: workload.rate: Input should be a valid number, not 'fast'",
        ),
        ("polo.block_size", 3, "--set: polo: there is no such field; did you mean 'pool'?"),
    ],
)
def test_what_is_wrong_with_a_value_that_was_set_is_said_of_it_and_not_of_the_file(
    path: str, value: object, says: str
) -> None:
    assert refusal(lambda: load("paper-8b-a10", {path: value})).startswith(says)
