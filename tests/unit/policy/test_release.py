"""vLLM 0.3.3's own planner: who stands in which of its queues, and what it says when it is stuck."""

from __future__ import annotations

import pytest

from policy.errors import ReleaseVerdict
from policy.integrity import check_integrity
from policy.request import RequestState
from policy.scheduler import Scheduler
from tests.helpers.small import scheduler
from tests.unit.policy.test_scheduler import ended, prefilled, ran, request


def release(**values: int) -> Scheduler:
    return scheduler("vllm-0.3.3", "fcfs", **values)


def swapped() -> tuple[Scheduler, int]:
    """Two blocks each and one more than they hold: `b` is on its way to the host."""
    made = release(device_blocks=4)
    prefilled(made, "a", "b")
    made.schedule(0)
    made.update(ran())
    (store,) = made.schedule(0).copies
    made.update(ran())
    assert made.request("b").state is RequestState.SWAPPED
    return made, store.copy_id


def test_whoever_is_cancelled_while_waiting_bars_nobody() -> None:
    made = release(device_blocks=4)
    made.add(request("first"), 0)
    made.add(request("second"), 0)
    assert made.cancel("first", 0)
    assert [name for name, _ in made.schedule(0).prefill] == ["second"]


def test_whoever_is_cancelled_on_the_host_comes_back_no_more() -> None:
    made, store = swapped()
    assert made.cancel("b", 0)
    made.update(ended(store))
    made.add(request("c"), 0)  # nobody is admitted while one that was swapped waits
    assert [name for name, _ in made.schedule(0).prefill] == ["c"]
    made.update(ran())
    assert made.schedule(0).batch.decode == ("a", "c")  # type: ignore[union-attr]
    check_integrity(made)


def test_whoever_is_cancelled_while_it_runs_makes_room_for_the_next() -> None:
    made = release(device_blocks=4, max_num_seqs=1)
    prefilled(made, "a")
    made.add(request("b"), 0)
    assert made.cancel("a", 0)
    assert [name for name, _ in made.schedule(0).prefill] == ["b"]


def test_a_copy_that_fails_puts_its_request_before_all_who_wait() -> None:
    made, store = swapped()
    made.add(request("c"), 0)
    made.update(ended(store, ok=False))
    assert [name for name, _ in made.schedule(0).prefill] == ["b"]
    made.update(ran())
    assert made.request("b").state is RequestState.RUNNING
    assert made.request("c").state is RequestState.WAITING


def test_it_admits_no_more_than_may_run() -> None:
    made = release(max_num_seqs=1)
    for name in ("a", "b"):
        made.add(request(name), 0)
    assert [name for name, _ in made.schedule(0).prefill] == ["a"]


def test_a_prompt_beyond_its_limit_is_refused_with_the_limit() -> None:
    made = release(max_model_len=8)
    made.add(request("long", tokens=9), 0)
    made.add(request("short"), 0)
    plan = made.schedule(0)
    assert plan.reject == (("long", "prompt of 9 tokens, limit 8"),)
    assert [name for name, _ in plan.prefill] == ["short"]


def test_where_it_would_wait_for_ever_the_verdict_says_for_what() -> None:
    """Alone on a full device it swaps itself out, and then wants a block more than there are."""
    made = release(device_blocks=4)
    made.add(request("r", tokens=13), 0)
    made.schedule(0)
    made.update(ran())
    for _ in range(4):
        plan = made.schedule(0)
        if plan.copies:
            break
        made.update(ran())
    made.update(ended(*(copy.copy_id for copy in plan.copies)))
    with pytest.raises(ReleaseVerdict, match="r needs 5 free blocks above the watermark of 0"):
        made.schedule(0)
