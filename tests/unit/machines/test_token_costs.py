"""The step-cost form `tokens/1` on the simulated machine: whole numbers that follow the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calibrate.machines.fit import TERMS, Form
from calibrate.machines.steps import Step
from calibrate.profile import Quantity, TokenCost, load
from sim.costs import TokenCosts, step_costs


def quantity(value: float) -> Quantity:
    return Quantity(value=value, unit="ns", kind="derived", source="made up")


def cost(tokens: tuple[int, ...], ns: tuple[int, ...], **terms: float) -> TokenCost:
    numbers: dict[str, Any] = dict.fromkeys(
        ("kv_decode", "kv_mixed", "square", "host_base", "host_per_token", "first_token"), 0.0
    )
    numbers |= {"scale": 1.0, **terms}
    return TokenCost(
        form="tokens/1",
        tokens=tokens,
        ns=ns,
        **{name: quantity(value) for name, value in numbers.items()},
    )


PLAIN = {
    "decode": 10.0,
    "per_output": 2.0,
    "sequence_decode": 3.0,
    "kv_decode": 0.5,
    "uneven_decode": 0.25,
    "longest_decode": 4.0,
    "sequence_mixed": 5.0,
    "kv_mixed": 1.5,
    "uneven_mixed": 0.75,
    "longest_mixed": 6.0,
    "square": 8.0,
    "past": 7.0,
    "chunk": 11.0,
    "host_base": 100.0,
    "host_per_token": 1.0,
}
KNOTS = ((1, 4, 8), (1000, 1300, 1500))


def test_a_decode_step_is_the_table_its_terms_and_the_host() -> None:
    costs = TokenCosts(cost(*KNOTS, **PLAIN))
    # 2 requests of 20 and 30 tokens: table(2) = 1100, longest 30, uneven 10
    expected = 1100 + 10 + (2 + 3) * 2 + 0.5 * 50 + 0.25 * 10 + 4 * 30 + 100 + 1 * 2
    assert costs.decode_ns(2, 50, 10) == int(expected)


def test_a_mixed_step_counts_all_tokens_once_and_reads_kv_at_its_own_price() -> None:
    costs = TokenCosts(cost(*KNOTS, **PLAIN))
    # 2 decode beside chunks of 1 behind 9 and 3 behind none: T = 6, table 1400
    pairs = 1 * (9 + 0.5) + 3 * 1.5
    expected = 1400 + 2 * 4 + 5 * 2 + 1.5 * 50 + 0.75 * 10 + 6 * 30
    expected += 8 * pairs + 7 * 9 + 11 * 2 + 100 + 6
    assert costs.mixed_ns(2, 50, 10, [(1, 9), (3, 0)]) == int(expected)


def test_a_step_of_prompts_alone_is_a_mixed_one_without_decoding_requests() -> None:
    costs = TokenCosts(cost(*KNOTS, **PLAIN))
    assert costs.prefill_ns([(3, 0)]) == 1200 + 2 + 8 * 4.5 + 11 + 100 + 3


def test_beyond_the_last_knot_the_table_goes_on_as_it_came() -> None:
    costs = TokenCosts(cost((10, 20), (100, 300)))
    assert [costs.prefill_ns([(n, 0)]) for n in (1, 10, 15, 20, 30)] == [100, 100, 200, 300, 500]
    assert costs.prefill_ns([(100_000, 0)]) == 300 + 20 * (100_000 - 20)
    assert costs.decode_ns(40_000, 40_000) == 300 + 20 * (40_000 - 20)


@pytest.mark.parametrize(
    ("tokens", "ns", "message"),
    [
        ((1, 1), (5, 6), "tokens do not rise"),
        ((1, 2), (6, 5), "ns falls"),
        ((1, 2), (5,), "2 tokens and 1 ns"),
    ],
)
def test_a_table_that_is_none_is_refused(
    tokens: tuple[int, ...], ns: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        cost(tokens, ns)


STEPS = st.builds(
    lambda contexts, chunks: Step(
        len(contexts), sum(contexts), max(contexts, default=0), tuple(chunks)
    ),
    st.lists(st.integers(1, 40_000), max_size=40),
    st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 30_000)), max_size=3),
).filter(lambda step: step.tokens > 0)


@given(
    STEPS,
    st.lists(st.floats(0, 1000), min_size=len(TERMS), max_size=len(TERMS)),
    st.lists(st.integers(0, 10**7), min_size=3, max_size=3),
)
def test_whole_numbers_say_what_the_formula_says(
    step: Step, values: list[float], rises: list[int]
) -> None:
    tokens, ns = (1, 33, 512), tuple(int(n) for n in np.cumsum(rises) + 10**6)
    terms = dict(zip(TERMS, values, strict=True))
    form = Form(tokens, tuple(map(float, ns)), terms)
    costs = TokenCosts(cost(tokens, ns, **terms))
    found = (
        costs.mixed_ns(step.batch, step.kv_tokens, step.uneven, list(step.chunks))
        if step.chunks
        else costs.decode_ns(step.batch, step.kv_tokens, step.uneven)
    )
    exact = float(form.predict([step])[0])
    # each coefficient is rounded to 1/1024 ns, and multiplied by no more than this
    most = step.kv_tokens + step.uneven + step.longest + step.squares + step.past + 100
    assert abs(found - exact) <= 2 + exact * 1e-9 + most / 1024


@given(STEPS)
def test_a_line_over_kv_tokens_goes_through_the_steps_of_a_batch_that_stands(step: Step) -> None:
    costs = TokenCosts(cost(*KNOTS, **PLAIN))
    if step.batch:
        at_none, per_token = costs.decode_line(step.batch, step.uneven)
        for later in (0, 1, 1000):  # every context grows by so much, the unevenness stays
            kv_tokens = step.kv_tokens + later * step.batch
            assert (at_none + per_token * kv_tokens) >> 20 == costs.decode_ns(
                step.batch, kv_tokens, step.uneven
            )


def test_a_profile_of_this_form_is_read_written_and_changed_like_the_others() -> None:
    linear = load("h100-llama-3-8b")
    profile = linear.model_copy(update={"step": cost(*KNOTS, **PLAIN)})
    again = type(profile).model_validate_json(
        type(profile).model_validate(profile.as_json(), strict=False).model_dump_json()
    )
    assert again == profile
    assert again.hash != linear.hash
    changed = profile.with_values({"step.kv_decode": 9.0})
    assert step_costs(changed).decode_ns(1, 100) - step_costs(profile).decode_ns(1, 100) == 850
