"""Whose next turn a request is: the ended context, of the same client, whose prompt it goes on from.

Kept are the contexts of the last few turns, bounded in number and in tokens. What a turn repeats is counted in
real tokens: a reply that was rendered again may be cut into others.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from dataclasses import dataclass

MAX_CONTEXTS = 2048
MAX_TOKENS = 8 << 20
#: Contexts of one session, or of a client who names none, that are looked at.
_LOOKED_AT = 64


@dataclass(slots=True, eq=False)
class Context:
    """A turn that has ended. `is_followed`: its session went on from here already."""

    request_id: str
    session_id: str
    turn: int
    prompt: int
    tokens: array[int]
    is_followed: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request belongs."""

    session_id: str
    turn: int
    parent_id: str | None = None
    parent_prefix_tokens: int | None = None


def common(one: array[int], other: array[int]) -> int:
    """How many tokens both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class Sessions:
    """Ended contexts by who had them, the latest last."""

    def __init__(self) -> None:
        self._by_owner: dict[str, list[Context]] = {}
        self._kept: OrderedDict[str, tuple[str, Context]] = OrderedDict()
        self._num_tokens = 0
        self._count = 0

    def place(self, owner: str, named: str | None, tokens: array[int]) -> Place:
        """Where a prompt of `owner` belongs, who may have `named` a session. The last context of which it
        repeats the whole prompt is its parent."""
        best: Context | None = None
        shared = 0
        for context in reversed(self._by_owner.get(owner, [])[-_LOOKED_AT:]):
            last = context.prompt - 1
            if last >= len(tokens) or tokens[last] != context.tokens[last]:
                continue
            found = min(common(context.tokens, tokens), len(tokens) - 1)
            if found >= context.prompt and found > shared:
                best, shared = context, found
        if best is not None and not best.is_followed:
            best.is_followed = True
            return Place(best.session_id, best.turn + 1, best.request_id, shared)
        self._count += 1
        name = f"s{self._count}" if named is None else f"{named[:100]}#{self._count}"
        if best is None:
            return Place(name, 1)
        return Place(name, 1, best.request_id, shared)

    def ended(self, owner: str, context: Context) -> None:
        """A turn has ended, and its client may go on from it."""
        self._by_owner.setdefault(owner, []).append(context)
        self._kept[context.request_id] = (owner, context)
        self._num_tokens += len(context.tokens)
        while len(self._kept) > MAX_CONTEXTS or self._num_tokens > MAX_TOKENS:
            _, (old_owner, old) = self._kept.popitem(last=False)
            self._num_tokens -= len(old.tokens)
            left = self._by_owner[old_owner]
            left.remove(old)
            if not left:
                del self._by_owner[old_owner]
