"""Traps of prefix caches in real engines, where prompts share what they begin with."""

from __future__ import annotations

import random
from typing import Any

import pytest

from policy.engines.target import _Gains, _SharedGains
from policy.errors import InvariantError, OutOfBlocks
from policy.integrity import check_integrity
from policy.memory.memory import Memory
from policy.memory.sharing import Sharing
from policy.plan import Direction, Plan
from policy.pools.prefix import PrefixPool, SharedBlock
from policy.scheduler import Scheduler
from tests.helpers.inside import memory_of, swaps_of
from tests.helpers.scripted import RECOMPUTE, SWAP, Watched, run
from tests.helpers.shadow import ShadowMachine, Turn, WrongKV, serve
from tests.helpers.small import scheduler, sharing_scheduler, sharing_turns, variant

SHARING = variant("+prefix", between_turns="drop")
RECOMPUTING = variant("+prefix", between_turns="drop", preemption="recompute")
KEEPING = variant("fastswitch-prefix", overlap="async")

OUT, IN = Direction.TO_HOST, Direction.TO_DEVICE


def alike(name: str, tokens: int, output: int = 4, at: int = 0, **more: Any) -> Turn:
    """A prompt whose first 16 tokens, four blocks, are everybody's."""
    return Turn(name, at, tokens, output, opening=("o", 16), **more)


def tree_of(made: Scheduler) -> PrefixPool:
    assert swaps_of(made).sharing is not None
    return swaps_of(made).sharing.tree


def served_randomly(seed: int) -> int:
    """How many host copies lost their beginning."""
    rng = random.Random(seed)
    made = sharing_scheduler(rng)
    turns = sharing_turns(rng, made.settings.block_size)
    serve(ShadowMachine(made, rng), turns, check=check_integrity)
    assert tree_of(made).num_shared == tree_of(made).num_leaving == 0
    assert swaps_of(made).sharing is not None
    return swaps_of(made).sharing.num_lost_copies


# ---------------------------------------------------------------------- L12


def test_l12_every_reference_is_given_back_once_and_none_is_left() -> None:
    for seed in range(40):
        served_randomly(seed)


def test_l12_a_reference_that_is_never_given_back_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PrefixPool, "stop_leaving", lambda *_: None)
    with pytest.raises(InvariantError):
        test_l12_every_reference_is_given_back_once_and_none_is_left()


# ---------------------------------------------------------------------- L15


def crowded(system: Any = SHARING) -> Watched:
    """Three share four blocks of 16 and hold two more each; then an urgent prompt of six comes."""
    made = scheduler(system, device_blocks=12)
    machine = Watched(made)
    machine.arrive(alike("leader", 21, 20, priority=-1))
    machine.step()
    for name in ("a", "b"):
        machine.arrive(alike(name, 21, 20, priority=1))
    machine.step()
    assert memory_of(made).device.num_free == 12 - 4 - 2 * 3
    return machine


def test_l15_parking_one_of_those_who_share_frees_what_it_alone_holds() -> None:
    machine = crowded()
    machine.arrive(Turn("urgent", 0, 11, 3, priority=0))
    machine.step()
    # Two blocks are free; three and one more token are wanted. One victim gives two, not six.
    assert machine.preempted == [("b", SWAP)]
    assert machine.moved_blocks[OUT] == 2
    serve(machine, [], check=check_integrity)
    assert len(machine.finished) == 4


def test_l15_as_many_are_parked_as_what_they_alone_hold_takes() -> None:
    machine = crowded()
    machine.arrive(Turn("urgent", 0, 19, 3, priority=0))
    machine.step()
    assert machine.preempted == [("b", SWAP), ("a", SWAP)]
    assert [row[0] for row in memory_of(machine.scheduler).in_flight.items()] == []
    assert machine.scheduler.request("urgent").is_resident


def test_l15_counting_shared_blocks_as_freed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_SharedGains, "of", _Gains.of)
    with pytest.raises(AssertionError):
        test_l15_as_many_are_parked_as_what_they_alone_hold_takes()


# ---------------------------------------------------------------------- L16, L18


def test_l16_a_block_that_was_recycled_is_found_no_more() -> None:
    made = scheduler(SHARING, device_blocks=8)
    machine = run(made, [alike("first", 17, 3), Turn("other", 30, 26, 3), alike("last", 17, 3, 60)])
    assert tree_of(made).num_evicted > 0
    assert swaps_of(made).sharing is not None
    assert swaps_of(made).sharing.num_hits == 1  # the other one left room for one of four
    assert len(machine.finished) == 3


