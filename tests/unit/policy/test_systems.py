"""Systems are data: named ones, variants of them, and combinations that make no sense refused."""

from __future__ import annotations

from typing import Any

import pytest

from policy.errors import ConfigError
from policy.systems import (
    ALIASES,
    BASELINES,
    CHOICES,
    RELEASE,
    SYSTEMS,
    System,
    aliases,
    custom_system,
    named_system,
    served_under,
)

FASTSWITCH = SYSTEMS["fastswitch"]


def differences(one: System, other: System) -> dict[str, Any]:
    ours, theirs = one.switches(), other.switches()
    return {name: value for name, value in ours.items() if value != theirs[name]}


def test_the_three_mechanisms_are_all_that_fastswitch_changes_of_its_baseline() -> None:
    assert differences(FASTSWITCH, SYSTEMS["paged-keep"]) == {
        "allocator": "groups",
        "submission": "merged",
        "dispatch": "worker_threads",
        "overlap": "adaptive",
        "reuse": True,
    }


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("fastswitch-no-groups", {"allocator": "paged"}),
        ("fastswitch-no-reuse", {"reuse": False}),
        ("fastswitch-no-async", {"dispatch": "main_thread", "overlap": "sync"}),
        ("fastswitch-block-major", {"layout": "block_major"}),
    ],
)
def test_leaving_one_out_changes_that_one_only(name: str, without: dict[str, Any]) -> None:
    assert differences(SYSTEMS[name], FASTSWITCH) == without


@pytest.mark.parametrize(
    ("name", "base", "changed"),
    [
        ("+groups-block-major", "+groups", {"layout": "block_major"}),
        ("+cost", "+groups", {"preemption": "cost"}),
        ("fastswitch-cost", "fastswitch", {"preemption": "cost"}),
        ("fastswitch-gap", "fastswitch", {"displacement": "gap"}),
        ("fastswitch-never", "fastswitch", {"displacement": "never"}),
        ("fastswitch-lru", "fastswitch", {"host_eviction": "lru"}),
        ("fastswitch-arc", "fastswitch", {"host_eviction": "arc"}),
        ("fastswitch-isolated-lru", "fastswitch", {"host_eviction": "isolated_lru"}),
        ("fastswitch-no-leader", "fastswitch", {"protects_leader": False}),
        ("fastswitch-no-cap", "fastswitch", {"caps_parkings": False}),
    ],
)
def test_a_policy_is_one_switch(name: str, base: str, changed: dict[str, Any]) -> None:
    assert differences(SYSTEMS[name], SYSTEMS[base]) == changed


