"""The four calls: what a scheduler refuses, when priorities are refreshed, when it gives up."""

from __future__ import annotations

from typing import Any

import pytest

from policy.errors import InvariantError, ProgressError, ReleaseVerdict
from policy.integrity import check_integrity
from policy.orders.base import Order
from policy.plan import CopyResult, Outcome, Plan
from policy.pools.allocation import Allocation
from policy.pools.catalog import make_pool, picker
from policy.request import Request, RequestState
from policy.scheduler import Scheduler
from policy.systems import SYSTEMS
from tests.helpers.inside import memory_of
from tests.helpers.scripted import Watched
from tests.helpers.shadow import Turn
from tests.helpers.small import draw, scheduler, variant

ASYNC = variant("fastswitch", overlap="async", between_turns="drop")


def request(name: str, tokens: int = 4, priority: int = 0, arrival_ns: int = 0) -> Request:
    return Request(name, arrival_ns=arrival_ns, input_tokens=tokens, priority=priority)


def ran(*finished: str, tokens: tuple[tuple[str, int], ...] | None = None) -> Outcome:
    return Outcome(True, 0, 1, tokens, finished, ())


def ended(*copy_ids: int, ok: bool = True) -> Outcome:
    return Outcome(False, 0, 0, None, (), tuple(CopyResult(i, ok, 0) for i in copy_ids))


def prefilled(made: Scheduler, *names: str) -> Plan:
    """Prefill these requests in one step."""
    for name in names:
        made.add(request(name), 0)
    plan = made.schedule(0)
    assert [name for name, _ in plan.prefill] == sorted(names)
    made.update(ran())
    check_integrity(made)
    return plan


def steal(made: Scheduler, count: int) -> Allocation:
    """Take device blocks that nobody will give back: the bug that rule 12 is there to survive."""
    pool = memory_of(made).device
    stolen = pool.new()
    pool.allocate(stolen, count)
    return stolen


class Reversing(Order):
    """Says when it was asked to refresh, and turns the order of ids round each time."""

    name = "reversing"
    refreshes = True

    def __init__(self) -> None:
        self.updates: list[tuple[int, int]] = []

    def update(self, index: int, now_ns: int) -> None:
        self.updates.append((index, now_ns))

    def key(self, request: Any, now_ns: int) -> tuple[int, ...]:
        return (ord(request.request_id) * (-1) ** len(self.updates),)


# ---------------------------------------------------------------------- what machines read


def test_a_live_request_can_be_looked_up_with_its_length_and_its_blocks() -> None:
    made = scheduler()
    mine = request("r", tokens=9)
    made.add(mine, 0)
    assert (made.request("r"), made.num_tokens("r"), made.num_live) == (mine, 9, 1)
    made.schedule(0)
    assert list(made.block_table("r")) == [0, 1, 2]


def test_steps_are_numbered_from_zero_and_idle_plans_are_not() -> None:
    made = scheduler()
    assert made.step == -1
    assert made.schedule(0).waiting_on == ("arrivals",)
    assert made.step == -1
    prefilled(made, "r")
    assert made.step == 0
    made.schedule(0)
    assert made.step == 1


# ---------------------------------------------------------------------- what is refused


def test_an_id_that_is_live_cannot_be_added_again() -> None:
    made = scheduler()
    made.add(request("r"), 0)
    with pytest.raises(InvariantError, match="r is live already"):
        made.add(request("r"), 0)


def test_an_id_may_come_again_once_it_has_left() -> None:
    made = scheduler()
    made.add(request("r"), 0)
    assert made.cancel("r", 0)
    made.add(request("r"), 0)
    assert made.num_live == 1


def test_cancelling_a_stranger_is_answered_with_no() -> None:
    made = scheduler()
    assert not made.cancel("nobody", 0)
    assert made.schedule(0) is made.schedule(0)


