"""What becomes of a victim's KV: swapped to the host, or dropped and computed again. A decision;
without host room it is dropped whatever this says (rule 13).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from policy.choices.rates import Rates
from policy.memory.context import Context
from policy.memory.memory import Memory


class Parking(NamedTuple):
    """What parking one victim takes, by the rates learnt so far. Nanoseconds.

    `store_ns`: sending what the host lacks. `load_ns`: bringing everything back. `reload_ns`: after
    dropping it, bringing back what the host has all the same; `prefill_ns`: computing the rest.
    `others`: requests that decode. `waits`: steps wait for copies.
    """

    store_ns: int
    load_ns: int
    reload_ns: int
    prefill_ns: int
    others: int
    waits: bool


class Preemption(Protocol):
    """`at_any_cost`: a swap may push out idle copies of conversations that rank before the victim."""

    name: str
    at_any_cost: bool

    def swaps(self, parking: Parking) -> bool:
        """True: swap. False: recompute."""


class AlwaysSwap:
    """As the paper's baseline must have been."""

    name = "swap"
    at_any_cost = True

    def swaps(self, parking: Parking) -> bool:  # noqa: ARG002
        """Whatever it costs."""
        return True


class AlwaysRecompute:
    """As vLLM 0.3.3 for one sequence, and vLLM V1."""

    name = "recompute"
    at_any_cost = True

    def swaps(self, parking: Parking) -> bool:  # noqa: ARG002
        """Never."""
        return False


class ByCost:
    """The cheaper of the two, in time that requests wait (request-nanoseconds, as
    the adaptive overlap counts them).

        swap      = w * (store + load)
        recompute = w * reload + (others + 1) * prefill

    A prefill takes the step of everybody who decodes. So does a copy that steps wait for (w = others
    + 1); one that overlaps them is waited for by one request (w = 1): who comes in for the room, who
    comes back for its KV. A tie recomputes, since that frees the room at once.
    """

    name = "cost"
    at_any_cost = False

    def swaps(self, parking: Parking) -> bool:
        """Iff swap < recompute."""
        waiting = parking.others + 1 if parking.waits else 1
        swap = waiting * (parking.store_ns + parking.load_ns)
        recompute = waiting * parking.reload_ns + (parking.others + 1) * parking.prefill_ns
        return swap < recompute


PREEMPTIONS: dict[str, type[AlwaysSwap] | type[AlwaysRecompute] | type[ByCost]] = {
    "swap": AlwaysSwap,
    "recompute": AlwaysRecompute,
    "cost": ByCost,
}


def parking_of(
    context: Context, memory: Memory, rates: Rates, others: int, *, waits: bool
) -> Parking:
    """The costs of parking a context that `Memory.prepare_to_leave` has looked at.

    Blocks that others hold (`host_base`) stay on the device either way. A prefill computes the last
    sampled token too, which a swapped request computes in its next decode step. Copies already in
    flight come first on the link, unless the step waits for them whatever is decided here.
    """
    tokens, base = context.device_tokens, context.host_base
    stored = max(context.host_tokens, base * memory.block_size)
    last = memory.blocks_for(tokens)
    dirty = last - stored // memory.block_size if tokens > stored else 0
    queued_out = queued_in = 0
    if not waits:
        for flight in memory.in_flight.values():
            if flight.to_host:
                queued_out += flight.copy.num_blocks
            else:
                queued_in += flight.copy.num_blocks
    to_reload = max(0, memory.blocks_for(min(tokens, stored)) - base)
    return Parking(
        store_ns=(queued_out + dirty if dirty else 0) * rates.store_ns_per_block,
        load_ns=(queued_in + last - base) * rates.load_ns_per_block,
        reload_ns=(queued_in + to_reload if to_reload else 0) * rates.load_ns_per_block,
        prefill_ns=rates.prefill.ns(max(0, tokens - stored) + 1),
        others=others,
        waits=waits,
    )
