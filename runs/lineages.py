"""Names for the blocks of every request of a run, replies included (`traces.block_names`)."""

from __future__ import annotations

from collections.abc import Callable

from policy.settings import Settings
from policy.systems import System
from policy.views import BlockNames
from runs.turns import Arrival
from traces.block_names import Lineage
from traces.prefixes import Keys

Names = Callable[[Arrival], BlockNames | None]


def no_names(_arrival: Arrival) -> None:
    """Of a system that finds nothing by name."""


def names_for(system: System, settings: Settings, keys: Keys) -> Names:
    """What a system's engine needs."""
    return Lineages(settings, keys) if system.finds_by_name else no_names


class Lineages:
    """Called once for each turn that arrives, in order. A turn inherits the names of what its prompt
    repeats of its parent's context, as the workload tells its length."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        self._size = settings.block_size
        self._per_key = (settings.prefix_block or settings.block_size) // settings.block_size
        self._keys = keys
        self._count = 0
        self._before: dict[str, tuple[Lineage, int]] = {}  # request -> names, length of its context

    def __call__(self, arrival: Arrival) -> Lineage:
        """The names of the blocks of an arrival, its reply's too."""
        turn = arrival.turn
        parent, shared = self._before.get(arrival.parent_id or "", (None, 0))
        shared = min(shared, turn.input_tokens)
        if turn.parent_prefix_tokens is not None:
            shared = min(shared, turn.parent_prefix_tokens)
        self._count += 1
        names = Lineage(self._count, self._keys(turn), self._per_key, parent, shared // self._size)
        if not arrival.is_last:
            self._before[turn.request_id] = (names, turn.input_tokens + turn.output_tokens)
        return names
