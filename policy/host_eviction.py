"""Which host copy is given up first. A decision; the ledger holds the safety rules."""

from __future__ import annotations

from typing import Protocol

from policy.views import RequestView


class HostEviction(Protocol):
    """Ranks host copies of one role. Ties: the copy idle for longest goes first."""

    name: str

    def key(self, owner: RequestView) -> tuple[int | float, ...]:
        """The copy with the largest key is given up first."""


class ByPriority:
    """The copy of the request served last goes first (FastSwitch, paper.md 2c)."""

    name = "priority"

    def key(self, owner: RequestView) -> tuple[int | float, ...]:
        """The order's own key."""
        return owner.rank[0]


class LeastRecentlyUsed:
    """The copy untouched for longest goes first (vLLM's and LMCache's default)."""

    name = "lru"

    def key(self, owner: RequestView) -> tuple[int | float, ...]:  # noqa: ARG002
        """All equal, so the tie-break decides."""
        return ()


HOST_EVICTIONS: dict[str, type[ByPriority] | type[LeastRecentlyUsed]] = {
    "priority": ByPriority,
    "lru": LeastRecentlyUsed,
}
