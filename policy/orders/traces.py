"""Replayed priority traces, Random and Markov (FastSwitch's two patterns,
docs/sources.md#fastswitch-priorities).

Both are pure functions of seeded draws, so every system replays the same trace however many steps
it takes for the same work.
"""

from __future__ import annotations

from bisect import bisect_left

from policy.errors import ConfigError
from policy.orders.base import Key, Order
from policy.views import Draw, RequestView

_BITS = 64
_ONE = 1 << _BITS


class RandomTrace(Order):
    """Fresh, uniform priorities for everybody at every update.

    Keyed by (request, update index). A unit of priority is the whole range.
    """

    name = "random"
    refreshes = True
    unit = _ONE

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._index = 0

    def update(self, index: int, now_ns: int) -> None:  # noqa: ARG002
        """Everybody is drawn anew."""
        self._index = index

    def key(self, request: RequestView, now_ns: int) -> Key:  # noqa: ARG002
        """A uniform draw."""
        return (self._draw("random-priority", request.request_id, self._index),)


class _Slot:
    """A conversation's place in the Markov trace."""

    __slots__ = ("high", "stays", "tie", "until")

    def __init__(self) -> None:
        self.high = False
        self.tie = 0
        self.until = 0  # update index at which the present stay ends
        self.stays = 0  # stays drawn so far


class MarkovTrace(Order):
    """Two states, high and low; a stay lasts a geometric number of updates.

    A conversation keeps its slot over its turns and while it is idle. `share` of the
    conversations are high in the long run, whatever is live, since "what fits on the GPU" would
    depend on the system (docs/traps.md, M10). `stay` is the chance that a high one stays high at
    an update; the chance to leave low follows from the share. The tie-break is drawn once per stay.
    Keyed by (conversation, number of the stay), counted from the conversation's first arrival.
    """

    name = "markov"
    refreshes = True

    def __init__(self, draw: Draw, *, share: float = 0.1, stay: float = 0.9) -> None:
        check_markov(share, stay)
        self._draw = draw
        self._share = int(share * _ONE)
        self._high_tail = _survival(stay)
        leave_low = share * (1 - stay) / (1 - share)
        self._low_tail = _survival(1 - leave_low)
        self._slots: dict[str, _Slot] = {}
        self._index = 0

    def arrived(self, request: RequestView, now_ns: int) -> None:  # noqa: ARG002
        """A first turn opens the conversation's slot, in the stationary state."""
        session = request.session_id
        if session not in self._slots:
            slot = self._slots[session] = _Slot()
            slot.high = self._draw("markov-start", session, 0) < self._share
            self._begin_stay(slot, session, self._index)

    def update(self, index: int, now_ns: int) -> None:  # noqa: ARG002
        """Stays that ended are replaced when their slot is next asked for."""
        self._index = index

    def key(self, request: RequestView, now_ns: int) -> Key:  # noqa: ARG002
        """High before low; inside a state the stay's tie-break."""
        session = request.session_id
        slot = self._slots[session]
        while slot.until <= self._index:
            slot.high = not slot.high
            self._begin_stay(slot, session, slot.until)
        return (0 if slot.high else 1, slot.tie)

    def _begin_stay(self, slot: _Slot, session: str, begin: int) -> None:
        tail = self._high_tail if slot.high else self._low_tail
        uniform = self._draw("markov-stay", session, slot.stays)
        slot.tie = self._draw("markov-tie", session, slot.stays)
        # tail[i] = P(stay > i + 1): the stay is one longer for every entry above the draw.
        slot.until = begin + 1 + len(tail) - bisect_left(tail, uniform + 1)
        slot.stays += 1


def check_markov(share: float, stay: float) -> None:
    """Raise ConfigError for a share of high ones that no chance of becoming high gives: even where every
    low one becomes high at once, it is 1 / (2 - stay)."""
    if share * (1 - stay) > 1 - share:
        raise ConfigError(
            f"priority.share: {share:g} is above {1 / (2 - stay):.4g}, the most where a high one stays"
            f" high with chance {stay:g} (priority.stay)"
        )


def _survival(stay: float) -> list[int]:
    """P(length > i + 1) of a geometric stay in units of 2**-64, in ascending order of value.

    Integer arithmetic after the first rounding, so the same on every platform. A stay of
    probability 1 never ends within 2**16 updates, where the table stops.
    """
    chance = int(stay * _ONE)
    values: list[int] = []
    value = chance
    while value and len(values) < 1 << 16:
        values.append(value)
        value = value * chance >> _BITS
    values.reverse()
    return values
