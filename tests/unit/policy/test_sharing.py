"""Memory with shared blocks, move by move."""

from __future__ import annotations

from policy.engines.target import _SharedGains
from policy.memory.context import Context
from policy.memory.memory import Memory
from policy.memory.sharing import Sharing
from policy.plan import Direction
from policy.request import Request
from tests.helpers.inside import memory_of
from tests.helpers.small import scheduler, variant


def made_with(**settings: int) -> tuple[Memory, Sharing]:
    """Blocks of four tokens, one to a name; host copies outlive their load."""
    memory = memory_of(scheduler(variant("+prefix", reuse=True), **settings))
    assert memory.sharing is not None
    return memory, memory.sharing


def on_device(memory: Memory, name: str, keys: str, tokens: int) -> Context:
    """A context whose prompt of so many tokens has been computed."""
    owner = Request(name, arrival_ns=0, input_tokens=tokens, prefix_keys=tuple(keys))
    context = owner.context = owner.holding = Context(owner)
    memory.hold(context, memory.blocks_for(tokens), 0)
    memory.settle(context, tokens)
    assert memory.sharing is not None
    memory.sharing.publish(context)
    return context


def leave(memory: Memory, context: Context, *, waited: bool = True) -> int:
    """Copy it out; how many blocks that moved."""
    memory.prepare_to_leave(context)
    copy = memory.copy_out(context, 0, waited=waited)
    assert copy is not None
    if waited:
        memory.complete(copy.copy_id, ok=True)
    return copy.num_blocks


def come_back(memory: Memory, context: Context) -> int:
    copy = memory.load(context, 0, 0, 0, waited=True)
    assert copy.direction is Direction.TO_DEVICE
    memory.complete(copy.copy_id, ok=True)
    return copy.num_blocks


def test_a_copy_that_lacks_what_others_held_is_made_anew_once_they_have_gone() -> None:
    memory, sharing = made_with()
    other = on_device(memory, "other", "ab", 8)
    context = on_device(memory, "one", "abc", 14)
    assert (leave(memory, context), context.host_base) == (2, 2)
    assert come_back(memory, context) == 1  # `c` was still there
    memory.drop_device(other)
    memory.settle(context, 15)
    assert (leave(memory, context), context.host_base) == (4, 0)
    memory.device.allocate(memory.device.new(), memory.device.num_available)
    assert sharing.can_use_host_copy(context)


def test_a_copy_that_still_continues_what_others_hold_is_added_to() -> None:
    memory, _sharing = made_with()
    on_device(memory, "other", "ab", 8)
    context = on_device(memory, "one", "abc", 14)
    leave(memory, context)
    come_back(memory, context)
    memory.settle(context, 15)
    assert (leave(memory, context), context.host_base) == (1, 2)  # the block that was partial


def test_what_its_copy_continues_must_be_there() -> None:
    memory, sharing = made_with()
    other = on_device(memory, "other", "ab", 8)
    context = on_device(memory, "one", "abc", 14)
    leave(memory, context)
    assert sharing.can_use_host_copy(context)
    memory.drop_device(other)
    memory.device.allocate(memory.device.new(), memory.device.num_available)
    assert not sharing.can_use_host_copy(context)


def test_a_next_turn_keeps_the_blocks_that_its_own_names_repeat() -> None:
    memory, _sharing = made_with()
    context = on_device(memory, "one", "abc", 14)
    context.owner = Request("two", arrival_ns=0, input_tokens=20, prefix_keys=tuple("abx"))
    memory.repeat(context, 14)
    assert context.device is not None
    assert (context.device_tokens, len(context.device.shared)) == (8, 2)
    memory.repeat(context, 6)
    assert (context.device_tokens, len(context.device.shared)) == (4, 1)


def test_a_source_under_another_name_is_not_taken_back() -> None:
    memory, _sharing = made_with()
    context = on_device(memory, "one", "abc", 14)
    leave(memory, context, waited=False)
    for keys, kept in (("abcd", True), ("abx", False), ("ab", False)):
        context.owner = Request("two", arrival_ns=0, input_tokens=20, prefix_keys=tuple(keys))
        assert memory.can_keep(context, 5) == kept
    context.owner = Request("two", arrival_ns=0, input_tokens=20, prefix_keys=tuple("abc"))
    memory.repeat(context, 11)  # less than all that it shares
    assert not memory.can_keep(context, 5)


def test_parking_gains_nothing_of_what_the_next_one_is_about_to_hold() -> None:
    memory, sharing = made_with(device_blocks=32)
    victim = on_device(memory, "victim", "abc", 14).owner
    incoming = Request("next", arrival_ns=0, input_tokens=20, prefix_keys=tuple("abx"))
    incoming.context = incoming.holding = Context(incoming)
    assert _SharedGains(4, sharing, []).of(victim) == 4
    assert _SharedGains(4, sharing, [incoming]).of(victim) == 2
    other = on_device(memory, "other", "a", 5).owner
    gains = _SharedGains(4, sharing, [])
    assert (gains.of(victim), gains.of(other)) == (3, 2)  # the last one gives what both held


def test_a_run_says_how_many_prompt_tokens_were_looked_up_and_found() -> None:
    made = scheduler(variant("+prefix"))
    counts = dict.fromkeys(
        ("hit_tokens", "looked_up_tokens", "evicted_tokens", "lost_host_copies"), 0
    )
    assert made.engine.facts()["prefixes"] == {"block_tokens": 4, **counts}
    assert "prefixes" not in scheduler(variant("+reuse")).engine.facts()
