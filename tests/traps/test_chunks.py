"""Traps that come back where prompts are prefilled in chunks (docs/traps.md)."""

from __future__ import annotations

import random

import pytest

from policy.choices.shape import Chunked
from policy.errors import InvariantError
from policy.plan import Plan
from tests.helpers.scripted import SWAP, Watched, run
from tests.helpers.shadow import Turn
from tests.helpers.small import random_turns, scheduler, variant

SMALL = {"max_num_batched_tokens": 8, "max_num_seqs": 6}
CHUNKED = variant("+chunked", between_turns="drop")


def test_d1_two_prompts_half_way_do_not_wait_for_each_others_blocks() -> None:
    """vLLM's four requests, scaled down: each fits, no two do. Whoever has begun holds the room of
    its whole prompt, so the next one has not begun."""
    made = scheduler(CHUNKED, device_blocks=12, **SMALL)
    turns = [Turn(f"r{i}", 0, 30, 3) for i in range(4)]
    begun: list[str] = []

    def watch(plan: Plan) -> None:
        for name, _ in plan.prefill:
            if not begun or begun[-1] != name:
                begun.append(name)

    machine = run(made, turns, watch=watch)
    assert begun == ["r0", "r1", "r2", "r3"]
    assert not machine.preempted


def test_d3_a_first_chunk_that_fits_admits_nobody_whose_prompt_does_not() -> None:
    made = scheduler(CHUNKED, device_blocks=12, **SMALL)
    machine = Watched(made)
    machine.arrive(Turn("runs", 0, 14, 20))
    for _ in range(2):
        machine.step()
    machine.arrive(Turn("long", 0, 33, 3))  # 9 blocks with its first token; 8 are free
    for _ in range(4):
        assert machine.step().prefill == ()
    assert made.request("long").device_blocks == 0


def led(**switches: str) -> Watched:
    """Somebody decodes for long and is never a victim; of 13 blocks 12 are free for others."""
    system = variant("+chunked", between_turns="drop", **switches)
    machine = Watched(scheduler(system, device_blocks=13, **SMALL), polls=1)
    machine.arrive(Turn("leads", 0, 1, 60))
    machine.step()
    return machine


def test_t12_who_is_parked_half_way_brings_back_what_was_computed() -> None:
    """A prompt of 30 tokens, 14 of them computed, is displaced; it goes on with the fifteenth."""
    machine = led()
    machine.arrive(Turn("long", 0, 30, 3, priority=1))
    assert [machine.step().prefill for _ in range(2)] == [(("long", 7),)] * 2
    machine.arrive(Turn("urgent", 0, 20, 1))
    plan = machine.step()
    assert plan.preempt == (("long", SWAP),)
    assert [copy.num_blocks for copy in plan.copies] == [4]  # of the 8 blocks it held
    chunks = []
    while "long" not in machine.finished:
        chunks += [count for name, count in machine.step().prefill if name == "long"]
    assert sum(chunks) == 16


def test_t12_who_recomputes_half_way_begins_again_and_is_billed_once() -> None:
    machine = led(preemption="recompute")
    made = machine.scheduler
    machine.arrive(Turn("long", 0, 30, 1, priority=1))
    machine.step()
    machine.arrive(Turn("urgent", 0, 20, 1))
    chunks = []
    while "long" not in machine.finished:
        chunks += [count for name, count in machine.step().prefill if name == "long"]
        if "long" in made.desk.live:
            assert made.request("long").cached_tokens == 0
    assert sum(chunks) == 30


def test_t16_decodes_and_chunks_keep_to_one_budget() -> None:
    made = scheduler("fastswitch-chunked", "random", device_blocks=20, host_blocks=40, **SMALL)
    sizes = []

    def watch(plan: Plan) -> None:
        sizes.append(sum(plan.num_scheduled_tokens.values()))

    run(made, random_turns(random.Random(5), 4), watch=watch)
    assert max(sizes) == 8
    assert len(set(sizes)) > 4


def test_t16_a_budget_that_forgets_the_decodes_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = Chunked.__init__
    monkeypatch.setattr(Chunked, "__init__", lambda self, settings, _: grant(self, settings, 0))
    made = scheduler("+chunked", device_blocks=40, **SMALL)
    machine = Watched(made)
    machine.arrive(Turn("a", 0, 4, 9))
    machine.step()
    machine.arrive(Turn("b", 0, 20, 9))
    with pytest.raises(InvariantError, match="a step of 9 tokens"):
        machine.step()


def test_l18_the_next_turn_finds_all_chunks_of_its_parent() -> None:
    made = scheduler("fastswitch-chunked", device_blocks=40, **SMALL)
    turns = [
        Turn("one", 0, 21, 4, session_id="s"),
        Turn("two", 0, 40, 2, session_id="s", parent_id="one"),
    ]
    found: list[int] = []

    def watch(plan: Plan) -> None:
        if any(name == "two" for name, _ in plan.prefill):
            found.append(made.request("two").cached_tokens)

    run(made, turns, watch=watch)
    assert set(found) == {24}  # all but the reply's last token


def test_t1_a_shielded_request_keeps_its_chunks() -> None:
    """After so many parkings it is left alone until it has produced tokens, so its prompt ends."""
    made = scheduler(
        "fastswitch-chunked", "random", device_blocks=16, host_blocks=60, update_every=1, **SMALL
    )
    turns = [Turn(f"r{i}", 0, 30, 3) for i in range(6)]
    machine = run(made, turns)
    worst = max(sum(name == turn.request_id for name, _ in machine.preempted) for turn in turns)
    assert 1 < worst <= made.settings.max_parkings + 2
