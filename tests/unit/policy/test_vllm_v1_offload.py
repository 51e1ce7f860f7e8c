"""V1's offloading rules O1 to O10 on small cases counted by hand (docs/vllm_v1.md). Blocks of 4 tokens.

That they are the release's is shown against its wheel in tests/full/test_vllm_v1_offload.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.errors import InvariantError, ReleaseVerdict
from policy.plan import CopyResult, Direction
from policy.systems import SYSTEMS
from tests.helpers.v1 import V1

A, B = "aaaabbbbcccc", "ddddeeeeffff"


class Offloading(V1):
    """Twenty chunks on the host, unless said otherwise."""

    def __init__(self, system: str = "vllm-v1-offload", **named) -> None:  # type: ignore[no-untyped-def]
        super().__init__(system, **({"host_blocks": 20} | named))

    @property
    def stores(self) -> list[tuple[int, str, int]]:
        """Copies to the host that the plan starts: id, whose, blocks."""
        return self.copies(Direction.TO_HOST)

    @property
    def loads(self) -> list[tuple[int, str, int]]:
        """Copies to the device that the plan starts."""
        return self.copies(Direction.TO_DEVICE)

    def copies(self, way: Direction) -> list[tuple[int, str, int]]:
        """Copies one way."""
        return [
            (c.copy_id, c.request_id, c.num_blocks) for c in self.plan.copies if c.direction is way
        ]

    def end(self, *copies: int, done: tuple[str, ...] = (), ok: bool = True) -> None:
        """The step and these copies have ended."""
        self.end_step(*done, copies=tuple(CopyResult(n, ok, self.now) for n in copies))

    def serve(self, name: str, text: str) -> None:
        """A request of which all is stored, and which is done."""
        self.add(name, text)
        self.step()
        self.plan_step()
        self.end(*[number for number, _, _ in self.stores], done=(name,))

    def forget_device(self) -> None:
        """Somebody takes all blocks, so that no name is left."""
        self.add("all", "z" * (4 * self.settings.device_blocks - 1))
        while not self.step():
            pass
        self.scheduler.cancel("all", self.now)
        self.plan_step()
        self.end(*self.engine.host.jobs)


def test_o6_full_chunks_of_prompts_are_stored_once_they_are_computed() -> None:
    v1 = Offloading()
    v1.add("one", A + "d")
    assert v1.step() == {"one": 13}
    assert v1.stores == []  # what they would read is not computed yet
    assert v1.step() == {"one": 1}
    assert v1.stores == [(0, "one", 3)]
    v1.steps(5)
    assert v1.engine.host.stored == 3  # O1: replies are not


def test_o1_replies_are_stored_where_they_are_offloaded_too() -> None:
    v1 = Offloading("vllm-v1-offload-all")
    v1.add("one", "aaa", reply="bcdefgh")
    v1.steps(2)
    assert v1.engine.host.due != []
    v1.plan_step()
    assert v1.stores == [(0, "one", 1)]
    v1.end(0)
    v1.steps(4)
    assert v1.engine.host.stored == 2


def test_o2_what_is_not_on_the_device_is_looked_up_on_the_host() -> None:
    v1 = Offloading()
    v1.serve("one", A)
    v1.forget_device()
    v1.add("two", A + "x")
    assert v1.plan_step() == {}  # O3: it waits for the load
    assert v1.loads == [(v1.loads[0][0], "two", 3)]
    assert v1.free == 10 - 3
    assert v1.waiting == []
    assert [r.request_id for r in v1.engine.holding] == ["two"]
    assert v1.plan.waiting_on == ("the next plan",)
    v1.end()
    assert v1.plan_step() == {}
    assert v1.plan.waiting_on == (f"copy {min(v1.engine.host.jobs)}",)
    v1.end(*v1.engine.host.jobs)
    assert v1.step() == {"two": 1}
    assert v1.found == {"two": 12}
    assert v1.engine.facts()["offload"]["loaded_blocks"] == 3


def test_o2_all_of_a_prompt_may_be_found_and_one_token_is_computed_again() -> None:
    v1 = Offloading()
    v1.serve("one", A)
    v1.forget_device()
    v1.add("two", A)
    v1.plan_step()
    v1.end(*v1.engine.host.jobs)
    assert v1.step() == {"two": 1}
    assert v1.found == {"two": 11}


def test_o2_who_shares_what_somebody_else_loads_is_put_aside_and_those_behind_go_on() -> None:
    v1 = Offloading(device_blocks=20, host_blocks=40)
    v1.serve("one", A)
    v1.forget_device()
    v1.add("two", A + "x")
    v1.add("three", A + "y")
    v1.add("four", "q")
    assert v1.plan_step() == {"four": 1}
    assert v1.waiting == ["three"]
    v1.end(*v1.engine.host.jobs)
    assert v1.step() == {"four": 1, "two": 1, "three": 1}
    assert v1.found == {"two": 12, "three": 12}


def test_o2_who_needs_what_is_still_being_stored_is_put_aside() -> None:
    v1 = Offloading()
    v1.add("one", A)
    v1.step()
    v1.plan_step()
    assert v1.stores == [(0, "one", 3)]
    v1.end(done=("one",))
    v1.add("big", "z" * 39)
    v1.plan_step()
    v1.end(done=("big",))
    v1.add("two", A + "x")
    assert v1.plan_step() == {}
    assert v1.waiting == ["two"]
    v1.end(0)
    v1.plan_step()
    assert [name for _, name, _ in v1.loads] == ["two"]


def test_o2_who_has_copies_under_way_is_put_aside() -> None:
    v1 = Offloading(device_blocks=4)
    v1.add("one", "aaaabbb")
    v1.add("two", "ccccddd")
    v1.steps(2)
    v1.plan_step()
    assert v1.lost == {"two": 8}
    v1.end()
    v1.scheduler.cancel("one", v1.now)
    assert v1.plan_step() == {}
    assert v1.waiting == ["two"]
    v1.end(*v1.engine.host.jobs)
    assert v1.step() == {"two": 5}
    v1.engine.check(full=False)


def test_one_that_only_waited_is_cancelled() -> None:
    v1 = Offloading(max_num_seqs=1)
    v1.add("one", "a")
    v1.add("two", "b")
    v1.step()
    v1.scheduler.cancel("two", v1.now)
    v1.step()
    assert v1.waiting == []


def test_o6_what_found_no_room_is_offered_once_more_at_the_end() -> None:
    v1 = Offloading(host_blocks=2, device_blocks=6)
    v1.add("zero", "zzzzyyyy")
    v1.add("one", "aaaabbbbc")
    v1.add("three", "333")
    v1.step()
    v1.plan_step()
    assert v1.stores == [(0, "zero", 2)]
    assert v1.engine._shares[v1.scheduler.request("one")].retries
    v1.end(0, done=("one",))
    v1.add("four", "444")
    v1.plan_step()  # "three" begins a block, and "four" gets one, of those that "one" left
    assert [job.share.request.request_id for job in v1.engine.host.jobs.values()] == ["one"]
    assert v1.engine.host.has_fences
    v1.end()
    v1.steps(8)


def test_what_is_stored_at_the_end_is_not_waited_for_while_nobody_gets_its_blocks() -> None:
    v1 = Offloading(host_blocks=2)
    v1.add("zero", "zzzzyyyy")
    v1.add("one", "aaaabbbbc")
    v1.step()
    v1.plan_step()
    v1.end(0, done=("one",))
    assert v1.plan_step() == {"zero": 1}
    assert v1.plan.wait_for == ()
    v1.step()
    assert v1.stores == [(1, "one", 2)]


def test_o7_of_an_offer_only_what_is_absent_is_copied() -> None:
    v1 = Offloading(caches=False)
    v1.add("one", A + "ddddx")
    v1.add("two", A + "eeeex")
    v1.step()
    v1.plan_step()
    assert v1.stores == [(0, "one", 4), (1, "two", 1)]


def test_o3_a_load_leaves_room_for_what_prefills_under_way_still_need() -> None:
    v1 = Offloading(max_num_batched_tokens=8)
    v1.serve("one", A)
    v1.forget_device()
    v1.add("long", "l" * 31)
    v1.step()
    v1.add("two", A + "x")
    v1.step()
    assert v1.waiting == ["two"]  # 10 - 8 blocks are spoken for, and it wants 3
    for _ in range(4):
        v1.step()
    v1.step("long")
    v1.plan_step()
    assert v1.loads != []


def test_o3_all_of_a_sequence_must_fit_beside_a_load() -> None:
    v1 = Offloading()
    v1.serve("one", A)
    v1.forget_device()
    v1.add("other", "o" * 23)
    v1.step()
    v1.add("two", A + "x" * 9)
    assert v1.step() == {"other": 1}
    assert v1.waiting == ["two"]


def test_o5_a_loaded_request_that_does_not_fit_ends_the_scan() -> None:
    v1 = Offloading(max_num_seqs=1, reserve_full_isl=False)
    v1.serve("one", A)
    v1.forget_device()
    v1.add("two", A + "x" * 20)
    v1.plan_step()
    v1.add("other", "o" * 27)
    v1.end()
    assert v1.plan_step() == {"other": 27}
    v1.end(*v1.engine.host.jobs)
    v1.engine.settings = replace(v1.settings, max_num_seqs=2)
    v1.add("last", "p")
    assert v1.step() == {"other": 1}
    assert v1.waiting == ["last"]


def test_o7_all_of_an_offer_or_nothing_and_again_in_the_next_step() -> None:
    v1 = Offloading(host_blocks=2)
    v1.add("one", A)
    v1.steps(3)
    assert v1.engine.host.stored == 0
    assert v1.engine._shares[v1.scheduler.request("one")].retries
    v1 = Offloading(host_blocks=3)
    v1.serve("one", A)
    v1.add("two", "ddddeeee")
    v1.step()
    v1.plan_step()
    assert v1.stores == [(1, "two", 2)]
    assert v1.engine.facts()["offload"]["evicted_chunks"] == 2


def test_o8_of_one_request_the_tail_gives_way_first() -> None:
    v1 = Offloading(host_blocks=3)
    v1.serve("one", A)
    v1.add("two", "dddd")
    v1.step()
    pool = v1.engine.host.pool
    assert [pool.is_ready(A[:end]) for end in (4, 8, 12)] == [True, True, None]
    assert pool.is_ready("dddd") is False


def test_o9_a_victims_stores_are_waited_for() -> None:
    v1 = Offloading(device_blocks=4)
    v1.add("one", "aaaabbb")
    v1.add("two", "ccccddd")
    v1.steps(2)
    v1.plan_step()  # both want a third block
    assert v1.lost == {"two": 8}
    assert v1.plan.wait_for == (1,)
    assert v1.plan.preempt


def test_o10_stores_are_waited_for_whose_blocks_are_handed_out_again() -> None:
    v1 = Offloading(device_blocks=3)
    v1.add("one", A[:11])
    v1.step()
    v1.plan_step()
    assert v1.stores == [(0, "one", 2)]
    v1.end(done=("one",))
    v1.add("two", "x" * 11)
    v1.plan_step()
    assert v1.plan.wait_for == (0,)
    v1.end(0)
    v1.engine.check(full=True)
    assert not v1.engine.host.has_fences


def test_o10_blocks_that_somebody_else_shares_from_now_on_count_too() -> None:
    v1 = Offloading(device_blocks=5)
    v1.add("one", A)
    v1.step("one")
    v1.add("two", A + "x")
    v1.plan_step()
    # What "one" left is offered now, and is shared in this very step.
    assert v1.stores == [(0, "one", 3)]
    assert v1.plan.wait_for == (0,)


def test_a_cancelled_load_keeps_its_blocks_until_the_copy_has_ended() -> None:
    v1 = Offloading()
    v1.serve("one", A)
    v1.forget_device()
    v1.add("two", A + "x")
    v1.plan_step()
    v1.end()
    v1.scheduler.cancel("two", v1.now)
    assert v1.free == 7
    v1.plan_step()
    v1.end(*v1.engine.host.jobs)
    v1.plan_step()
    assert v1.free == 10


def test_one_that_is_loaded_and_cancelled_frees_them_at_once() -> None:
    v1 = Offloading(priority=True)
    v1.serve("one", A)
    v1.forget_device()
    v1.add("two", A + "x")
    v1.plan_step()
    v1.end(*v1.engine.host.jobs)
    v1.scheduler.cancel("two", v1.now)
    assert v1.free == 10
    v1.engine.ranks_changed()


def test_a_load_that_fails_leaves_a_request_that_never_began() -> None:
    v1 = Offloading()
    v1.serve("one", A)
    v1.forget_device()
    v1.add("two", A + "x")
    v1.plan_step()
    v1.end(*v1.engine.host.jobs, ok=False)
    assert (v1.free, v1.waiting) == (10, ["two"])
    v1.plan_step()
    v1.end(*v1.engine.host.jobs)
    assert v1.step() == {"two": 1}


def test_a_store_that_fails_leaves_nothing_on_the_host() -> None:
    v1 = Offloading()
    v1.add("one", A)
    v1.step()
    v1.plan_step()
    v1.end(0, ok=False)
    assert v1.engine.levels().host == 20
    v1.engine.check(full=True)


def test_without_names_on_the_device_the_host_still_has_them() -> None:
    v1 = Offloading(caches=False)
    v1.serve("one", A)
    v1.add("two", A + "x")
    v1.plan_step()
    assert v1.loads == [(1, "two", 3)]
    v1.end(1)
    assert v1.step() == {"two": 1}


def test_chunks_may_be_of_several_blocks() -> None:
    v1 = Offloading(offload_chunk_blocks=2, host_blocks=5)
    v1.serve("one", A)
    assert v1.engine.host.stored == 2
    assert v1.engine.levels().host == 2
    v1.forget_device()
    v1.add("two", A + "x")
    v1.plan_step()
    assert v1.loads[0][1:] == ("two", 2)


def test_a_refused_prompt_has_nothing_to_offer() -> None:
    v1 = Offloading(max_model_len=8)
    v1.add("long", "a" * 8)
    v1.step()
    assert v1.plan.reject


def test_what_can_never_fit_is_told_when_no_copy_is_under_way() -> None:
    v1 = Offloading(device_blocks=2)
    v1.add("long", "a" * 20)
    with pytest.raises(ReleaseVerdict, match="waits for ever"):
        v1.step()
    assert v1.engine.state() == v1.engine.state()


def test_slots_and_idle_chunks_are_laws() -> None:
    v1 = Offloading()
    v1.serve("one", A)
    pool = v1.engine.host.pool
    pool._num_idle += 1
    with pytest.raises(InvariantError, match="3 chunks are idle, 4 counted"):
        v1.engine.check(full=True)
    pool._free.append(0)
    with pytest.raises(InvariantError, match="slots are not free or used"):
        v1.engine.check(full=True)


def test_offloading_is_v1s() -> None:
    assert SYSTEMS["vllm-v1-offload"].options.offload == "prompt"
    assert SYSTEMS["vllm-v1-offload-all"].options.offload == "all"
