"""V1's variants, each one switch on top: other victims, displacement, parking, copies that no step waits
for, and blocks in groups. Blocks are of 4 tokens."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from policy.choices.rates import PrefillTime
from policy.choices.victim import LeastComputed, LeastCost, Stake
from policy.errors import ConfigError, InvariantError, OutOfBlocks, ReleaseVerdict
from policy.plan import CopyResult, Plan, PreemptionMode
from policy.pools.named import NamedPool
from policy.pools.named_runs import NamedRuns
from policy.systems import SYSTEMS, System
from tests.helpers.v1 import V1

SWAP, RECOMPUTE = PreemptionMode.SWAP, PreemptionMode.RECOMPUTE


class Copying(V1):
    """Ten blocks on the host, unless told. A copy ends when a test says so."""

    def __init__(self, system: str | System, **named: Any) -> None:
        super().__init__(system, **({"host_blocks": 10} | named))
        self.under_way: dict[int, str] = {}

    def plan_step(self) -> dict[str, int]:
        """See V1; notes the copies that begin."""
        tokens = super().plan_step()
        self.under_way.update({c.copy_id: c.direction.value for c in self.plan.copies})
        return tokens

    def end(self, *finished: str, copies: tuple[int, ...] = (), ok: bool = True) -> None:
        """The step has ended, with these copies and those that it waits for."""
        ended = [*copies, *[n for n in self.plan.wait_for if n not in copies]]
        for number in ended:
            del self.under_way[number]
        done = tuple(CopyResult(number, ok, self.now) for number in ended)
        self.end_step(*finished, copies=done)


# ---------------------------------------------------------------------- who is preempted


def test_the_one_that_has_computed_least_is_preempted_and_not_the_last() -> None:
    v1 = V1("vllm-v1+least-computed", device_blocks=8, caches=False)
    v1.add("first", "aaaaaaaa")
    v1.add("short", "bbb")
    v1.step()
    v1.add("long", "cccccccccccc")
    while not v1.lost:
        v1.step()
    assert list(v1.lost) == ["short"]
    assert v1.running == ["first", "long"]
    assert v1.waiting == ["short"]


def test_the_first_in_order_stays_while_another_runs() -> None:
    v1 = V1("vllm-v1+least-computed", device_blocks=5, caches=False)
    v1.add("first", "aaa")
    v1.add("long", "bbbbbbbbb")
    v1.step()
    while not v1.lost:
        v1.step()
    assert list(v1.lost) == ["long"]
    assert v1.running == ["first"]


def test_alone_it_is_preempted_and_the_release_has_its_verdict() -> None:
    v1 = V1("vllm-v1+least-computed", device_blocks=2, caches=False)
    v1.add("one", "aaaaaa")
    with pytest.raises(ReleaseVerdict, match="waits for ever"):
        v1.steps(10)


def test_less_urgent_ones_go_first_whatever_they_have_computed() -> None:
    v1 = V1("vllm-v1+least-computed", device_blocks=5, caches=False, priority=True)
    v1.add("calm", "aaaaaaa", priority=2)
    v1.add("urgent", "bbbbbbb", priority=1)
    v1.step()
    while not v1.lost:
        v1.step()
    assert list(v1.lost) == ["calm"]


def test_choices_of_victims_weigh_what_is_lost_and_what_is_gained() -> None:
    prefill = PrefillTime(1000)
    few, many = Stake(8, 2), Stake(80, 40)
    assert LeastComputed().key(few, prefill) > LeastComputed().key(many, prefill)
    assert LeastCost().key(many, prefill) > LeastCost().key(few, prefill)
    assert LeastCost().key(Stake(1, 0), prefill) < LeastCost().key(few, prefill)
    assert SYSTEMS["vllm-v1+victim-cost"].options.victim == "least_cost"


def test_cost_learns_how_long_prefills_take() -> None:
    assert V1("vllm-v1+victim-cost").scheduler.desk.rates.reads_prefills
    assert not V1("vllm-v1+least-computed").scheduler.desk.rates.reads_prefills
    assert not V1("vllm-v1").scheduler.desk.rates.reads_prefills


def test_one_whose_blocks_are_all_shared_is_the_last_to_go_by_cost() -> None:
    v1 = V1("vllm-v1+victim-cost", device_blocks=6)
    v1.add("first", "aaaabbb")
    v1.step()
    v1.add("other", "ccccccc")
    v1.add("alike", "aaaad")
    v1.step()
    while not v1.lost:
        v1.step()
    assert list(v1.lost) == ["other"]


# ---------------------------------------------------------------------- who is displaced


def displacing(system: str | System = "vllm-v1+displace", **named: Any) -> V1:
    v1 = V1(system, priority=True, **({"device_blocks": 6, "caches": False} | named))
    v1.add("calm", "aaaaaaa", priority=5)
    v1.add("middle", "bbbbbbb", priority=3)
    v1.step()
    return v1


def test_one_that_waits_displaces_the_least_urgent_and_runs_in_the_same_step() -> None:
    v1 = displacing()
    v1.add("urgent", "cccccccccc", priority=1)
    assert v1.plan_step() == {"middle": 1, "urgent": 10}
    assert v1.lost == {"calm": 7}
    assert v1.waiting == ["calm"]


def test_for_a_seat_too() -> None:
    v1 = displacing(device_blocks=20, max_num_seqs=2)
    v1.add("urgent", "c", priority=1)
    assert v1.plan_step() == {"middle": 1, "urgent": 1}


def test_nobody_gives_way_to_who_would_not_fit_all_the_same() -> None:
    v1 = displacing()
    v1.add("urgent", "c" * 20, priority=4)
    assert v1.plan_step() == {"calm": 1, "middle": 1}
    assert v1.lost == {}
    v1.end_step("middle")
    assert v1.plan_step() == {"urgent": 20}  # both steps were decided anew


def test_who_fits_and_who_is_not_more_urgent_displaces_nobody() -> None:
    v1 = displacing(device_blocks=9)
    v1.add("small", "c", priority=1)
    assert v1.plan_step() == {"calm": 1, "middle": 1, "small": 1}
    v1.end_step()
    v1.add("equal", "c" * 16, priority=5)
    assert "equal" not in v1.plan_step()
    assert v1.lost == {}


def test_a_gap_may_be_asked_for() -> None:
    kind = SYSTEMS["vllm-v1+displace"].but(displacement="gap")
    v1 = displacing(kind, displacement_gap=2.0)
    v1.add("urgent", "cccccccccc", priority=3)
    assert v1.plan_step() == {"calm": 1, "middle": 1}
    v1.end_step()
    v1.add("more", "cccccccccc", priority=2)
    assert v1.plan_step() == {"middle": 1, "more": 10}


def test_first_come_first_served_displaces_nobody() -> None:
    v1 = V1("vllm-v1+displace", device_blocks=4, caches=False)
    v1.add("one", "aaaaaaaaa")
    v1.step()
    v1.add("two", "bbbbbbb", priority=-1)
    assert v1.plan_step() == {"one": 1}


def test_found_blocks_that_a_victim_holds_are_no_gain() -> None:
    v1 = displacing(caches=True)
    v1.add("urgent", "aaaaccccccccccc", priority=1)  # begins with the block of "calm"
    assert v1.plan_step() == {"middle": 1, "urgent": 11}
    assert v1.found == {"urgent": 4}


# ---------------------------------------------------------------------- copies that no step waits for


def preempted(**named: Any) -> Copying:
    """Both want a third block where there are four; "two" is copied, and nobody has a block yet."""
    v1 = Copying("vllm-v1+swap-async", **({"device_blocks": 4, "caches": False} | named))
    v1.add("one", "aaaabbb")
    v1.add("two", "ccccddd")
    for _ in range(2):
        v1.plan_step()
        v1.end()
    v1.plan_step()
    return v1


def test_a_victims_blocks_are_there_when_its_copy_has_ended() -> None:
    v1 = preempted()
    assert v1.plan.preempt == (("two", SWAP),)
    assert (v1.plan.wait_for, v1.under_way, v1.free) == ((), {0: "d2h"}, 0)
    assert v1.engine.num_coming == 2
    v1.end()
    assert v1.plan_step() == {}
    assert v1.plan.waiting_on == ("copy 0",)
    v1.end(copies=(0,))
    assert v1.plan_step() == {"one": 1}
    assert v1.free == 1


def test_others_go_on_meanwhile() -> None:
    v1 = Copying("vllm-v1+swap-async", device_blocks=5, caches=False)
    v1.add("one", "aaaabbb")
    v1.add("free", "c")
    v1.add("two", "ddddeee")
    for _ in range(2):
        v1.plan_step()
        v1.end()
    assert v1.plan_step() == {"free": 1}
    v1.end(copies=(0,))
    assert v1.plan_step() == {"one": 1, "free": 1}


def test_it_takes_its_seat_and_blocks_and_has_tokens_when_its_kv_is_here() -> None:
    v1 = preempted()
    v1.end(copies=(0,))
    v1.plan_step()
    v1.end("one")
    assert v1.plan_step() == {}
    assert (v1.running, v1.under_way, v1.found) == (["two"], {1: "h2d"}, {"two": 8})
    assert v1.engine.num_computed("two") == 8
    v1.end()
    assert v1.plan_step() == {}
    v1.end(copies=(1,))
    assert v1.engine.levels().host == 10
    assert v1.plan_step() == {"two": 1}


def test_one_that_loads_is_no_victim() -> None:
    v1 = preempted(device_blocks=5)
    v1.end("one", copies=(0,))
    v1.add("new", "eeeefff")
    assert v1.plan_step() == {"new": 7}
    assert v1.running == ["two", "new"]
    for _ in range(2):
        v1.end()
        tokens = v1.plan_step()
    assert tokens == {}
    assert v1.plan.preempt == (("new", SWAP),)
    assert v1.running == ["two"]


def test_who_is_still_being_copied_is_not_admitted() -> None:
    v1 = preempted()
    v1.end()
    assert v1.scheduler.cancel("one", v1.now)
    assert v1.plan_step() == {}
    assert v1.waiting == ["two"]
    v1.end(copies=(0,))
    v1.plan_step()
    assert v1.running == ["two"]


def test_a_copy_that_fails_means_recompute() -> None:
    v1 = preempted()
    v1.end(copies=(0,), ok=False)
    v1.plan_step()
    v1.end("one")
    assert v1.plan_step() == {"two": 9}
    v1 = preempted()
    v1.end(copies=(0,))
    v1.plan_step()
    v1.end("one")
    v1.plan_step()
    v1.end(copies=(1,), ok=False)
    assert (v1.waiting, v1.free, v1.engine.levels().host) == (["two"], 4, 10)
    assert v1.plan_step() == {"two": 9}


@pytest.mark.parametrize("loads", [False, True])
def test_what_a_copy_reads_or_fills_stays_until_it_has_ended(loads: bool) -> None:
    v1 = preempted()
    v1.end(copies=(0,) if loads else ())
    if loads:
        v1.plan_step()
        v1.end("one")
        v1.plan_step()
    (number,) = v1.under_way
    held = (v1.free, v1.engine.levels().host)
    assert v1.scheduler.cancel("two", v1.now)
    v1.engine.check(full=True)
    assert (v1.free, v1.engine.levels().host) == held
    v1.end(copies=(number,))
    v1.engine.check(full=True)
    assert v1.engine.levels().host == 10
    assert v1.engine.is_still
    assert v1.free == (4 if loads else 2)


def test_without_room_on_the_host_it_recomputes_and_the_room_is_there_at_once() -> None:
    v1 = Copying("vllm-v1+swap-async", device_blocks=4, caches=False, host_blocks=1)
    v1.add("one", "aaaabbb")
    v1.add("two", "ccccddd")
    for _ in range(2):
        v1.plan_step()
        v1.end()
    assert v1.plan_step() == {"one": 1}
    assert v1.plan.preempt == (("two", RECOMPUTE),)


def test_the_host_blocks_of_a_copy_are_a_law_too() -> None:
    v1 = preempted()
    v1.end()
    v1.scheduler.cancel("two", v1.now)
    v1.engine._flights[0].host.blocks.pop()
    with pytest.raises(InvariantError, match="host: block"):
        v1.engine.check(full=True)
    assert v1.engine.state() == v1.engine.state()


def test_nobody_is_left_and_an_order_waits_for_arrivals() -> None:
    v1 = Copying("vllm-v1+swap-async")
    assert v1.plan_step() == {}
    assert v1.plan.waiting_on == ("arrivals",)


# ---------------------------------------------------------------------- parking ahead of need


def parking(**named: Any) -> Copying:
    """Twenty blocks; below two victims leave until four are free or coming."""
    sizes = {"device_blocks": 20, "free_low": 0.1, "free_high": 0.2, "host_blocks": 30}
    return Copying("vllm-v1+park", **({"caches": False, **sizes} | named))


def test_the_last_leaves_before_blocks_run_out_and_the_others_do_not_wait() -> None:
    v1 = parking()
    for name in ("one", "two", "three"):
        v1.add(name, name[0] * 19)
    while not v1.plan.preempt:
        tokens = v1.plan_step()
        v1.end()
    assert v1.plan.preempt == (("three", SWAP),)
    assert tokens == {"one": 1, "two": 1}


def test_who_comes_leaves_the_high_threshold_free() -> None:
    v1 = parking()
    v1.add("one", "a" * 40)
    v1.step()
    v1.add("two", "b" * 30)
    assert v1.plan_step() == {"one": 1}  # eight blocks of nine would do
    v1.end("one")
    assert v1.plan_step() == {"two": 30}


def test_the_first_stays_and_a_full_host_parks_nobody() -> None:
    alone = parking()
    alone.add("one", "a" * 75)
    for _ in range(3):
        alone.plan_step()
        alone.end()
        assert not alone.plan.preempt
    full = parking(host_blocks=2)
    full.add("one", "a" * 35)
    full.add("two", "b" * 23)
    for _ in range(8):
        full.plan_step()
        full.end()
        assert not full.plan.preempt
    assert full.free < 2


# ---------------------------------------------------------------------- groups


def test_tables_go_on_in_place_and_begin_where_there_is_room() -> None:
    v1 = V1("vllm-v1+groups", device_blocks=12, host_blocks=12)
    v1.add("one", "aaaaaaa")
    v1.add("two", "bbbbb")
    v1.step()
    tables = [list(v1.engine.block_table(name)) for name in ("one", "two")]
    assert [b - a for table in tables for a, b in itertools.pairwise(table)] == [1, 1]
    for _ in range(6):
        v1.step()
    assert v1.engine.device.nameless
    assert SYSTEMS["vllm-v1+groups-block-major"].transport.layout == "block_major"


def test_a_pool_of_runs_evicts_as_one_of_pages_and_refuses_what_it_has_not() -> None:
    pages, runs = NamedPool("device", 8), NamedRuns("device", 8)
    for pool in (pages, runs):
        blocks = pool.take(4)
        for block, name in zip(blocks, "abcd", strict=True):
            pool.name_block(block, name)
        pool.free(reversed(blocks))
        with pytest.raises(OutOfBlocks, match="9 blocks wanted, 8 free"):
            pool.take(9)
        assert len(pool.take(6)) == 6
        assert [pool.holds(name) for name in "abcd"] == [True, True, False, False]
        assert pool.num_evicted == 2
    assert runs.take(1, after=3) != [4]  # somebody else has it
    other = NamedRuns("device", 8)
    first, second = other.take(2), other.take(2)
    other.free(second)
    assert other.take(3, after=first[-1]) == [2, 3, 4]


# ---------------------------------------------------------------------- all of them at random


def serve(system: str, seed: int, *, rough: bool = True) -> list[Plan]:
    """Thirty requests until all are done; copies end when they like, some badly, some clients leave."""
    rng = random.Random(seed)
    blocks = rng.randrange(8, 30)
    v1 = Copying(
        system,
        priority=rng.random() < 0.5,
        caches=rng.random() < 0.7,
        device_blocks=blocks,
        host_blocks=rng.choice([0, 5, 100]),
        max_num_seqs=rng.choice([2, 5, 100]),
        max_num_batched_tokens=rng.choice([8, 64, 512]),
        max_model_len=30,
        reserve_full_isl=rng.random() < 0.7,
        free_low=0.1,
        free_high=0.3,
    )
    left: dict[str, int] = {}
    plans, count = [], 0
    for _ in range(3000):
        if count < 30 and rng.random() < 0.5:
            text = rng.choice(["a" * 9, "b" * 5, "c"]) + "xyz"[: rng.randrange(4)] * 3
            name = f"r{count}"
            v1.add(name, text, priority=rng.randrange(3))
            left[name] = rng.randrange(1, 12)
            count += 1
        if rough and left and rng.random() < 0.02:
            gone = rng.choice(list(left))
            v1.scheduler.cancel(gone, v1.now)
            del left[gone]
        v1.plan_step()
        plans.append(v1.plan)
        live = v1.scheduler.desk.live
        before = {name: live[name].num_generated for name in left if name in live}
        ended = tuple(n for n in v1.under_way if n not in v1.plan.wait_for and rng.random() < 0.4)
        ok = not rough or rng.random() < 0.9
        done = []
        planned = v1.plan.num_scheduled_tokens
        for name, generated in before.items():
            request = live[name]
            yields = name in planned and (
                request.is_decoding
                or v1.engine.num_computed(name) + planned[name] == request.num_tokens
            )
            if yields and generated + 1 >= left[name]:
                done.append(name)
        v1.end(*done, copies=ended, ok=ok)
        for name in done:
            del left[name]
        if count == 30 and not left and not v1.under_way:
            v1.plan_step()
            assert (v1.free, v1.engine.num_coming) == (blocks, 0)
            return plans
    raise AssertionError(f"{system}, seed {seed}: not everybody was served")


VARIANTS = [name for name in SYSTEMS if name.startswith("vllm-v1+") and "major" not in name]


@pytest.mark.parametrize("system", VARIANTS)
def test_every_law_holds_and_everybody_is_served(system: str) -> None:
    plans = [plan for seed in range(12) for plan in serve(system, seed)]
    assert any(plan.preempt for plan in plans)


def without_places(plan: Plan) -> Plan:
    copies = [copy._replace(runs=()) for copy in plan.copies]
    return plan._replace(copies=tuple(copies))


@pytest.mark.parametrize("seed", range(8))
def test_groups_change_where_blocks_are_and_nothing_that_is_decided(seed: int) -> None:
    pages, groups = serve("vllm-v1+swap", seed), serve("vllm-v1+groups", seed)
    assert list(map(without_places, pages)) == list(map(without_places, groups))


@pytest.mark.parametrize(
    ("base", "switch", "problem"),
    [
        (
            "vllm-v1",
            {"movement": "proactive"},
            "only movement is proactive, with swap and overlap async",
        ),
        ("vllm-v1+swap", {"overlap": "adaptive"}, "wait for copies or never do"),
        ("vllm-v1+swap", {"victim": "least_cost"}, "with swap nothing is"),
        ("vllm-v1+groups", {"allocator": "buddy"}, "one by one or in groups"),
        ("vllm-v1-offload", {"displacement": "order"}, "with displacement, is not built"),
        ("fastswitch", {"victim": "least_computed"}, "a choice of victim is vLLM V1's"),
    ],
)
def test_what_does_not_go_together_is_refused(
    base: str, switch: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        SYSTEMS[base].but(**switch)