@pytest.mark.parametrize(
    "tokens",
    [
        (("a", 1),),
        (("a", 1), ("b", 1), ("c", 1)),
        (("a", 1), ("a", 1)),
        (("a", 1), ("c", 1)),
    ],
)
def test_an_outcome_must_speak_of_exactly_the_requests_that_ran(
    tokens: tuple[tuple[str, int], ...],
) -> None:
    made = scheduler()
    prefilled(made, "a", "b")
    made.schedule(0)
    with pytest.raises(InvariantError, match="the outcome's requests are not the plan's"):
        made.update(ran(tokens=tokens))


@pytest.mark.parametrize("count", [-1, 2])
def test_a_step_gives_one_token_or_none(count: int) -> None:
    made = scheduler()
    prefilled(made, "a")
    made.schedule(0)
    with pytest.raises(InvariantError, match=f"a: {count} tokens in one step"):
        made.update(ran(tokens=(("a", count),)))


def test_who_waits_cannot_finish() -> None:
    made = scheduler(max_num_seqs=1)
    made.add(request("a"), 0)
    made.add(request("b"), 0)
    made.schedule(0)
    with pytest.raises(InvariantError, match="b finished without a token: <b WAITING"):
        made.update(ran("b"))


def test_a_prefill_that_gave_no_token_cannot_finish_either() -> None:
    made = scheduler()
    made.add(request("a"), 0)
    made.schedule(0)
    with pytest.raises(InvariantError, match="a finished without a token: <a RUNNING"):
        made.update(ran("a", tokens=(("a", 0),)))


@pytest.mark.parametrize(("name", "key"), [("b", -99), ("a", 99)])
def test_a_rank_changed_behind_the_schedulers_back_is_noticed_when_its_owner_leaves(
    name: str, key: int
) -> None:
    made = scheduler()
    prefilled(made, "a", "b", "c")
    made.request(name).rank = ((key,), 0, name)
    with pytest.raises(InvariantError, match=f"{name} is not where its rank says"):
        made.cancel(name, 0)


def test_a_token_withheld_is_not_counted() -> None:
    made = scheduler()
    prefilled(made, "a", "b")
    made.schedule(0)
    made.update(ran(tokens=(("a", 0), ("b", 1))))
    assert (made.num_tokens("a"), made.num_tokens("b")) == (5, 6)
    check_integrity(made)


# ---------------------------------------------------------------------- the same plan again


def test_while_nothing_changes_the_same_plan_comes_again() -> None:
    made = scheduler()
    prefilled(made, "a")
    made.schedule(0)
    made.update(ran())
    plan = made.schedule(0)
    made.update(ran())
    assert made.is_plain and made.schedule(0) is plan


@pytest.mark.parametrize("change", ["add", "cancel"])
def test_an_arrival_or_a_departure_makes_a_new_plan(change: str) -> None:
    made = scheduler()
    prefilled(made, "a", "b")
    plan = made.schedule(0)
    made.update(ran())
    if change == "add":
        made.add(request("c"), 0)
    else:
        made.cancel("b", 0)
    new = made.schedule(0)
    assert new is not plan
    assert (new.prefill, new.batch and new.batch.decode) == (
        ((("c", 4),), None) if change == "add" else ((), ("a",))
    )


# ---------------------------------------------------------------------- priority updates


def test_updates_come_every_so_many_steps_and_count_from_zero() -> None:
    order = Reversing()
    made = scheduler(ASYNC, order, update_every=3)
    prefilled(made, "a", "b")
    steps = []
    for now in range(1, 10):
        made.schedule(now)
        made.update(ran())
        steps.append((made.step, len(order.updates)))
    assert steps == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2), (9, 3)]
    assert [index for index, _ in order.updates] == [0, 1, 2]
    assert made.num_updates == 3


def test_updates_may_come_by_the_clock_and_missed_ones_are_counted_but_not_made_up() -> None:
    order = Reversing()
    made = scheduler(ASYNC, order, update_every=None, update_every_ns=100)
    prefilled(made, "a", "b")
    for now in (50, 99, 100, 150, 199, 450, 499, 500):
        made.schedule(now)
        made.update(ran())
    # At 450 those of 200 and 300 have been missed, and that of 400 is made.
    assert order.updates == [(0, 100), (3, 450), (4, 500)]
    assert made.num_updates == 5


