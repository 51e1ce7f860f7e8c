"""Orders by name, with the scenario's numbers."""

from __future__ import annotations

import pytest

from policy.choices.host_eviction import HOST_EVICTIONS
from policy.errors import ConfigError
from policy.orders.catalog import ORDERS, OrderSettings, make_order
from policy.request import Request
from tests.helpers.small import draw


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_is_found_under_its_own_name(name: str) -> None:
    assert make_order(name, draw, OrderSettings()).name == name


def test_an_unknown_order_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^order: 'lifo' is not one of fcfs, priority, random, "):
        make_order("lifo", draw, OrderSettings())


def test_the_scenarios_numbers_reach_the_order() -> None:
    order = make_order("vtc", draw, OrderSettings(vtc_prompt_weight=3, vtc_output_weight=5))
    request = Request("r", arrival_ns=0, input_tokens=10)
    order.arrived(request, 0)
    request.add_token()
    order.left(request, 0)
    other = Request("other", arrival_ns=0, input_tokens=1, client_id="r")
    request.add_token()
    assert order.service == {"r": 3 * 10 + 5}  # type: ignore[attr-defined]
    assert other.client_id == request.client_id


def test_a_conversation_is_high_as_often_as_the_markov_share_says() -> None:
    order = make_order("markov", draw, OrderSettings(markov_share=0.25, markov_stay=0.5))
    requests = [Request(f"r{i}", arrival_ns=0, input_tokens=1) for i in range(400)]
    for request in requests:
        order.arrived(request, 0)
    high = 0
    for index in range(10):
        order.update(index, 0)
        high += sum(order.key(request, 0)[0] == 0 for request in requests)
    assert abs(high / 4000 - 0.25) < 0.04


@pytest.mark.parametrize(("name", "key"), [("priority", (7, 3)), ("lru", ())])
def test_host_copies_go_by_the_owners_rank_or_by_age_alone(name: str, key: tuple[int, ...]) -> None:
    owner = Request("r", arrival_ns=0, input_tokens=1)
    owner.rank = ((7, 3), 0, "r")
    assert HOST_EVICTIONS[name](64).key(owner) == key
