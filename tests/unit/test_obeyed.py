"""Every field of a scenario changes the run, or is refused where it cannot: a test over the schema."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

import fastswitch
from policy.errors import ConfigError, FastSwitchError
from runs.fleet_spec import ReplicaSpec
from runs.obeyed import READ_BY, asked_for, refuse_unread, unread
from runs.recording import SCHEMAS
from runs.scenario import SCENARIOS, Scenario, build, load, merge
from sim.fleet.simulate import simulate_fleet
from sim.simulate import simulate
from traces.generators import chat
from traces.generators.files import GeneratorFile, save_generator

#: Fields that say what a scenario is, not what it does; `systems` are those that `compare` runs.
LABELS = {"name", "description", "systems", "workload.priority_process"}
#: Of groups of replicas: tests/unit/test_fleet.py changes each.
GROUPS = {f"replicas.{name}" for name in ReplicaSpec.model_fields}

BASE: dict[str, Any] = {
    "workload.generator": "chat",
    "workload.conversations": 8,
    "workload.rate": 4.0,
    "workload.think": "none",
    "workload.context_cap": 700,
    "system": "fastswitch",
    "order": "random",
    "priority.frequency": 0.2,
    "profile": "a10-llama-3-8b",
    "pool.device_blocks": 56,
    "pool.host_blocks": 120,
}
V1: dict[str, Any] = {
    "system": "vllm-v1",
    "pool.host_blocks": None,
    "limits.max_num_batched_tokens": 600,
    "workload.rate": 50.0,
}
BACKED: dict[str, Any] = {
    "system": {"base": "fastswitch", "name": "backed", "movement": "incremental"}
}


def without(*fields: str, **values: Any) -> dict[str, Any]:
    """What is put over BASE, None taking a field out; dots are written as two underscores."""
    return {**dict.fromkeys(fields), **{k.replace("__", "."): v for k, v in values.items()}}


FLEET: dict[str, Any] = {
    "order": "fcfs",
    "priority.frequency": None,
    "replicas": 3,
    "router": "llm-d-default",
    "telemetry.period_s": 0.2,
    "workload.conversations": 30,
    "workload.rate": 10.0,
}


def system(**switches: Any) -> dict[str, Any]:
    return {"system": {"base": "fastswitch", "name": "mine", **switches}}


#: Arrivals by a law with keys of its own.
def law(name: str, **keys: Any) -> dict[str, Any]:
    return {"workload.arrivals": {"law": name, **keys}}


FILE = without("workload.generator", "workload.conversations", "workload.context_cap")
UNTIMED = {**FILE, "workload.file": "untimed.csv", "workload.think": None}
TIMED = {**UNTIMED, "workload.rate": None}
GAPS = {"parts": [[1.0, -1.0, 0.5]]}

#: Leaf -> what is put over BASE, and the value that changes the run then.
CHANGES: dict[str, tuple[dict[str, Any], Any]] = {
    "workload.file": (UNTIMED, "other.csv"),
    "workload.format": ({**TIMED, "workload.file": "named.jsonl"}, "native"),
    "workload.columns": ({**UNTIMED, "workload.file": "mine.csv"}, "input=b,output=a"),
    "workload.turns": (
        {**UNTIMED, "workload.file": "turns.jsonl", "workload.think": "none"},
        "increments",
    ),
    "workload.block_size": (
        {**UNTIMED, "workload.file": "blocks.jsonl", "system": "fastswitch-prefix"},
        400,
    ),
    "workload.companions": (
        {**TIMED, "workload.file": "moon.jsonl"},
        ["table.csv"],
    ),
    "workload.generator": (without("workload.context_cap"), "code"),
    "workload.conversations": ({}, 5),
    "workload.rate": ({}, 9.0),
    "workload.arrivals.law": ({}, "modulated"),
    "workload.arrivals.cv": (law("gamma", cv=2), 5.0),
    "workload.arrivals.swing": (law("modulated"), 2.0),
    "workload.arrivals.memory_s": (law("modulated"), 1.0),
    "workload.arrivals.clients": (law("clients"), 2),
    "workload.arrivals.skew": (law("clients"), 3.0),
    "workload.arrivals.client_law": (law("clients"), "weibull"),
    "workload.arrivals.cv_log_mean": (law("clients"), 2.0),
    "workload.arrivals.cv_log_deviation": (law("clients"), 2.0),
    "workload.arrivals.of_rate": (law("fitted", of_rate=1.0, gaps=GAPS), 5.0),
    "workload.arrivals.gaps": (law("fitted", of_rate=1.0, gaps=GAPS), {"mean": 3.0}),
    "workload.resample": ({**TIMED, "workload.file": "moon.jsonl"}, True),
    "workload.context_cap": ({}, 300),
    "workload.uncapped": (
        without("workload.context_cap", "workload.conversations", workload__generator="mine.yaml"),
        True,
    ),
    "workload.concurrency": ({}, 1),
    "workload.think": ({}, "human"),
    "workload.think_mean_s": (without(workload__think="exponential"), 90.0),
    "workload.system_tokens": ({}, 100),
    "workload.hash_block": ({"system": "fastswitch-prefix", "workload.system_tokens": 64}, 16),
    "workload.priority.shares": (
        without("priority.frequency", order="priority", workload__priority={"shares": [0.5, 0.5]}),
        [0.1, 0.9],
    ),
    "workload.priority.by": (
        without(
            "priority.frequency",
            order="priority",
            workload__arrivals={"law": "clients", "clients": 3},
            workload__priority={"shares": [0.5, 0.5]},
        ),
        "client",
    ),
    "system": ({}, "vllm-0.3.3-keep"),
    "order": (without("priority.frequency", order="fcfs"), "vtc"),
    "priority.pattern": (without("order", "priority.frequency", priority__period_s=0.5), "random"),
    "priority.frequency": ({}, 0.5),
    "priority.period_s": (without("priority.frequency", priority__period_s=0.05), 3.0),
    "priority.share": ({"order": "markov"}, 0.5),
    "priority.stay": ({"order": "markov"}, 0.1),
    "profile": ({}, "h100-llama-3-8b"),
    "profile_values": ({}, {"transfer.per_call": 1e-3}),
    "profile_draw": ({}, 3),
    "pool.device_blocks": ({}, 80),
    "pool.host_blocks": ({}, 30),
    "pool.block_size": ({}, 32),
    "pool.watermark": ({}, 0.3),
    "pool.offload_chunk_blocks": (
        {**V1, "system": "vllm-v1-offload", "pool.host_blocks": 120},
        3,
    ),
    "pool.aging": ({}, "none"),
    "limits.max_num_seqs": ({}, 2),
    "limits.max_num_batched_tokens": ({}, 200),
    "limits.max_paddings": ({"workload.rate": 99.0}, 1),
    "limits.max_model_len": ({}, 300),
    "limits.scheduler_reserve_full_isl": (V1, False),
    "limits.long_prefill_token_threshold": (V1, 32),
    "limits.long_prefill_token_threshold_adaptive": (
        {**V1, "limits.long_prefill_token_threshold": 16},
        True,
    ),
    "groups.initial_blocks": ({}, 2),
    "groups.growth_blocks": ({}, 1),
    "groups.host_increment_blocks": ({}, 0),
    "hysteresis.gap": (system(displacement="gap"), 0.9),
    "hysteresis.min_run_steps": ({}, 30),
    "hysteresis.max_parkings": ({}, 1),
    "hysteresis.token_quantum": ({"hysteresis.max_parkings": 1}, 200),
    "movement.every": (BACKED, 1),
    "movement.blocks": (BACKED, 2),
    "movement.depth": (BACKED, 1.0),
    "movement.low": (
        {**system(movement="proactive", overlap="async"), "movement.high": 0.5},
        0.3,
    ),
    "movement.high": (system(movement="proactive", overlap="async"), 0.7),
    "vtc.head_start": (without("priority.frequency", order="vtc"), 900),
    "vtc.prompt_weight": (without("priority.frequency", order="vtc"), 50),
    "vtc.output_weight": (without("priority.frequency", order="vtc"), 50),
    "vtc.weights": (
        without(
            "priority.frequency",
            order="vtc",
            workload__rate=50.0,
            workload__arrivals={"law": "clients", "clients": 3, "skew": 0.0},
        ),
        {"client-0003": 1000},
    ),
    "vtc.update_steps": (without("priority.frequency", order="vtc"), 1),
    "rates.step_ns": (system(overlap="adaptive"), 1),
    "rates.load_ns_per_block": (system(overlap="adaptive"), 10**9),
    "rates.store_ns_per_block": (system(preemption="cost"), 10**10),
    "rates.prefill_ns_per_token": (system(preemption="cost"), 10**9),
    "last_turn_known": ({}, True),
    "seed": ({}, 5),
    "run": ({}, 2),
    "replica": ({}, 1),
    "router": ({**FLEET, "telemetry.period_s": None}, "round-robin"),
    "telemetry.period_s": (FLEET, 3.0),
    "telemetry.delay_s": (FLEET, 2.0),
    "telemetry.loss": (FLEET, 0.9),
    "telemetry.phase": ({**FLEET, "telemetry.period_s": 3.0}, "aligned"),
    "workload.users": ({"workload.users": 3, "workload.rate": None}, 2),
}

FILES = {
    "untimed.csv": "num_prefill_tokens,num_decode_tokens\n300,80\n200,50\n",
    "other.csv": "num_prefill_tokens,num_decode_tokens\n300,81\n",
    "named.jsonl": '{"request_id": "a", "input_tokens": 9, "output_tokens": 4, "arrival_s": 0,'
    ' "stop": "timestamp", "kind": "chat_id"}\n',
    "mine.csv": "a,b\n30,5\n",
    "turns.jsonl": "".join(
        f'{{"session_id": "s", "input_length": {n}, "output_length": 5}}\n' for n in (90, 95)
    ),
    "blocks.jsonl": "".join(
        f'{{"input_length": 600, "output_length": 5, "hash_ids": [1, {last}]}}\n' for last in (2, 3)
    ),
    "moon.jsonl": "".join(
        f'{{"timestamp": {at}, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}}\n'
        for at in (0, 9000)
    ),
    "table.csv": "row,timestamp,session,turn,parent_row,matched_blocks\n0,0,1,1,-1,0\n1,9000,1,2,0,1\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    made = GeneratorFile(
        fitted_on="a test", conversations=8, rate=4.0, context_cap=300, model=chat.MODEL
    )
    save_generator(made, tmp_path / "mine.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scenario(*over: dict[str, Any]) -> Scenario:
    values = dict(BASE)
    for part in over:
        values.update(part)
    return build(merge({}, {k: v for k, v in values.items() if v is not None}), "test")


def leaves(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """Dotted names of all fields that hold no section."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        inner = [k for k in kinds if inspect.isclass(k) and issubclass(k, BaseModel)]
        if inner:
            yield from leaves(inner[0], f"{before}{name}.")
        else:
            yield f"{before}{name}"


