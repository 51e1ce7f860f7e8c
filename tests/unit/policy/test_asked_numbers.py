"""Numbers that an order or a rate is asked for mean what they say: frequencies, shares, weights."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.choices.rates import Rates
from policy.errors import ConfigError
from policy.memory.transfers import Transfer
from policy.orders.clock import UpdateClock
from policy.orders.traces import MarkovTrace, RandomTrace
from policy.orders.vtc import VirtualTokenCounter
from policy.settings import Settings
from policy.views import RequestView
from traces.randomness import Streams

STREAMS = Streams(3, 0)


def updates(every: int | Fraction, steps: int) -> list[int]:
    """Steps of the first so many at which priorities are updated."""
    settings = Settings(device_blocks=9, host_blocks=9, update_every=every)
    clock = UpdateClock(settings, RandomTrace(STREAMS))
    return [step for step in range(1, steps + 1) if clock.is_due(step, 0)]


@given(st.integers(1, 60), st.integers(1, 60))
def test_in_so_many_steps_there_are_as_many_updates_as_the_frequency_says(p: int, q: int) -> None:
    frequency = min(Fraction(p, q), Fraction(1))
    found = updates(1 / frequency, 300)
    for steps in (1, 7, 100, 300):
        assert sum(step <= steps for step in found) == floor(frequency * steps)


def test_whole_numbers_of_steps_are_what_they_were() -> None:
    assert updates(25, 100) == [25, 50, 75, 100]


def test_frequencies_that_once_fell_together_do_not() -> None:
    counts = {f: len(updates(1 / Fraction(f), 1000)) for f in ("0.6", "0.5", "0.45", "0.4")}
    assert counts == {"0.6": 600, "0.5": 500, "0.45": 450, "0.4": 400}


def view(name: str, **facts: Any) -> RequestView:
    return cast(RequestView, SimpleNamespace(request_id=name, session_id=name, **facts))


@pytest.mark.parametrize(("share", "stay"), [(0.8, 0.8), (0.5, 0.01), (0.1, 0.9), (0.8, 0.76)])
def test_as_many_conversations_are_high_as_the_share_says(share: float, stay: float) -> None:
    trace = MarkovTrace(STREAMS, share=share, stay=stay)
    everybody = [view(f"s{k}") for k in range(4000)]
    for one in everybody:
        trace.arrived(one, 0)
    for index in (0, 1, 2, 40):
        trace.update(index, 0)
        high = sum(trace.key(one, 0)[0] == 0 for one in everybody)
        assert high / len(everybody) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(("share", "stay"), [(0.92, 0.9), (0.6, 0.1), (0.99, 0.5)])
def test_a_share_that_no_chance_of_becoming_high_gives_is_refused(
    share: float, stay: float
) -> None:
    with pytest.raises(ConfigError, match=r"priority\.share: .* is above"):
        MarkovTrace(STREAMS, share=share, stay=stay)


@pytest.mark.parametrize("weights", [{}, {"a": 3}, {"a": 3, "b": 2}, {"a": 1, "b": 10}])
def test_clients_that_always_have_work_are_served_as_their_weights_say(
    weights: dict[str, int],
) -> None:
    order = VirtualTokenCounter(head_start=0, weights=weights)
    one = {
        name: SimpleNamespace(
            request_id=name,
            client_id=name,
            num_generated=0,
            input_tokens=1,
            cached_tokens=0,
            is_resident=False,
            is_decoding=True,
        )
        for name in ("a", "b")
    }
    views = {name: cast(RequestView, facts) for name, facts in one.items()}
    for request in views.values():
        order.arrived(request, 0)
        order.began(request)
    for index in range(2600):
        order.update(index, 0)
        chosen = min(("a", "b"), key=lambda name: (order.key(views[name], 0), name))
        one[chosen].num_generated += 1
    wanted = weights.get("a", 1) / weights.get("b", 1)
    assert one["a"].num_generated / one["b"].num_generated == pytest.approx(wanted, rel=0.02)


def test_a_weight_is_a_whole_number_within_its_limit() -> None:
    with pytest.raises(ConfigError, match=r"vtc\.weights\.x: 1001 is not in 1 to 1000"):
        VirtualTokenCounter(weights={"x": 1001})


@pytest.mark.parametrize("to_host", [True, False])
def test_a_cancelled_copy_takes_its_time_from_nobody_elses(to_host: bool) -> None:
    def copy(planned_ns: int) -> Transfer:
        facts = SimpleNamespace(
            planned_ns=planned_ns, to_host=to_host, copy=SimpleNamespace(num_blocks=10)
        )
        return cast(Transfer, facts)

    rates = Rates(load_ns_per_block=100, store_ns_per_block=100)
    for begin in range(0, 400_000, 2000):  # two at a time, each takes 1000, the first is cancelled
        first, second = copy(begin), copy(begin)
        rates.saw_copy(first, begin + 1000, ok=False)
        rates.saw_copy(second, begin + 2000, ok=True)
    learnt = rates.store_ns_per_block if to_host else rates.load_ns_per_block
    assert learnt == pytest.approx(100, abs=8)
