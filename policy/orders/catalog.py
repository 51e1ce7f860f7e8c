"""Names of the built-in orders, and how each is made from a scenario's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from policy.errors import ConfigError, did_you_mean
from policy.orders.base import Order
from policy.orders.static import StaticPriority
from policy.orders.traces import MarkovTrace, RandomTrace
from policy.orders.vtc import VirtualTokenCounter
from policy.views import Draw


class OrderSettings(NamedTuple):
    """The numbers that built-in orders take."""

    markov_share: float = 0.1
    markov_stay: float = 0.9
    vtc_head_start: int = 60
    vtc_prompt_weight: int = 1
    vtc_output_weight: int = 2
    vtc_weights: tuple[tuple[str, int], ...] = ()


ORDERS: dict[str, Callable[[Draw, OrderSettings], Order]] = {
    "fcfs": lambda _draw, _s: Order(),
    "priority": lambda _draw, _s: StaticPriority(),
    "random": lambda draw, _s: RandomTrace(draw),
    "markov": lambda draw, s: MarkovTrace(draw, share=s.markov_share, stay=s.markov_stay),
    "vtc": lambda _draw, s: VirtualTokenCounter(
        head_start=s.vtc_head_start,
        prompt_weight=s.vtc_prompt_weight,
        output_weight=s.vtc_output_weight,
        weights=dict(s.vtc_weights),
    ),
}


def make_order(name: str, draw: Draw, settings: OrderSettings) -> Order:
    """The order called `name`. Raises ConfigError naming the choices."""
    if name not in ORDERS:
        raise ConfigError(
            f"order: {name!r} is not one of {', '.join(ORDERS)}" + did_you_mean(name, ORDERS)
        )
    return ORDERS[name](draw, settings)
