"""How much of which prompt a step takes, and what a system's shape refuses."""

from __future__ import annotations

import pytest

from policy.choices.shape import Chunked, PrefillOnly
from policy.errors import ConfigError
from policy.plan import Outcome, Plan
from policy.request import Request, RequestState
from policy.scheduler import Scheduler
from policy.systems import custom_system
from tests.helpers.small import scheduler, settings

SMALL = {"device_blocks": 60, "max_num_batched_tokens": 10, "max_num_seqs": 9}


def arrive(made: Scheduler, name: str, tokens: int, priority: int = 0) -> Request:
    request = Request(name, arrival_ns=0, input_tokens=tokens, priority=priority)
    made.add(request, 0)
    return request


def step(made: Scheduler, *finished: str) -> Plan:
    plan = made.schedule(0)
    made.update(Outcome(plan.runs, 0, 1, None, finished))
    return plan


def test_decodes_come_out_of_the_budget_first_and_the_last_prompt_gets_what_is_left() -> None:
    shape = Chunked(settings(max_num_batched_tokens=10), 3)
    assert [shape.grant(n, is_again=False) for n in (4, 5, 1)] == [4, 3, 0]


def test_whole_prompts_go_in_or_stay_out() -> None:
    shape = PrefillOnly(settings(max_num_batched_tokens=10), 3)
    assert [shape.grant(n, is_again=False) for n in (4, 7, 5)] == [4, 0, 5]


def test_a_long_prompt_takes_several_steps_and_its_first_token_comes_with_the_last() -> None:
    made = scheduler("+chunked", **SMALL)
    long = arrive(made, "long", 23)
    assert [step(made).prefill for _ in range(3)] == [
        (("long", 10),),
        (("long", 10),),
        (("long", 3),),
    ]
    assert (long.num_generated, long.is_decoding, long.cached_tokens) == (1, True, 0)


def test_the_batch_decodes_beside_the_chunks_of_a_prompt() -> None:
    made = scheduler("+chunked", **SMALL)
    arrive(made, "a", 4)
    step(made)
    arrive(made, "b", 17)
    plans = [step(made) for _ in range(3)]
    assert [plan.prefill for plan in plans] == [(("b", 9),), (("b", 8),), ()]
    assert [plan.batch.decode for plan in plans if plan.batch] == [("a",), ("a",), ("a", "b")]
    assert plans[2].batch is not None
    assert plans[2].batch.joined == ("b",)


def test_between_its_chunks_a_request_waits_and_holds_the_blocks_of_its_whole_prompt() -> None:
    made = scheduler("+chunked", **SMALL)
    long = arrive(made, "long", 23)
    step(made)
    assert (long.state, long.device_blocks) == (RequestState.WAITING, 6)
    assert made.num_computed("long") == 10


def test_a_more_urgent_prompt_takes_the_budget_of_one_that_has_begun() -> None:
    made = scheduler("+chunked", **SMALL)
    arrive(made, "long", 23, priority=1)
    step(made)
    arrive(made, "urgent", 7)
    assert step(made).prefill == (("urgent", 7), ("long", 3))


def test_while_nothing_changes_the_plan_is_the_same_object_again() -> None:
    made = scheduler("+chunked", **{**SMALL, "update_every": 1000})
    arrive(made, "a", 13)
    for _ in range(3):
        step(made)
    assert step(made) is step(made)


def test_a_prompt_may_be_longer_than_a_step() -> None:
    made = scheduler(
        "+chunked",
        device_blocks=60,
        max_model_len=60,
        max_num_batched_tokens=20,
        max_num_seqs=9,
    )
    arrive(made, "fits", 60)
    arrive(made, "too long", 61)
    assert made.schedule(0).reject == (("too long", "prompt of 61 tokens, limit 60"),)


def test_a_budget_that_decodes_alone_may_fill_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"limits.max_num_batched_tokens: 9 is not above max_num_seqs 9"
    ):
        scheduler("+chunked", max_num_batched_tokens=9, max_num_seqs=9)


def test_the_release_has_one_shape() -> None:
    with pytest.raises(ConfigError, match="the release prefills and decodes in turns"):
        custom_system({"base": "-keep", "shape": "chunked"})
