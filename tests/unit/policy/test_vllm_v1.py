"""V1's rules R4 to R17 on small cases counted by hand (docs/vllm_v1.md). Blocks are of 4 tokens.

That they are the release's is shown against its wheel in tests/full/test_vllm_v1.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from policy.errors import InvariantError, ReleaseVerdict
from policy.orders.static import StaticPriority
from policy.plan import CopyResult, PreemptionMode
from tests.helpers.v1 import V1

A, B, C = "aaaabbbbcccc", "ddddeeeeffff", "gggghhhhiiii"


# ---------------------------------------------------------------------- memory


def test_r4_a_block_is_found_in_the_step_that_plans_its_last_token() -> None:
    v1 = V1()
    v1.add("first", A)
    v1.add("second", A + "d")
    assert v1.step() == {"first": 12, "second": 1}
    assert v1.found == {"first": 0, "second": 12}
    assert v1.free == 10 - 4  # three shared, and one for the second's last token


def test_r4_generated_tokens_are_named_too_so_a_next_turn_finds_the_reply() -> None:
    v1 = V1()
    v1.add("turn1", "aaaab", reply="cdefgh")
    for _ in range(5):
        v1.step()
    v1.step("turn1")
    v1.add("turn2", "aaaabcdefghij")
    v1.step()
    assert v1.found == {"turn2": 8}  # "efgh" is not full: the last token sampled has no KV


def test_r5_equal_blocks_are_not_merged() -> None:
    v1 = V1()
    v1.add("first", "aaa")
    v1.add("second", "aaa")
    v1.steps(3)
    assert v1.free == 10 - 4
    assert v1.engine.block_table("first")[0] != v1.engine.block_table("second")[0]


def test_r13_a_prompt_of_whole_blocks_computes_its_last_block() -> None:
    v1 = V1()
    v1.add("first", A)
    v1.step("first")
    v1.add("second", A)
    assert v1.step() == {"second": 4}
    assert v1.found == {"second": 8}


def test_without_a_cache_nothing_is_found() -> None:
    v1 = V1(caches=False)
    v1.add("first", A)
    v1.add("second", A)
    assert v1.step() == {"first": 12, "second": 12}
    assert not v1.scheduler.system.finds_by_name


# ---------------------------------------------------------------------- who runs


def test_r6_who_runs_comes_first_and_a_prompt_behind_gets_what_is_left() -> None:
    v1 = V1(max_num_batched_tokens=6)
    v1.add("old", A)
    assert v1.step() == {"old": 6}
    v1.add("new", B)
    assert v1.step() == {"old": 6}
    assert v1.step() == {"old": 1, "new": 5}
    assert v1.plan.batch is not None
    assert v1.plan.batch.decode == ("old",)
    assert v1.plan.prefill == (("new", 5),)


def test_r6_a_prompt_in_front_takes_the_budget_of_a_decode_behind_it() -> None:
    v1 = V1(max_num_batched_tokens=6, long_prefill_token_threshold=2)
    v1.add("long", A + B)
    v1.add("short", "xx")
    assert v1.step() == {"long": 2, "short": 2}
    assert v1.step() == {"long": 2, "short": 1}
    v1.engine.settings = replace(v1.settings, long_prefill_token_threshold=0)
    assert v1.step() == {"long": 6}  # "short" decodes and is left out
    assert v1.running == ["long", "short"]
    assert v1.scheduler.num_tokens("short") == 4


def test_a_decode_that_was_left_out_goes_on_where_it_was() -> None:
    v1 = V1()
    for name in ("one", "two", "three"):
        v1.add(name, "aaa")
    v1.step()
    v1.engine.settings = replace(v1.settings, max_num_batched_tokens=1)
    v1.scheduler.cancel("three", v1.now)
    assert v1.step() == {"one": 1}
    v1.engine.settings = v1.settings
    v1.add("four", A)
    assert v1.step() == {"one": 1, "two": 1, "four": 12}
    assert v1.plan.batch is not None
    assert v1.plan.batch.decode == ("one", "two")
    assert [v1.scheduler.num_tokens(name) for name in ("one", "two", "four")] == [6, 5, 13]


def test_r7_the_cap_cuts_prompts_unless_one_request_is_alone() -> None:
    v1 = V1(long_prefill_token_threshold=5)
    v1.add("alone", A)
    assert v1.step() == {"alone": 12}
    v1.add("two", B)
    assert v1.step() == {"alone": 1, "two": 5}
    assert v1.step() == {"alone": 1, "two": 5}


def test_a_prompt_may_get_nothing_of_a_step() -> None:
    v1 = V1(long_prefill_token_threshold=5, max_num_batched_tokens=10)
    v1.add("one", A)
    v1.add("two", B)
    assert v1.step() == {"one": 5, "two": 5}
    v1.engine.settings = replace(v1.settings, max_num_batched_tokens=5)
    assert v1.step() == {"one": 5}
    assert v1.step() == {"one": 2, "two": 3}


def test_r7_adaptive_is_at_least_an_equal_share_of_the_budget() -> None:
    v1 = V1(
        long_prefill_token_threshold=2,
        long_prefill_token_threshold_adaptive=True,
        max_num_batched_tokens=16,
    )
    v1.add("one", A)
    v1.add("two", B)
    assert v1.step() == {"one": 8, "two": 8}


def test_r8_blocks_are_taken_for_the_chunk_alone() -> None:
    v1 = V1(max_num_batched_tokens=4)
    v1.add("one", A + B)
    v1.step()
    assert v1.free == 9


def test_r9_fcfs_preempts_the_one_admitted_last_and_r14_then_admits_nobody() -> None:
    v1 = V1(device_blocks=3)
    v1.add("one", "aaaa")
    v1.add("two", "bbbb")
    v1.step()
    assert v1.free == 1
    v1.add("three", "c")
    # Both begin a block with their next token, and there is one.
    assert v1.step() == {"one": 1}
    assert v1.lost == {"two": 4}
    assert v1.plan.preempt == (("two", PreemptionMode.RECOMPUTE),)
    assert v1.waiting == ["two", "three"]  # R11: to the front, though there is room for "three"
    assert v1.step() == {"one": 1}  # "two" finds its block again and does not fit with the next


def test_r9_under_fcfs_who_preempts_itself_ends_the_loop_for_those_behind() -> None:
    v1 = V1(device_blocks=2, caches=False)
    v1.add("one", "aa")
    v1.add("two", "bbb")
    v1.steps(2)
    v1.add("three", "c")
    v1.step()
    assert v1.lost == {"two": 4}


def test_r9_under_priority_the_least_urgent_goes_and_of_equal_ones_the_first() -> None:
    v1 = V1(priority=True, device_blocks=3, caches=False)
    v1.add("one", "aaaa", priority=1, at=5)
    v1.add("two", "bbb", priority=1, at=5)
    v1.add("three", "ccc", priority=0, at=6)
    v1.step()
    assert v1.running == ["three", "one", "two"]
    assert v1.step() == {"three": 1, "two": 1}
    assert v1.lost == {"one": 4}  # it asked for a block, and is the first of the least urgent


def test_r10_a_victim_that_had_tokens_gives_them_back() -> None:
    v1 = V1(
        priority=True,
        device_blocks=4,
        max_num_batched_tokens=6,
        long_prefill_token_threshold=4,
        caches=False,
    )
    v1.add("low", "aaa", priority=5)
    v1.step()
    v1.add("high", "b" * 12, priority=0)
    v1.add("mid", "c", priority=1)
    assert v1.step() == {"low": 1, "high": 4, "mid": 1}
    v1.engine.settings = replace(v1.settings, max_num_batched_tokens=5)
    # "low" takes a token and the last block; "high" wants a block, and "low" goes: its token is "mid"'s.
    assert v1.step() == {"high": 4, "mid": 1}
    assert v1.lost == {"low": 4}


def test_r12_under_priority_a_victim_has_no_privilege() -> None:
    v1 = V1(priority=True, device_blocks=3, caches=False)
    v1.add("urgent", "aaaa", priority=0)
    v1.add("late", "bbbb", priority=9)
    v1.step()
    v1.add("between", "c" * 9, priority=5)
    v1.step()
    assert v1.lost == {"late": 4}
    assert v1.waiting == ["between", "late"]


@pytest.mark.parametrize("priority", [False, True])
def test_a_cancelled_request_leaves_both_kinds_of_queue(priority: bool) -> None:
    v1 = V1(priority=priority, max_num_seqs=1)
    for name in ("a", "b", "c"):
        v1.add(name, "xyz")
    v1.step()
    assert v1.scheduler.cancel("b", v1.now)
    assert v1.waiting == ["c"]
    assert v1.scheduler.cancel("a", v1.now)
    assert v1.step() == {"c": 3}
    assert v1.scheduler.cancel("c", v1.now)
    assert v1.free == 10


def test_the_heap_is_sorted_again_when_ranks_change() -> None:
    class Turning(StaticPriority):
        refreshes = True
        sign = 1

        def key(self, request, now_ns):  # type: ignore[no-untyped-def]
            return (self.sign * request.priority,)

    v1 = V1(priority=True, max_num_seqs=1)
    order = Turning()
    v1.scheduler.desk.order = order
    for name, priority in (("run", 0), ("low", 2), ("high", 1)):
        v1.add(name, "aaa", priority=priority)
    v1.step()
    assert v1.waiting == ["high", "low"]
    order.sign = -1
    v1.scheduler.desk.refresh_ranks()
    v1.engine.ranks_changed()
    assert v1.waiting == ["low", "high"]
    assert v1.engine.waiting.pop().request_id == "low"


# ---------------------------------------------------------------------- who is admitted


def test_r14_the_first_that_does_not_fit_ends_the_scan() -> None:
    v1 = V1(device_blocks=3)
    v1.add("big", "a" * 13)
    v1.add("small", "b")
    with pytest.raises(ReleaseVerdict, match="waits for ever here: nothing runs, and <big"):
        v1.step()


def test_r14_seats_are_the_length_of_the_running_list() -> None:
    v1 = V1(max_num_seqs=1)
    v1.add("one", "a")
    v1.add("two", "b")
    assert v1.step() == {"one": 1}
    assert v1.step("one") == {"one": 1}
    assert v1.step() == {"two": 1}


def test_r15_the_watermark_holds_for_new_ones_while_somebody_runs() -> None:
    v1 = V1(watermark=0.2)  # two blocks: the release counts its block 0 too
    v1.add("one", "a" * 40)
    assert v1.step() == {"one": 40}  # nobody ran
    v1 = V1(watermark=0.2)
    v1.add("one", "a" * 4)
    v1.add("two", "b" * 29)
    v1.add("three", "c" * 28)
    assert v1.step() == {"one": 4}  # 8 + 2 of 9
    v1 = V1(watermark=0.2)
    v1.add("one", "a" * 4)
    v1.add("three", "c" * 28)
    assert v1.step() == {"one": 4, "three": 28}


def test_r16_all_of_a_prompt_must_fit_now_though_only_a_chunk_is_taken() -> None:
    v1 = V1(device_blocks=4, max_num_batched_tokens=8)
    v1.add("one", "a" * 4)
    v1.add("two", "b" * 13)
    assert v1.step() == {"one": 4}
    v1 = V1(device_blocks=4, max_num_batched_tokens=8, reserve_full_isl=False)
    v1.add("one", "a" * 4)
    v1.add("two", "b" * 13)
    assert v1.step() == {"one": 4, "two": 4}


def test_r16_nothing_is_kept_for_the_rest_so_the_next_one_may_take_it() -> None:
    v1 = V1(device_blocks=4, max_num_batched_tokens=8, long_prefill_token_threshold=4)
    v1.add("one", "a" * 16)
    v1.add("two", "b" * 4)
    assert v1.step() == {"one": 4, "two": 4}


def test_r17_who_is_done_frees_in_the_order_in_which_the_step_served_it() -> None:
    v1 = V1(device_blocks=2)
    v1.add("one", "aaaa")
    v1.add("two", "bbbb")
    v1.step("two", "one")
    v1.add("three", "ccc")
    v1.step()
    # "one" freed its block first, so that was handed out and lost its name.
    assert not v1.engine.device.holds("aaaa")
    assert v1.engine.device.holds("bbbb")


def test_a_prompt_that_leaves_no_room_for_a_token_is_refused() -> None:
    v1 = V1(max_model_len=8)
    v1.add("long", "a" * 8)
    assert v1.step() == {}
    assert v1.plan.reject == (("long", "prompt of 8 tokens, limit 7"),)
    assert v1.plan_step() == {}
    assert v1.plan.waiting_on == ("arrivals",)


# ---------------------------------------------------------------------- plans that stand


def test_a_plan_stands_until_the_first_in_the_queue_may_find_what_it_missed() -> None:
    v1 = V1(device_blocks=4)
    v1.add("one", "aaaa", reply="bbbbcccc")
    v1.step()
    v1.add("two", "aaaabbbbd" + "e" * 5)  # three more blocks than it finds
    v1.step()
    assert v1.waiting == ["two"]
    assert v1.scheduler._until.step == v1.scheduler.step + 3
    v1.steps(3)
    assert v1.engine._lookup(v1.scheduler.request("two")) != []


def test_a_plan_need_not_wait_for_those_who_will_not_name_what_is_missed() -> None:
    v1 = V1(device_blocks=6)
    v1.add("other", "zzzzz")  # it fills the second block too, of other tokens
    v1.add("later", "aaaabb")
    v1.add("sooner", "aaaabbb")
    v1.step()
    v1.add("two", "aaaa" + "q" * 13)
    v1.step()
    assert v1.waiting == ["two"]
    assert v1.scheduler.num_tokens("sooner") == 9
    assert v1.scheduler._until.step == v1.scheduler.step + 1  # "later" has 8 tokens then


def test_the_same_plan_object_comes_back_while_nothing_changes() -> None:
    v1 = V1()
    v1.add("one", "aa")
    v1.steps(2)
    v1.steps(5)
    again = v1.plan
    v1.step()
    assert v1.plan is again
    assert v1.free == 10 - 3


# ---------------------------------------------------------------------- trap L1


def test_l1_ties_under_priority_may_never_end_and_the_run_says_so() -> None:
    v1 = V1(
        priority=True,
        device_blocks=3,
        caches=False,
        reserve_full_isl=False,
        long_prefill_token_threshold=4,
    )
    v1.add("one", "a" * 12, at=0)
    v1.add("two", "b" * 12, at=0)
    with pytest.raises(ReleaseVerdict, match="goes on for ever here"):
        v1.steps(50)


# ---------------------------------------------------------------------- laws


def broken(v1: V1) -> str:
    with pytest.raises(InvariantError) as caught:
        v1.engine.check(full=True)
    return str(caught.value)


def running() -> V1:
    v1 = V1(max_num_batched_tokens=8)
    v1.add("one", "aaaa")
    v1.add("two", "bbbbbbb")
    v1.add("three", "c")
    v1.step()
    v1.engine.check(full=True)
    v1.engine.check(full=False)
    return v1


def test_law_1_a_block_has_as_many_holders_as_tables_name_it() -> None:
    v1 = running()
    v1.engine.held[v1.scheduler.request("one")].blocks.append(9)
    assert "device: block 9 is in 1 tables" in broken(v1)


def test_seats_are_a_law() -> None:
    v1 = running()
    v1.engine.settings = replace(v1.settings, max_num_seqs=1)
    with pytest.raises(InvariantError, match="2 requests run, limit 1"):
        v1.engine.check(full=False)


def test_everybody_live_runs_or_waits_once() -> None:
    v1 = running()
    v1.engine.waiting.pop()
    assert "not the live requests, once each" in broken(v1)


def test_who_runs_is_in_order_of_admission() -> None:
    v1 = running()
    engine = v1.engine
    engine.running = dict(reversed(engine.running.items()))
    assert "not in order of admission" in broken(v1)


def test_the_batch_is_those_who_decode() -> None:
    v1 = running()
    v1.scheduler.desk.running.clear()
    assert "the batch is not those" in broken(v1)


def test_partial_is_those_who_do_not() -> None:
    v1 = running()
    v1.engine.partial.clear()
    assert "partial is not those" in broken(v1)


def test_law_15_a_request_holds_blocks_for_what_is_computed() -> None:
    v1 = running()
    held = v1.engine.held[v1.scheduler.request("two")]
    held.computed = 1
    held.computed = 40
    assert "blocks for 40 tokens" in broken(v1)


def test_no_more_names_than_blocks() -> None:
    v1 = running()
    v1.engine.held[v1.scheduler.request("two")].num_named = 7
    assert "7 names" in broken(v1)


def test_it_copies_nothing() -> None:
    v1 = running()
    with pytest.raises(InvariantError, match="copy 1 ended, and vllm-v1 copies nothing"):
        v1.end_step(copies=(CopyResult(1, True, 5),))
    assert v1.engine.num_coming == 0
    assert v1.engine.pools() == ()
    assert v1.engine.facts()["prefixes"]["looked_up_tokens"] == 11
    held = v1.scheduler.request("one").holding
    assert (held.device_blocks, held.host_blocks, held.is_resident) == (1, 0, True)
    assert v1.engine.num_computed("two") == 4
