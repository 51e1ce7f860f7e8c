"""A fleet: one replica is the engine itself, fixed routing is separate engines, and everything replays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fastswitch
from explore.validation import validate
from policy.errors import ConfigError, InputError, InvariantError
from policy.routing.base import Router
from policy.routing.catalog import ROUTERS, make_router
from policy.routing.view import Choice, ReplicaView, RoutedView
from policy.systems import SYSTEMS
from runs import fleet_recording
from runs.metrics.fleet import summarise_fleet
from runs.metrics.goodput import Slo
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario, build
from runs.serving import make_scheduler
from runs.turns import Arrival, TurnDriver
from sim.fleet import fleet as fleets
from sim.fleet.ancestry import Ancestry
from sim.fleet.inbox import Inbox
from sim.fleet.replay import replay_router
from sim.fleet.simulate import member_scenarios, simulate_fleet
from sim.fleet.telemetry import Probe
from sim.simulate import calm_collector, close, make_engine, prepare, simulate
from traces.randomness import Streams
from traces.workload import Turn, Workload

CHAT = {
    "generator": "chat",
    "conversations": 12,
    "rate": 6.0,
    "context_cap": 400,
    "think": "exponential",
    "think_mean_s": 0.5,
}


AGED = {"device_blocks": 60, "host_blocks": 90}


def scenario(**values: Any) -> Scenario:
    """Overloaded: a device for two or three conversations."""
    data: dict[str, Any] = {
        "name": "fleet",
        "profile": "a10-llama-3-8b",
        "workload": CHAT,
        "pool": {"device_blocks": 60, "host_blocks": 90, "aging": "none"},
        "limits": {"max_model_len": 400},
    }
    return build({**data, **values}, "test")


def facts(one: Recording) -> dict[str, Any]:
    return {name: value for name, value in one.summary.items() if name != "provenance"}


def assert_equal(one: Recording, other: Recording) -> None:
    for name, table in one.tables.items():
        assert table.equals(other.tables[name]), name
    assert one.decisions == other.decisions
    assert one.notes == other.notes
    assert facts(one) == facts(other)


# ---------------------------------------------------------------------- equal to engines alone


ONE_OF_EACH = ("vllm-0.3.3-keep", "vllm-v1+swap", "vllm-v1-offload", "fastswitch", "+async")


@pytest.mark.parametrize(
    "system",
    [s if s in ONE_OF_EACH else pytest.param(s, marks=pytest.mark.full) for s in SYSTEMS],
)
def test_one_replica_is_the_engine_alone_to_the_byte(system: str) -> None:
    given = scenario(system=system, workload={**CHAT, "conversations": 6})
    alone = simulate(given, decisions=True)
    found = simulate_fleet(
        given.with_values({"replicas": 1, "router": "random"}), decisions=True, check="counts"
    )
    if alone.summary["verdict"] is None:
        assert_equal(alone, found.members[0])


@pytest.mark.parametrize("router", ROUTERS)
def test_one_replica_is_the_engine_alone_behind_every_router(router: str) -> None:
    given = scenario(priority={"pattern": "markov", "frequency": 0.1}, last_turn_known=True)
    alone = simulate(given, decisions=True)
    found = simulate_fleet(given.with_values({"replicas": 1, "router": router}), decisions=True)
    assert_equal(alone, found.members[0])
    metrics = found.summary["metrics"]
    common = set(metrics) & set(alone.summary["metrics"])
    assert len(common) > 30
    assert {n: metrics[n] for n in common} == {n: alone.summary["metrics"][n] for n in common}


def test_a_closed_loop_of_clients_stays_the_engine_alone() -> None:
    given = scenario(workload={**CHAT, "concurrency": 3})
    alone = simulate(given, decisions=True)
    assert_equal(
        alone, simulate_fleet(given.with_values({"replicas": 1}), decisions=True).members[0]
    )


def separate(given: Scenario, sessions: set[str], alone: Scenario) -> Recording:
    """One replica's sessions, served by an engine with that replica's streams and nobody else."""
    setup = prepare(alone)
    scheduler = make_scheduler(setup)
    turns = [turn for turn in prepare(given).workload if turn.session_id in sessions]
    aging = [(t.input_tokens, t.output_tokens) for t in setup.workload]
    with Recorder(decisions=True, aging=aging, header=setup.workload.header) as recorder:
        driver = TurnDriver(Workload.of(turns, setup.workload.header))
        engine = make_engine(setup, scheduler, recorder, "off", driver=driver)
        with calm_collector():
            engine.env.run(until=engine.env.process(engine.run()))
        return close(setup, scheduler, engine, recorder, None)


def compare_with_separate(given: Scenario, replicas: int) -> None:
    fleet = given.with_values({"replicas": replicas, "router": "session-hash"})
    found = simulate_fleet(fleet, decisions=True)
    homes: dict[int, set[str]] = {number: set() for number in range(replicas)}
    sessions = {turn.request_id: turn.session_id for turn in prepare(given).workload}
    for row in found.table("routing").to_pylist():
        homes[row["replica"]].add(sessions[row["request_id"]])
    assert sum(map(len, homes.values())) == len(set(sessions.values()))
    assert sum(bool(home) for home in homes.values()) > 1
    for (_, _, alone), home, member in zip(
        member_scenarios(fleet), homes.values(), found.members, strict=True
    ):
        assert_equal(separate(given, home, alone), member)


@pytest.mark.parametrize("system", ["fastswitch", "vllm-v1", "vllm-v1-offload"])
def test_a_router_without_feedback_is_separate_engines_to_the_byte(system: str) -> None:
    compare_with_separate(scenario(system=system, pool=AGED), 4)


@pytest.mark.full
@pytest.mark.parametrize("system", SYSTEMS)
def test_sixteen_replicas_are_sixteen_engines(system: str) -> None:
    given = scenario(system=system, workload={**CHAT, "conversations": 80}, pool=AGED)
    compare_with_separate(given, 16)


def test_replicas_draw_from_streams_of_their_own() -> None:
    first, second = Streams(1, 2), Streams(1, 2, 1)
    assert first("x", "y", 0) != second("x", "y", 0)
    assert [alone.replica for _, _, alone in member_scenarios(scenario(replicas=3))] == [0, 1, 2]


# ---------------------------------------------------------------------- written down and replayed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fleet") / "made"
    groups = [
        {"count": 2, "name": "old", "price_per_hour": 1.0},
        {"count": 1, "system": "vllm-v1", "gpus": 2, "price_per_hour": 4.0},
    ]
    given = scenario(
        replicas=groups,
        router="llm-d-default",
        telemetry={"period_s": 0.2, "delay_s": 0.05, "loss": 0.3},
        pool=AGED,
    )
    simulate_fleet(given, out=path, decisions=True)
    return path


def test_a_fleet_is_a_folder_of_ordinary_recordings(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    wanted = {"fleet.json", "scenario.yaml", "routing.parquet", "routing.jsonl", "replicas.parquet"}
    assert names == wanted | {"r000", "r001", "r002"}
    loaded = fleet_recording.load(folder)
    assert [one["name"] for one in loaded.summary["replicas"]] == ["old-0", "old-1", "group-1-2"]
    assert [one.summary["system"] for one in loaded.members] == ["fastswitch"] * 2 + ["vllm-v1"]
    assert loaded.summary["metrics"] == json.loads(json.dumps(summarise_fleet(loaded)))
    rows = loaded.table("routing").to_pylist()
    assert len(rows) == loaded.summary["metrics"]["rows"] == loaded.summary["workload"]["rows"]
    heard = [row["oldest_signal_ns"] for row in rows if row["oldest_signal_ns"] is not None]
    assert min(heard) >= 50_000_000
    assert max(heard) > 250_000_000  # a lost reading


def test_the_router_and_every_replica_replay(folder: Path) -> None:
    replayed = validate.replay(folder)
    decided = sum(1 for one in fleet_recording.load(folder).members for _ in one.decision_lines())
    routed = sum('"route"' in line for line in fleet_recording.load(folder).routing_lines())
    assert replayed.difference is None
    assert replayed.equal_lines == decided + routed


def test_another_choice_is_found_by_the_replay(folder: Path, tmp_path: Path) -> None:
    lines = list(fleet_recording.load(folder).routing_lines())
    at = next(i for i, line in enumerate(lines) if '"route"' in line and '"to":0' in line)
    lines[at] = lines[at].replace('"to":0', '"to":1')
    given = scenario(replicas=3, router="llm-d-default")
    router = make_router(given.router, Streams(given.seed, given.run))
    found = replay_router(lines, router, 16)
    assert found.difference is not None
    assert found.difference.where == f"line {at + 1} of routing.jsonl"
    with pytest.raises(InputError, match=r"routing.jsonl:1: "):
        replay_router(["{}"], router, 16)


def test_prices_are_of_replicas_and_hours_of_gpus(folder: Path) -> None:
    metrics = fleet_recording.load(folder).summary["metrics"]
    hours = metrics["makespan_s"] / 3600
    assert metrics["gpu_hours"] == pytest.approx(4 * hours, abs=1e-6)
    cost = 6.0 * hours / metrics["output_tokens"] * 1e6
    assert metrics["cost_per_million_tokens"] == pytest.approx(cost, abs=1e-6)


def test_a_service_level_and_a_warm_up_are_of_all_replicas(folder: Path) -> None:
    loaded = fleet_recording.load(folder)
    metrics = summarise_fleet(loaded, Slo(ttft_s=1e5), 0.5)
    assert metrics["slo_attainment"] == 1.0
    assert metrics["ttft_samples"] < loaded.summary["metrics"]["ttft_samples"]


def test_a_folder_that_is_no_fleet_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is not a recording"):
        simulate_fleet(scenario(replicas=2), out=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(InputError, match=r"fleet.json: cannot be read"):
        fleet_recording.load(tmp_path)
    with pytest.raises(InputError, match="was made without --decisions"):
        list(fleet_recording.FleetRecording({}, [], folder=tmp_path).routing_lines())
    with pytest.raises(InputError, match=r"routing.parquet: cannot be read"):
        fleet_recording.FleetRecording({}, [], folder=tmp_path).table("routing")
    (tmp_path / "fleet.json").write_text('{"format": "fastswitch-fleet/9"}')
    with pytest.raises(InputError, match="not fastswitch-fleet/1"):
        fleet_recording.load(tmp_path)


# ---------------------------------------------------------------------- the command


def run(*words: str) -> Result:
    return CliRunner().invoke(fastswitch.main, list(words))


def test_the_command_writes_a_fleet_and_validates_it(tmp_path: Path) -> None:
    given = tmp_path / "given.yaml"
    given.write_text(scenario(replicas=2, router="round-robin").as_yaml())
    done = run("simulate", str(given), "--decisions", "--out", str(tmp_path / "made"))
    assert done.exit_code == 0, done.output
    assert "2 x fastswitch on a10-llama-3-8b behind round-robin" in done.output
    assert "prompt tokens lay at another replica" in done.output
    done = run("validate", str(tmp_path / "made"), "--replay")
    assert done.exit_code == 0, done.output
    again = run("simulate", str(given), "--out", str(tmp_path / "made"), "--perfetto", "x.json.gz")
    assert again.exit_code == 2
    assert "--perfetto: is of one engine" in again.output


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"router": "best", "replicas": 2}, "router: 'best' is not one of round-robin"),
        ({"router": "random"}, "router: changes nothing without replicas"),
        ({"telemetry": {"loss": 0.5}}, "telemetry: changes nothing without replicas"),
        ({"replicas": 5000}, "replicas.0.count"),
        ({"replicas": [{"count": 1000}, {"count": 1000}]}, "replicas: 2000 in all, at most 1024"),
        (
            {"replicas": 2, "priority": {"pattern": "markov", "frequency": 0.1}},
            "order markov: its priorities change with the steps of one engine",
        ),
        ({"replicas": [{"system": "mine"}]}, "mine"),
    ],
)
def test_a_fleet_that_cannot_be_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scenario(**values)


def test_what_serves_one_engine_refuses_a_fleet() -> None:
    with pytest.raises(ConfigError, match="replicas: one engine is asked for here"):
        simulate(scenario(replicas=2))
    with pytest.raises(ConfigError, match="telemetry: changes nothing, router random reads none"):
        simulate_fleet(scenario(replicas=2, router="random", telemetry={"loss": 0.5}))


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ({"count": 3}, "rows", None),
        ({"name": "mine"}, "name", "mine-0"),
        ({"profile": "h100-llama-3-8b"}, "profile", "h100-llama-3-8b"),
        ({"system": "vllm-v1"}, "system", "vllm-v1"),
        ({"gpus": 8}, "gpus", 8),
        ({"price_per_hour": 2.5}, "price_per_hour", 2.5),
    ],
)
def test_every_field_of_a_group_changes_the_fleet(
    group: dict[str, Any], field: str, value: Any
) -> None:
    small = {**CHAT, "conversations": 3}
    told = simulate_fleet(scenario(replicas=[group], workload=small)).summary["replicas"]
    assert len(told) == group.get("count", 1)
    assert value is None or told[0][field] == value


# ---------------------------------------------------------------------- a user's own router


class Last(Router):
    """The last one that is ready."""

    def choose(self, request: RoutedView, ready: Sequence[ReplicaView], now_ns: int) -> Choice:
        return Choice(ready[-1].number, "last")


def test_a_users_own_router_is_asked() -> None:
    found = simulate_fleet(scenario(replicas=2), router=Last)
    assert {row["replica"] for row in found.table("routing").to_pylist()} == {1}
    assert found.summary["router"] == "Last"
    assert found.summary["metrics"]["imbalance"] == 2.0


def test_a_sweep_lays_routers_side_by_side(tmp_path: Path) -> None:
    spec = {
        "name": "routers",
        "scenario": json.loads(scenario(replicas=2).model_dump_json(exclude_unset=True)),
        "grid": {"router": ["round-robin", "sticky-least"]},
        "runs": 2,
    }
    found = fastswitch.sweep(spec, tmp_path / "out")
    means = found.results.groupby("router")["cached_share"].mean()
    assert means["sticky-least"] > means["round-robin"]
    with pytest.raises(ConfigError, match="replicas: a fleet has no series to compare"):
        fastswitch.compare(scenario(replicas=2), systems=["fastswitch"], runs=1)


# ---------------------------------------------------------------------- laws, each with its bug


def test_a_turn_at_two_replicas_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fleets.Fleet._send

    def twice(self: Any, arrival: Any, given: Any, request: Any, member: Any) -> None:
        original(self, arrival, given, request, member)
        original(self, arrival, given, request, self.members[-1])

    monkeypatch.setattr(fleets.Fleet, "_send", twice)
    with pytest.raises(InvariantError, match="and sent to another"):
        simulate_fleet(scenario(replicas=2, router="round-robin"))


def test_books_that_miss_an_end_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Router, "ended", lambda *_: None)
    with pytest.raises(InvariantError, match=r"the router has .* under way there, and"):
        simulate_fleet(scenario(replicas=2))


def test_a_view_that_is_too_young_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Probe, "_tick", lambda self: self._clock.now)
    with pytest.raises(InvariantError, match="is seen as it was after"):
        simulate_fleet(scenario(replicas=2, router="llm-d-default", telemetry={"delay_s": 0.1}))


def test_nothing_is_heard_before_the_delay_is_over() -> None:
    given = scenario(replicas=2, router="llm-d-default", telemetry={"delay_s": 0.5})
    rows = simulate_fleet(given).table("routing").to_pylist()
    early = [row["oldest_signal_ns"] for row in rows if row["routed_ns"] < 500_000_000]
    assert set(early) == {None}
    ages = [row["oldest_signal_ns"] for row in rows if row["oldest_signal_ns"] is not None]
    assert min(ages) >= 500_000_000


def test_a_turn_that_is_lost_on_its_way_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Inbox.push

    def loses(self: Inbox, arrival: Arrival) -> None:
        if self.num_rows != 3:
            original(self, arrival)
        else:
            self.num_rows += 1

    monkeypatch.setattr(Inbox, "push", loses)
    with pytest.raises(InvariantError, match="turns never ended"):
        simulate_fleet(scenario(replicas=2), check="off")


def test_an_end_told_by_another_replica_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = fleets.Fleet.ended

    def other(self: Any, replica: int, request_id: str, now_ns: int) -> None:
        original(self, 1 - replica, request_id, now_ns)

    monkeypatch.setattr(fleets.Fleet, "ended", other)
    with pytest.raises(InvariantError, match=r"ended at replica .* and was sent to"):
        simulate_fleet(scenario(replicas=2))


# ---------------------------------------------------------------------- reuse by descent


def arrival(name: str, parent: str | None, tokens: int, prefix: int | None) -> Arrival:
    turn = Turn(name, "s", 1, tokens, 10, parent_id=parent, parent_prefix_tokens=prefix)
    return Arrival(0, name, turn, parent, 0)


def test_a_turn_is_given_as_the_next_after_the_nearest_that_was_served_there() -> None:
    links = Ancestry()
    first, second = arrival("1", None, 100, None), arrival("2", "1", 200, 90)
    third = arrival("3", "2", 300, 150)
    links.served(first, 0)
    links.served(second, 1)
    same, lost = links.seen_by(third, 1)
    assert (same, lost) == (third, 0)
    nearest, lost = links.seen_by(third, 0)
    assert (nearest.parent_id, nearest.turn.parent_prefix_tokens, lost) == ("1", 90, 60)
    nobody, lost = links.seen_by(third, 2)
    assert (nobody.parent_id, lost) == (None, 150)
    links.lost(0)
    assert links.seen_by(third, 0)[0].parent_id is None


def test_a_whole_context_is_repeated_where_nobody_says_how_much() -> None:
    links = Ancestry()
    links.served(arrival("1", None, 100, None), 0)
    links.served(arrival("2", "1", 200, None), 1)
    third = arrival("3", "2", 300, None)
    nearest, lost = links.seen_by(third, 0)
    assert (nearest.parent_id, nearest.turn.parent_prefix_tokens, lost) == ("1", None, 100)


def test_a_session_that_moves_about_finds_what_it_left_behind() -> None:
    found = simulate_fleet(scenario(replicas=2, router="round-robin", system="+groups"))
    metrics = found.summary["metrics"]
    sticky = simulate_fleet(scenario(replicas=2, router="sticky-least", system="+groups"))
    assert metrics["lost_by_routing_tokens"] > 0
    assert sticky.summary["metrics"]["lost_by_routing_tokens"] == 0
    assert 0 < metrics["cached_share"] < sticky.summary["metrics"]["cached_share"]
