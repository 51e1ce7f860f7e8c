"""What a replica has of a conversation: the nearest of its turns that was served there.

A prefix cache finds the blocks of turn 1 when turn 3 returns to where turn 1 was, whoever served turn 2.
Engines look a context up by the turn before; so a turn is given to a replica as the next one after the
nearest that it served, repeating as much of that as all turns between repeat.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from runs.turns import Arrival


class _Link(NamedTuple):
    parent: str | None
    prefix: int | None
    replica: int
    context: int  # tokens, prompt and reply


class Ancestry:
    """Who served which turn, and what each repeats of the one before."""

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}

    def served(self, arrival: Arrival, replica: int) -> None:
        """A turn goes there; a later attempt replaces it."""
        turn = arrival.turn
        self._links[arrival.request_id] = _Link(
            arrival.parent_id,
            turn.parent_prefix_tokens,
            replica,
            turn.input_tokens + turn.output_tokens,
        )

    def lost(self, replica: int) -> None:
        """The replica forgot all it served."""
        for name, link in self._links.items():
            if link.replica == replica:
                self._links[name] = link._replace(replica=-1)

    def seen_by(self, arrival: Arrival, replica: int) -> tuple[Arrival, int]:
        """The turn as that replica gets it; and prompt tokens that another replica could have reused at
        most and this one cannot."""
        parent, prefix = arrival.parent_id, arrival.turn.parent_prefix_tokens
        repeated = self._repeated(arrival, parent, prefix)
        while parent is not None:
            link = self._links[parent]
            if link.replica == replica:
                break
            parent = link.parent
            if link.prefix is not None:
                prefix = link.prefix if prefix is None else min(prefix, link.prefix)
        if parent == arrival.parent_id:
            return arrival, 0
        lost = repeated - self._repeated(arrival, parent, prefix)
        if parent is None:
            return arrival._replace(parent_id=None), lost
        turn = replace(arrival.turn, parent_prefix_tokens=prefix)
        return arrival._replace(parent_id=parent, turn=turn), lost

    def _repeated(self, arrival: Arrival, parent: str | None, prefix: int | None) -> int:
        """Prompt tokens that repeat the context of `parent`."""
        if parent is None:
            return 0
        most = min(arrival.turn.input_tokens - 1, self._links[parent].context)
        return max(0, most if prefix is None else min(most, prefix))