def test_updates_by_the_clock_are_counted_from_the_first_arrival() -> None:
    """As the test before, 1,000,030 ns later: no update is missed before anybody came."""
    order = Reversing()
    made = scheduler(ASYNC, order, update_every=None, update_every_ns=100)
    begin = 1_000_030
    made.schedule(begin)
    for name in "ab":
        made.add(Request(name, arrival_ns=begin, input_tokens=4), begin)
    made.update(Outcome(False, begin, begin))
    for now in (50, 99, 100, 150, 199, 450, 499, 500):
        made.schedule(begin + now)
        made.update(ran())
    assert order.updates == [(0, begin + 100), (3, begin + 450), (4, begin + 500)]
    assert made.num_updates == 5


def test_an_update_ranks_everybody_anew() -> None:
    made = scheduler(ASYNC, Reversing(), update_every=1, max_num_seqs=2)
    prefilled(made, "a", "b")
    assert [r.request_id for r in made.desk.ranked] == ["a", "b"]
    made.schedule(0)
    assert [r.request_id for r in made.desk.ranked] == ["b", "a"]


def test_a_prompt_asked_for_again_before_it_has_run_is_not_commanded_twice() -> None:
    made = scheduler(ASYNC)
    made.add(request("r"), 0)
    first = made.schedule(0)
    assert [name for name, _ in first.prefill] == ["r"]
    again = made.schedule(0)
    assert again == Plan()
    assert made.schedule(0) is again


def test_an_order_that_never_refreshes_is_never_asked_to() -> None:
    order = Reversing()
    order.refreshes = False
    made = scheduler(ASYNC, order, update_every=1, update_every_ns=1)
    prefilled(made, "a")
    for now in range(1, 20):
        made.schedule(now)
        made.update(ran())
    assert (order.updates, made.num_updates) == ([], 0)


# ---------------------------------------------------------------------- rule 12: no endless wait


def test_who_runs_does_not_make_way_for_next_turns_that_hold_more_blocks_than_there_are_seats() -> (
    None
):
    """They hold what their parents left on the device; they never ran, so no shield keeps them there."""
    keeping = variant("+groups", between_turns="keep_device")
    made = scheduler(keeping, device_blocks=60, max_num_seqs=2, min_run_steps=4)
    machine = Watched(made)
    for name in ("a", "b"):
        machine.arrive(Turn(name, 0, 6, 2, session_id=name, priority=1))
    while machine.served:
        machine.step()
    for name in ("leads", "runs"):
        machine.arrive(Turn(name, machine.now_ns, 6, 40))
    for _ in range(8):
        machine.step()
    for name in ("a", "b"):
        later = machine.now_ns
        machine.arrive(Turn(f"{name}+", later, 10, 4, session_id=name, parent_id=name, priority=1))
    plan = machine.step()
    assert plan.batch is not None and plan.batch.decode == ("leads", "runs")
    assert sorted(name for name, _ in plan.preempt) == ["a+", "b+"]
    assert plan.prefill == ()


def test_blocks_that_leaked_end_the_run_and_not_in_an_endless_wait() -> None:
    made = scheduler(ASYNC, device_blocks=4)
    steal(made, 3)
    made.add(request("r", tokens=8), 0)
    with pytest.raises(ProgressError, match="1 requests are live, nothing runs and no copy is in"):
        made.schedule(0)


def test_the_release_too_notices_blocks_that_leaked() -> None:
    made = scheduler("vllm-0.3.3", "fcfs", device_blocks=4)
    assert made.engine.name == "vllm-0.3.3"
    steal(made, 3)
    made.add(request("r", tokens=8), 0)
    with pytest.raises(
        ProgressError, match="nothing runs and <r WAITING 8 tokens> is not admitted"
    ):
        made.schedule(0)