def recorded(made: Scenario) -> str:
    """Everything that a run left, as text."""
    if made.replicas:
        rows = simulate_fleet(made).table("routing").to_pylist()
        return json.dumps([[row["request_id"], row["replica"]] for row in rows])
    run = simulate(made)
    return json.dumps({name: run.table(name).to_pydict() for name in SCHEMAS})


def test_every_field_of_the_schema_is_here() -> None:
    assert {*CHANGES, *LABELS, *GROUPS} == set(leaves(Scenario))
    assert {path for path in READ_BY if path not in CHANGES} == {"vtc", "workload.priority"}


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_the_run_where_something_reads_it(folder: Path, field: str) -> None:
    over, value = CHANGES[field]
    before = scenario(over)
    after = scenario(over, {field: value})
    assert not unread(after)
    refuse_unread([after])
    try:
        left = recorded(before)
    except FastSwitchError:  # the file or the section cannot do without it
        left = "refused"
    assert recorded(after) != left


#: What is put over BASE, and which field of it is asked for in vain.
IN_VAIN: list[tuple[dict[str, Any], str]] = [
    ({"workload.think_mean_s": 5.0}, "workload.think_mean_s"),
    ({"workload.priority": {"shares": [0.5, 0.5]}}, "workload.priority"),
    ({"workload.hash_block": 16}, "workload.hash_block"),
    ({"priority.pattern": "markov"}, "priority.pattern"),
    ({"order": "fcfs"}, "priority.frequency"),
    (without("priority.frequency", order="priority", priority__period_s=1.0), "priority.period_s"),
    ({"order": "vtc"}, "priority.frequency"),
    ({"priority.share": 0.3}, "priority.share"),
    ({"priority.stay": 0.3}, "priority.stay"),
    ({**system(shape="chunked"), "limits.max_paddings": 3}, "limits.max_paddings"),
    ({"system": "vllm-0.3.3-keep", "groups.initial_blocks": 2}, "groups.initial_blocks"),
    ({"system": "vllm-0.3.3-keep", "groups.growth_blocks": 2}, "groups.growth_blocks"),
    (
        {"system": "fastswitch-no-reuse", "groups.host_increment_blocks": 2},
        "groups.host_increment_blocks",
    ),
    ({"system": "vllm-v1"}, "pool.host_blocks"),
    ({"pool.offload_chunk_blocks": 2}, "pool.offload_chunk_blocks"),
    *[
        ({f"limits.{name}": value}, f"limits.{name}")
        for name, value in (
            ("scheduler_reserve_full_isl", False),
            ("long_prefill_token_threshold", 9),
            ("long_prefill_token_threshold_adaptive", True),
        )
    ],
    ({"hysteresis.gap": 2.0}, "hysteresis.gap"),
    (
        without(
            "priority.frequency",
            order="fcfs",
            system="vllm-0.3.3-keep",
            hysteresis__min_run_steps=2,
        ),
        "hysteresis.min_run_steps",
    ),
    ({**system(caps_parkings=False), "hysteresis.max_parkings": 9}, "hysteresis.max_parkings"),
    ({**system(caps_parkings=False), "hysteresis.token_quantum": 9}, "hysteresis.token_quantum"),
    ({"movement.every": 3}, "movement.every"),
    ({"movement.blocks": 3}, "movement.blocks"),
    ({"movement.depth": 0.5}, "movement.depth"),
    ({"movement.low": 0.01}, "movement.low"),
    ({"movement.high": 0.5}, "movement.high"),
    ({"vtc.head_start": 3}, "vtc"),
    ({**system(overlap="async"), "rates.step_ns": 3}, "rates.step_ns"),
    ({**system(overlap="async"), "rates.load_ns_per_block": 3}, "rates.load_ns_per_block"),
    ({"rates.store_ns_per_block": 3}, "rates.store_ns_per_block"),
    ({"rates.prefill_ns_per_token": 3}, "rates.prefill_ns_per_token"),
    ({"system": "vllm-0.3.3", "last_turn_known": True}, "last_turn_known"),
]