def test_sharing_is_one_switch_and_in_no_system_whose_name_does_not_say_so() -> None:
    assert differences(SYSTEMS["+prefix"], System("plain")) == {"prefix_sharing": True}
    assert differences(SYSTEMS["fastswitch-prefix"], FASTSWITCH) == {"prefix_sharing": True}
    ranked = [system for system in SYSTEMS.values() if system.engine == "ranked"]
    sharing = [system.name for system in ranked if system.options.prefix_sharing]
    assert sharing == ["+prefix", "fastswitch-prefix"]


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"base": "-keep"}, "the release shares no prefixes"),
        ({"between_turns": "keep_device"}, "prefix_sharing and keep_device both keep idle KV"),
    ],
)
def test_sharing_is_refused_where_it_makes_no_sense(switches: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        custom_system({**switches, "prefix_sharing": True})


def test_chunks_and_movement_are_one_switch_each() -> None:
    plain = System("plain")
    assert differences(SYSTEMS["+chunked"], plain) == {"shape": "chunked"}
    assert differences(SYSTEMS["fastswitch-chunked"], FASTSWITCH) == {"shape": "chunked"}
    through = {"movement": "write_through"}
    assert differences(SYSTEMS["+write-through"], SYSTEMS["+reuse"]) == through
    assert differences(SYSTEMS["fastswitch-write-through"], FASTSWITCH) == through
    incremental, proactive = {"movement": "incremental"}, {"movement": "proactive"}
    assert differences(SYSTEMS["+incremental"], SYSTEMS["+reuse"]) == incremental
    assert differences(SYSTEMS["fastswitch-incremental"], FASTSWITCH) == incremental
    assert differences(SYSTEMS["+proactive"], SYSTEMS["+async"]) == proactive
    assert differences(SYSTEMS["fastswitch-proactive"], FASTSWITCH) == proactive


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"base": "+groups"}, "movement write_through needs reuse and swap"),
        ({"base": "+reuse", "preemption": "recompute"}, "needs reuse and swap"),
        ({"base": "fastswitch-prefix"}, "goes with neither prefix_sharing nor the release"),
        ({"base": "-keep", "reuse": True}, "goes with neither prefix_sharing nor the release"),
    ],
)
def test_movement_is_refused_where_its_copies_would_be_thrown_away(
    switches: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        custom_system({**switches, "movement": "write_through"})
    with pytest.raises(ConfigError, match=says.replace("write_through", "incremental")):
        custom_system({**switches, "movement": "incremental"})


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"base": "+reuse"}, "movement proactive needs swap, and overlap async or adaptive"),
        ({"base": "+async", "preemption": "recompute"}, "movement proactive needs swap"),
        ({"base": "fastswitch-cost"}, "movement proactive needs swap"),
        ({"base": "fastswitch-prefix"}, "goes with neither prefix_sharing nor the release"),
        ({"base": "-keep"}, "movement proactive needs swap, and overlap async"),
    ],
)
def test_parking_ahead_is_refused_where_steps_would_wait_for_it(
    switches: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        custom_system({**switches, "movement": "proactive"})


def test_a_leading_dash_is_a_variant_of_the_baseline() -> None:
    assert [named_system(name).name for name in ("-keep", "-recompute", "+groups")] == [
        "vllm-0.3.3-keep",
        "vllm-0.3.3-recompute",
        "+groups",
    ]


def test_the_release_is_one_thing_and_its_memory_under_other_orders_another() -> None:
    for release, paged in ALIASES.items():
        asked = named_system(release)
        assert (asked.engine, asked.transport) == (RELEASE, named_system(paged).transport)
        assert served_under(asked, is_fcfs=True) is asked
        assert served_under(asked, is_fcfs=False) == named_system(paged)
    mine = custom_system({"base": "-keep", "name": "mine", "host_eviction": "lru"})
    assert served_under(mine, is_fcfs=False) == mine.but(engine="ranked")
    fast = named_system("fastswitch")
    assert served_under(fast, is_fcfs=False) is served_under(fast, is_fcfs=True) is fast
    assert tuple(ALIASES.values())[:2] == BASELINES


def test_the_planner_of_earlier_scenarios_is_the_engine() -> None:
    assert custom_system({"base": "-keep", "fcfs_planner": "rules", "name": "m"}).engine == "ranked"
    made = custom_system({"fcfs_planner": "release", "name": "m"})
    assert made == SYSTEMS["vllm-0.3.3-keep"].but("m")
    assert made.switches()["fcfs_planner"] == "release"


@pytest.mark.parametrize(
    ("name", "near"), [("fastswich", "fastswitch"), ("-groups", "+groups"), ("", None), ("?", None)]
)
def test_an_unknown_name_is_refused_with_its_neighbour(name: str, near: str | None) -> None:
    with pytest.raises(ConfigError) as told:
        named_system(name)
    hint = f"; did you mean {near!r}?" if near else ""
    assert str(told.value) == (
        f"system: {name!r} is not one of those that `fastswitch systems` lists{hint}"
    )


@pytest.mark.parametrize("switch", CHOICES)
def test_a_value_that_a_switch_does_not_have_is_refused(switch: str) -> None:
    switches: dict[str, Any] = {switch: "tape"}
    with pytest.raises(ConfigError, match=f"^system s: {switch} is 'tape', not one of "):
        System("s").but(**switches)


@pytest.mark.parametrize("threads", [0, 65])
def test_threads_are_one_to_sixty_four(threads: int) -> None:
    with pytest.raises(ConfigError, match=f"threads is {threads}, not 1 to 64"):
        System("s").but(threads=threads)


@pytest.mark.parametrize("switch", [{"allocator": "groups"}, {"overlap": "async"}])
def test_the_release_has_no_memory_but_its_own(switch: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="the release knows paged, sync memory only"):
        System("s", RELEASE).but(**switch)


def test_the_release_keeps_nothing_on_the_device() -> None:
    with pytest.raises(ConfigError, match="the release keeps nothing on the device"):
        System("s", RELEASE).but(between_turns="keep_device")


def test_only_the_release_and_systems_named_after_it_switch_planner_rules_off() -> None:
    off = {name: system.rules_off for name, system in SYSTEMS.items() if system.rules_off}
    rules = (4, 6, 9, 10, 12, 13)
    release = dict.fromkeys(["vllm-0.3.3", "vllm-0.3.3-keep", "vllm-0.3.3-recompute"], rules)
    assert off == {**release, "fastswitch-no-leader": (9,), "fastswitch-no-cap": (10,)}


def test_a_mapping_starts_from_its_base_and_is_named_after_what_it_changes() -> None:
    made = custom_system({"base": "fastswitch", "threads": 4, "reuse": False})
    assert made.name == "fastswitch+reuse+threads"
    assert differences(made, FASTSWITCH) == {"threads": 4, "reuse": False}


def test_a_mapping_may_name_itself_and_needs_no_base() -> None:
    made = custom_system({"name": "mine", "overlap": "async"})
    assert made == System("mine").but(overlap="async")


def test_the_callers_mapping_is_left_alone() -> None:
    given = {"base": "fastswitch", "name": "mine"}
    custom_system(given)
    assert given == {"base": "fastswitch", "name": "mine"}


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"alocator": "paged"}, "system.alocator: unknown; switches are name, allocator"),
        ({"threads": "4"}, "system.threads: '4' is not of type int"),
        ({"threads": True}, "system.threads: True is not of type int"),
        ({"reuse": 1}, "system.reuse: 1 is not of type bool"),
        ({"base": "none"}, "system: 'none' is not one of"),
        ({"overlap": "never"}, "overlap is 'never', not one of sync, async, adaptive"),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(switches: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        custom_system(switches)


@pytest.mark.parametrize(
    ("switch", "problem"),
    [
        ({"preemption": "cost"}, "recomputes, or swaps every victim"),
        ({"reuse": True}, "its host copies end with the load"),
        ({"overlap": "async"}, "copies nothing without offload"),
        ({"offload": "all"}, "offloading is async, and evicts by lru or arc"),
        ({"protects_leader": False}, "no rules 9 and 10"),
    ],
)
def test_v1_has_its_own_queues_and_memory(switch: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        SYSTEMS["vllm-v1"].but(**switch)
    assert SYSTEMS["vllm-v1"].finds_by_name
    assert not SYSTEMS["vllm-v1"].but(prefix_sharing=False).finds_by_name


def test_names_that_are_another_systems_under_the_order_are_told() -> None:
    names = ["vllm-0.3.3", "vllm-0.3.3-keep", "fastswitch"]
    assert aliases(names, is_fcfs=True) == {}
    assert aliases(names, is_fcfs=False) == {"vllm-0.3.3": "paged", "vllm-0.3.3-keep": "paged-keep"}


def test_keys_of_results_know_asynchronous_scheduling_where_it_is_on() -> None:
    assert "async_scheduling" not in FASTSWITCH.switches()
    assert FASTSWITCH.but("ahead", async_scheduling=True).switches()["async_scheduling"] is True