def test_a_batch_that_can_never_grow_ends_the_run() -> None:
    made = scheduler(ASYNC, device_blocks=4, initial_group=1)
    prefilled(made, "r")
    steal(made, 3)
    with pytest.raises(ProgressError, match="the batch cannot grow and no load is in the way"):
        made.schedule(0)


def waiting_for_a_load(**values: Any) -> tuple[Scheduler, int]:
    """A request alone, on its way back to the device; the id of the copy that brings it.

    The leader is no victim, so another made room for a third, who then changed its mind.
    """
    made = scheduler(ASYNC, device_blocks=6, initial_group=1, **values)
    prefilled(made, "a", "low")
    made.add(request("high", tokens=13, priority=-1), 0)
    (store,) = made.schedule(0).copies
    made.update(ran())
    made.update(ended(store.copy_id))
    assert made.request("low").state is RequestState.SWAPPED
    assert made.cancel("high", 0)
    (load,) = made.schedule(0).copies
    made.update(ran("a"))
    assert made.request("low").state is RequestState.LOADING
    check_integrity(made)
    return made, load.copy_id


def test_an_idle_plan_names_the_copies_it_waits_for() -> None:
    made, copy_id = waiting_for_a_load()
    assert made.schedule(0).waiting_on == (f"copy {copy_id}",)
    made.update(ended(copy_id))
    plan = made.schedule(0)
    assert plan.batch is not None and plan.batch.decode == ("low",)


def visit_in_vain(made: Scheduler, times: int) -> None:
    """A turn too long for the room that is left comes and goes; each is decided anew, none runs."""
    for now in range(times):
        made.add(request("x", tokens=17, priority=9), now)
        assert not made.schedule(now).runs
        assert made.cancel("x", now)


def test_too_many_plans_in_a_row_that_run_nothing_end_the_run() -> None:
    made, copy_id = waiting_for_a_load(idle_limit=5)
    visit_in_vain(made, 5)
    with pytest.raises(ProgressError, match=f"6 plans in a row ran nothing .* copy {copy_id}$"):
        visit_in_vain(made, 1)


def test_idle_plans_are_counted_in_a_row_only() -> None:
    made, copy_id = waiting_for_a_load(idle_limit=5)
    visit_in_vain(made, 5)
    made.update(ended(copy_id))
    assert made.schedule(9).runs
    made.update(ran())
    made.add(request("x", tokens=17, priority=9), 9)
    assert made.schedule(10).runs


def test_where_the_release_would_abort_the_verdict_names_the_victim() -> None:
    """Two blocks each and none to spare: it wants one free for whoever runs, in every step."""
    made = scheduler("vllm-0.3.3", "fcfs", device_blocks=4, host_blocks=0)
    prefilled(made, "a", "b")
    made.schedule(0)
    made.update(ran())
    with pytest.raises(ReleaseVerdict, match="aborts its engine here: b must be swapped out"):
        made.schedule(0)


# ---------------------------------------------------------------------- making one


def test_every_allocator_makes_a_pool_of_its_kind() -> None:
    kinds = {
        allocator: type(make_pool(allocator, "p", 8, draw)).__name__
        for allocator in ("paged", "groups", "buddy")
    }
    assert kinds == {"paged": "PagedPool", "groups": "GroupPool", "buddy": "GroupPool"}


def test_only_fcfs_follows_the_release() -> None:
    follows = {
        (name, order): scheduler(name, order).engine.name == "vllm-0.3.3"
        for name in ("vllm-0.3.3", "fastswitch")
        for order in ("fcfs", "priority")
    }
    assert [pair for pair, does in follows.items() if does] == [("vllm-0.3.3", "fcfs")]


def test_a_picker_draws_again_each_time_and_depends_on_nothing_else() -> None:
    one, other = picker(draw, "purpose"), picker(draw, "purpose")
    first = [one(10) for _ in range(30)]
    assert first == [other(10) for _ in range(30)]
    assert set(first) <= set(range(10)) and len(set(first)) > 5
    assert SYSTEMS["fastswitch"].options.allocator == "groups"
