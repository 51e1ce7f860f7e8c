"""Prefix ids for generated prompts: equal ids, equal tokens, from the start of the prompt."""

from __future__ import annotations


class Prefixes:
    """Ids of blocks of `block` tokens. A shared system prompt's blocks are 0, 1, ...; every other
    block gets the next number when it first appears. A block that was not full before gets a new
    one, since other tokens follow in it.

    Sessions come one after the other, each with its turns in order.
    """

    def __init__(self, block: int, system_tokens: int) -> None:
        self._block = block
        self._system = tuple(range(system_tokens // block))
        self._next = len(self._system)
        self._ids: tuple[int, ...] = ()
        self._tokens = 0

    def next(self, turn: int, kept: int, tokens: int) -> tuple[int, ...]:
        """Ids of a prompt of `tokens`, whose first `kept` are the parent's."""
        block = self._block
        if turn == 1:
            same = self._system[: tokens // block]
        else:
            same = self._ids[: min(kept, self._tokens) // block]
        fresh = -(-tokens // block) - len(same)
        self._ids = (*same, *range(self._next, self._next + fresh))
        self._next += fresh
        self._tokens = tokens
        return self._ids