def test_every_line_of_who_reads_what_has_a_case_here() -> None:
    assert {field for _, field in IN_VAIN} == set(READ_BY)


@pytest.mark.parametrize(("over", "field"), IN_VAIN, ids=lambda value: str(value)[-40:])
def test_a_field_that_nothing_reads_is_refused_and_changes_nothing(
    folder: Path, over: dict[str, Any], field: str
) -> None:
    made = scenario(over)
    assert list(unread(made)) == [field]
    with pytest.raises(ConfigError, match=f"^{field}: changes nothing: .*; take it out"):
        refuse_unread([made])
    section = {f: None for f in over if f == field or f.startswith(f"{field}.")}
    section = section or {field: None}
    less = recorded(scenario(over, section)) if field != "workload.priority" else ""
    if less and field not in ("workload.hash_block",):  # which are in the rows served
        assert recorded(made) == less
    told = [line for line in simulate(made).summary["warnings"] if line.startswith(field)]
    assert len(told) == 1


def test_a_study_refuses_only_what_none_of_its_runs_reads() -> None:
    over = {"hysteresis.gap": 2.0}
    both = [scenario(over), scenario(over, system(displacement="gap"))]
    refuse_unread(both)
    with pytest.raises(ConfigError, match=r"^hysteresis\.gap: "):
        refuse_unread(both[:1])
    refuse_unread([scenario({"priority.share": 0.3})], own_order=True)


