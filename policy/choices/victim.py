"""Whom vLLM V1 preempts when blocks run out, where it is not the release's own choice. A decision.

Asked for by vllm#54644 and #56897 (docs/sources.md#victims). The engine asks before anybody has tokens
of the step, one victim at a time until it fits; among equally urgent ones the greatest key goes first,
and of equal keys the one admitted last. The first in order always stays while somebody else runs, so
somebody gets on in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from policy.choices.rates import PrefillTime

Key = tuple[int | float, ...]


class Stake(NamedTuple):
    """What preempting one request takes and gives. `computed`: tokens whose KV is lost; `gained`: blocks
    that become free, those that others hold left out."""

    computed: int
    gained: int


class Victim(Protocol):
    """`reads_prefills`: it wants to know how long a prefill takes."""

    reads_prefills: bool

    def key(self, stake: Stake, prefill: PrefillTime) -> Key:
        """The greatest goes first."""


class LeastComputed:
    """Whoever has computed least: least is computed twice."""

    reads_prefills = False

    def key(self, stake: Stake, prefill: PrefillTime) -> Key:  # noqa: ARG002
        """See Victim."""
        return (-stake.computed,)


class LeastCost:
    """Whoever costs least time to compute again, for each block that it leaves. Whoever leaves none is
    the last to go. What may be found again by its name counts as lost."""

    reads_prefills = True

    def key(self, stake: Stake, prefill: PrefillTime) -> Key:
        """See Victim."""
        if not stake.gained:
            return (0,)
        return (1, -(prefill.ns(stake.computed) // stake.gained))


#: By name; "own" is the engine's own choice.
VICTIMS: dict[str, Callable[[], Victim] | None] = {
    "own": None,
    "least_computed": LeastComputed,
    "least_cost": LeastCost,
}