def test_l16_a_name_that_outlives_its_block_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_room(self: PrefixPool, count: int) -> None:
        while self._idle and self.inner.num_free < count:
            shared, _ = self._idle.popitem(last=False)
            self.inner.truncate(self._as_allocation(shared), 0)

    monkeypatch.setattr(PrefixPool, "_make_room", make_room)
    with pytest.raises(InvariantError):
        test_l16_a_block_that_was_recycled_is_found_no_more()


@pytest.mark.parametrize("tokens", range(17, 26))
def test_l18_another_prompt_finds_every_block_that_the_first_one_filled(tokens: int) -> None:
    made = scheduler(SHARING, device_blocks=40)
    opening = ("o", tokens)
    turns = [Turn("first", 0, tokens, 3, opening=opening)]
    turns.append(Turn("longer", 30, tokens + 5, 3, opening=opening))
    turns.append(Turn("same", 60, tokens, 3, opening=opening))
    machine = Watched(made)
    cached: dict[str, int] = {}
    machine.watch = lambda plan: cached.update(
        {name: made.request(name).cached_tokens for name, _ in plan.prefill}
    )
    serve(machine, turns, check=check_integrity)
    whole = tokens // 4 * 4
    assert cached == {"first": 0, "longer": whole, "same": (tokens - 1) // 4 * 4}


# ---------------------------------------------------------------------- L20


def test_l20_a_load_that_fails_costs_those_who_share_nothing() -> None:
    """`low` comes back behind blocks that `leader` holds, and its copy fails."""
    made = scheduler(KEEPING, device_blocks=12)
    machine = Watched(made, fail=lambda copy: copy.direction is IN)
    turns = [alike("leader", 21, 20, priority=-1)]
    turns += [alike(f"r{i}", 21, 12, 2 + i, priority=i % 3) for i in range(4)]
    serve(machine, turns, check=check_integrity)
    assert len(machine.finished) == 5
    assert machine.moved_blocks[IN] > 0


# ---------------------------------------------------------------------- T12, S2, S3, S4


def parked_and_back(
    system: Any,
) -> tuple[Watched, list[tuple[str, int]], list[tuple[Direction, int]]]:
    """`low` has 21 tokens and some replies, makes way and comes back; `leader` shares with it."""
    made = scheduler(system, device_blocks=11)
    prefills: list[tuple[str, int]] = []
    moved: list[tuple[Direction, int]] = []

    def look(plan: Plan) -> None:
        prefills.extend(plan.prefill)
        moved.extend((c.direction, c.num_blocks) for c in plan.copies if c.request_id == "low")

    machine = Watched(made, look)
    machine.arrive(alike("leader", 21, 8, priority=-1))
    machine.step()
    machine.arrive(alike("low", 21, 12, priority=1))
    for _ in range(4):
        machine.step()
    machine.arrive(Turn("urgent", 0, 15, 3, priority=0))
    serve(machine, [], check=check_integrity)
    assert len(machine.finished) == 3
    return machine, prefills, moved


def test_s2_who_recomputes_finds_its_prompt_again() -> None:
    machine, prefills, moved = parked_and_back(RECOMPUTING)
    assert [mode for name, mode in machine.preempted if name == "low"] == [RECOMPUTE]
    first, again = (tokens for name, tokens in prefills if name == "low")
    assert (first, moved) == (21 - 16, [])
    # The four blocks that `leader` holds; the fifth gave its room away. T12: its four replies are
    # part of its context too and have no names, so they are computed again.
    assert again == 21 + 4 - 16


def test_t12_a_swapped_request_brings_its_replies_back_behind_the_shared_blocks() -> None:
    machine, prefills, moved = parked_and_back(SHARING)
    assert [mode for name, mode in machine.preempted if name == "low"] == [SWAP]
    assert [tokens for name, tokens in prefills if name == "low"] == [21 - 16]
    # Of 24 tokens of KV 16 stay with `leader`.
    assert moved == [(OUT, 2), (IN, 2)]


def test_s2_forgetting_the_names_with_the_blocks_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drop = Memory.drop_device

    def forgetful(self: Memory, context: Any) -> None:
        drop(self, context)
        context.owner.prefix_keys = ()

    monkeypatch.setattr(Memory, "drop_device", forgetful)
    with pytest.raises(AssertionError):
        test_s2_who_recomputes_finds_its_prompt_again()


def test_s3_what_was_computed_and_what_was_found_are_the_prompts() -> None:
    made = scheduler(SHARING, device_blocks=200)
    computed: dict[str, int] = {}
    cached: dict[str, int] = {}

    def look(plan: Plan) -> None:
        for name, tokens in plan.prefill:
            computed[name] = tokens
            cached[name] = made.request(name).cached_tokens

    turns = [alike(f"r{i}", 17 + i, 3, 3 * i) for i in range(9)]
    serve(Watched(made, look), turns, check=check_integrity)
    assert {name: computed[name] + cached[name] for name in computed} == {
        turn.request_id: turn.input_tokens for turn in turns
    }
    assert swaps_of(made).sharing is not None
    assert sum(cached.values()) == 4 * swaps_of(made).sharing.num_hits == 16 * 8


def test_s3_a_hit_on_a_block_that_is_gone_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookup remembers what it once saw, whatever became of it."""
    seen: dict[Any, SharedBlock] = {}
    match = PrefixPool.match

    def remembers(self: PrefixPool, keys: Any, most: int) -> list[SharedBlock]:
        for index, shared in enumerate(match(self, keys, most)):
            seen[tuple(keys[: index + 1])] = shared
        chain = [seen.get(tuple(keys[: i + 1])) for i in range(min(most, len(keys)))]
        found = chain[: chain.index(None)] if None in chain else chain
        return [shared for shared in found if shared is not None]

    monkeypatch.setattr(PrefixPool, "match", remembers)
    with pytest.raises((WrongKV, InvariantError, KeyError)):
        test_l12_every_reference_is_given_back_once_and_none_is_left()


def test_s4_the_device_is_asked_first_then_the_host_and_the_rest_is_computed() -> None:
    """The second turn finds 24 tokens of names on the device, where its own copy has 28 tokens on
    the host: it loads what the device lacks."""
    made = scheduler(variant("+prefix", reuse=True), device_blocks=40)
    machine = run(
        made,
        [
            Turn("first", 0, 24, 5, session_id="c", opening=("o", 24)),
            Turn("second", 60, 40, 3, session_id="c", parent_id="first"),
        ],
    )
    # All seven of the first turn, which nobody shares, and what the second one adds to them.
    assert machine.moved_blocks[OUT] == 7 + 4
    assert machine.moved_blocks[IN] == 1


# ---------------------------------------------------------------------- T19, T20


def test_t19_what_eviction_leaves_of_a_prefix_is_its_beginning() -> None:
    made = scheduler(SHARING, device_blocks=12)
    cached: dict[str, int] = {}
    machine = Watched(
        made,
        lambda plan: cached.update(
            {name: made.request(name).cached_tokens for name, _ in plan.prefill}
        ),
    )
    long = ("o", 32)
    turns = [
        Turn("first", 0, 33, 3, opening=long),
        Turn("other", 30, 29, 3),
        Turn("again", 60, 33, 3, opening=long),
    ]
    serve(machine, turns, check=check_integrity)
    assert cached["again"] == 4 * (12 - 8)


def test_t19_evicting_the_head_first_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def let_go(self: PrefixPool, shared: SharedBlock) -> None:
        proper(self, shared)
        if shared in self._idle:
            self._idle.move_to_end(shared, last=False)

    proper = PrefixPool._let_go
    monkeypatch.setattr(PrefixPool, "_let_go", let_go)
    with pytest.raises((AssertionError, InvariantError)):
        test_t19_what_eviction_leaves_of_a_prefix_is_its_beginning()


#: A run in which one admission would make its room out of what the next one has found.
TIGHT = 6753
#: A run in which what a host copy continues is evicted while it is away.
LOST = 98


def test_t20_what_a_lookup_has_found_is_there_when_it_is_taken() -> None:
    served_randomly(TIGHT)


def test_t20_an_eviction_between_lookup_and_use_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrefixPool, "spare", lambda *_: None)
    with pytest.raises(OutOfBlocks):
        served_randomly(TIGHT)


def test_t20_a_host_copy_whose_beginning_is_gone_is_not_loaded() -> None:
    assert served_randomly(LOST) > 0


def test_t20_loading_it_all_the_same_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sharing, "can_use_host_copy", lambda *_: True)
    with pytest.raises((AssertionError, InvariantError, WrongKV)):
        served_randomly(LOST)