def test_what_a_file_says_for_another_order_is_no_longer_asked_for_once_one_is_chosen() -> None:
    made = [scenario({"order": "fcfs"})]
    with pytest.raises(ConfigError, match=r"^priority\.frequency: "):
        refuse_unread(made)
    refuse_unread(made, chosen=["order"])
    with pytest.raises(ConfigError, match=r"^priority\.frequency: "):
        refuse_unread(made, chosen=["order", "priority.frequency"])


def test_a_default_that_is_written_out_asks_for_nothing() -> None:
    made = scenario()
    again = build(json.loads(json.dumps(made.model_dump(mode="json"))), "resolved")
    assert asked_for(again) == asked_for(made) and not unread(again)


@pytest.mark.parametrize(("name", "value"), [("rate", 2.0), ("think", "human")])
def test_times_that_a_file_has_already_are_refused_and_not_ignored(
    folder: Path, name: str, value: Any
) -> None:
    over = {**FILE, "workload.rate": None, "workload.think": None, f"workload.{name}": value}
    opened = scenario({**over, "workload.file": "moon.jsonl"})
    with pytest.raises(
        ConfigError, match=rf"^workload\.{name}: moon\.jsonl has arrivals of its own"
    ):
        refuse_unread([opened])
    with pytest.raises(ConfigError, match=rf"^workload\.{name}: moon"):
        simulate(opened)
    (folder / "closed.jsonl").write_text(
        '{"format": "fastswitch-workload/3", "timing": "closed"}\n'
        '{"request_id": "a", "session_id": "s", "input_tokens": 9, "output_tokens": 4, "arrival_s": 1}\n'
        '{"request_id": "b", "session_id": "s", "turn": 2, "input_tokens": 19, "output_tokens": 4,'
        ' "think_s": 1}\n'
    )
    with pytest.raises(ConfigError, match=rf"^workload\.{name}: closed\.jsonl lacks no such times"):
        refuse_unread([scenario({**over, "workload.file": "closed.jsonl"})])


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_no_shipped_scenario_asks_for_what_none_of_its_systems_reads(path: Path) -> None:
    made = load(str(path))
    refuse_unread([made, *(made.model_copy(update={"system": name}) for name in made.systems)])


def test_commands_refuse_before_anything_is_written(folder: Path) -> None:
    (folder / "s.yaml").write_text(json.dumps({**merge({}, BASE), "name": "s"}))
    sweep = {"scenario": "s.yaml", "systems": ["fastswitch"], "runs": 1}
    (folder / "sweep.yaml").write_text(
        json.dumps({**sweep, "grid": {"hysteresis.gap": [1.0, 2.0]}})
    )
    for words in (
        ("simulate", "s.yaml", "--set", "hysteresis.gap=1.0", "--out", "out"),
        ("compare", "s.yaml", "--set", "system.reuse=false", "--out", "out"),
        ("compare", "s.yaml", "--systems", "fastswitch", "--set", "hysteresis.gap=1.0"),
        ("machine", "doubt", "s.yaml", "--systems", "paged,fastswitch", "--set", "system=paged"),
        ("sweep", "run", "sweep.yaml", "--out", "out"),
    ):
        done = CliRunner().invoke(fastswitch.main, list(words))
        assert done.exit_code == 2, done.output
        assert not (folder / "out").exists()
