"""V1 with preemption by swap, on small cases. Blocks are of 4 tokens."""

from __future__ import annotations

from typing import Any

import pytest

from policy.errors import ConfigError, InvariantError
from policy.plan import CopyResult, Direction, Outcome, PreemptionMode
from policy.systems import SYSTEMS
from tests.helpers.v1 import V1


class Swapping(V1):
    """Ten blocks on the host. A step ends with the copies that it waits for."""

    def __init__(self, **named: Any) -> None:
        super().__init__("vllm-v1+swap", **({"host_blocks": 10} | named))

    @property
    def copies(self) -> list[tuple[str, str, int]]:
        """Way, whose and how many blocks, of the copies in the last plan."""
        return [(c.direction.value, c.request_id, c.num_blocks) for c in self.plan.copies]

    def end(self, *finished: str, ok: bool = True) -> None:
        """The step and its copies have ended."""
        done = tuple(CopyResult(n, ok, self.now) for n in self.plan.wait_for)
        self.end_step(*finished, copies=done)

    def step(self, *finished: str) -> dict[str, int]:
        """Plan and run one step."""
        tokens = self.plan_step()
        self.end(*finished)
        return tokens


def preempted(caches: bool = False, **named: Any) -> Swapping:
    """Both want a third block where there are four; "two" is the victim, with 8 of 9 tokens computed."""
    v1 = Swapping(device_blocks=4, caches=caches, **named)
    v1.add("one", "aaaabbb")
    v1.add("two", "ccccddd")
    v1.step()
    v1.step()
    assert v1.plan_step() == {"one": 1}
    return v1


def test_a_victims_kv_goes_to_the_host_before_the_step_that_takes_its_blocks() -> None:
    v1 = preempted()
    assert v1.copies == [("d2h", "two", 2)]
    assert v1.plan.wait_for == (0,)
    assert v1.plan.preempt == (("two", PreemptionMode.SWAP),)
    assert v1.lost == {"two": 0}
    assert (v1.free, v1.engine.levels().host) == (1, 8)
    v1.end()
    assert v1.scheduler.request("two").host_blocks == 2


def test_it_comes_back_before_the_step_that_admits_it_and_computes_one_token() -> None:
    v1 = preempted()
    v1.end("one")
    assert v1.plan_step() == {"two": 1}
    assert v1.copies == [("h2d", "two", 2)]
    assert v1.found == {"two": 8}
    assert v1.engine.levels().host == 8
    v1.end()
    assert v1.engine.levels().host == 10
    assert v1.step() == {"two": 1}
    assert v1.engine.facts()["swapped_blocks"] == 4


def test_the_last_block_and_the_reply_are_swapped_too() -> None:
    v1 = Swapping(device_blocks=4, caches=False)
    v1.add("one", "aaaabbbb")
    v1.add("two", "ccccd")
    v1.step()
    v1.plan_step()
    assert v1.copies == [("d2h", "two", 2)]  # five tokens, in two blocks
    v1.end("one")
    assert v1.plan_step() == {"two": 1}


def test_what_is_still_found_on_the_device_is_not_loaded() -> None:
    v1 = preempted(caches=True)
    v1.end("one")
    assert v1.plan_step() == {"two": 1}
    # "one" took the tail of what "two" left; its head is found.
    assert v1.copies == [("h2d", "two", 1)]
    v1.end()


def test_what_is_found_whole_needs_no_host_copy() -> None:
    v1 = Swapping(device_blocks=5)
    v1.add("one", "aaaabbb")
    v1.add("two", "ccccddd")
    v1.step()
    v1.step()
    assert v1.plan_step() == {"one": 1}  # "two" finds no third block and gives up its own
    assert v1.copies == [("d2h", "two", 2)]
    v1.end("one")
    assert v1.plan_step() == {"two": 1}
    assert (v1.copies, v1.found) == ([], {"two": 8})
    assert v1.engine.levels().host == 10


def test_without_room_on_the_host_it_recomputes() -> None:
    v1 = preempted(host_blocks=1)
    assert v1.plan.preempt == (("two", PreemptionMode.RECOMPUTE),)
    assert v1.lost == {"two": 8}
    v1.end("one")
    assert v1.step() == {"two": 9}


def test_a_store_that_fails_means_recompute() -> None:
    v1 = preempted()
    v1.end("one", ok=False)
    assert v1.engine.levels().host == 10
    assert v1.step() == {"two": 9}


def test_a_load_that_fails_means_recompute() -> None:
    v1 = preempted()
    v1.end("one")
    v1.plan_step()
    v1.scheduler.update(
        Outcome(True, v1.now, v1.now + 1, (("two", 0),), (), (CopyResult(1, False, v1.now),))
    )
    assert v1.waiting == ["two"]
    assert v1.step() == {"two": 9}


def test_one_that_is_done_with_the_step_that_loads_it_leaves_nothing() -> None:
    v1 = preempted()
    v1.end("one")
    v1.plan_step()
    v1.end("two")
    v1.plan_step()
    assert (v1.free, v1.engine.levels().host) == (4, 10)


def test_a_cancelled_victim_leaves_the_host() -> None:
    v1 = preempted()
    v1.end()
    assert v1.scheduler.cancel("two", v1.now)
    assert v1.engine.levels().host == 10
    assert v1.engine.state() == v1.engine.state()


def test_the_block_that_a_victims_step_was_to_fill_loses_its_name() -> None:
    """Trap L7, which the release keeps."""
    v1 = Swapping(device_blocks=5, priority=True, max_num_batched_tokens=8)
    v1.add("calm", "a" * 19, priority=2)
    v1.step()  # eight tokens
    engine = v1.engine
    held = engine.held[v1.scheduler.request("calm")]
    engine._hold(held, 4)  # as a step that has served it, and then needs its blocks
    name = held.request.block_names[2]
    assert engine.device.holds(name)
    engine._preempt(held)
    assert not engine.device.holds(name)
    assert engine.device.holds(held.request.block_names[1])
    assert engine.device.num_evicted == 0


def test_the_host_is_a_law_too() -> None:
    v1 = preempted()
    v1.end()
    v1.engine.held[v1.scheduler.request("two")].host.blocks.pop()
    v1.engine.check(full=False)
    with pytest.raises(InvariantError, match="host: block"):
        v1.engine.check(full=True)


def test_swap_and_offload_are_not_one_system() -> None:
    with pytest.raises(ConfigError, match="offload with preemption by swap"):
        SYSTEMS["vllm-v1-offload"].but(preemption="swap")
    assert SYSTEMS["vllm-v1+swap-block-major"].transport.layout == "block_major"
    assert Direction.TO_HOST.value == "d2h"
