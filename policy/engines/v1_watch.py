"""Trap L1: V1 may go on for ever, its requests preempting each other without a token in between."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from policy.errors import ReleaseVerdict


class Watch:
    """Knows the states of steps that preempted and yielded nothing, since the last output."""

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()

    def stirred(self) -> None:
        """A token came out, or somebody came or left: what was seen will not come again."""
        if self._seen:
            self._seen.clear()

    def fruitless(self, state: Callable[[], Hashable]) -> None:
        """A step preempts and will yield no token. Raises ReleaseVerdict for a state seen before:
        from there all repeats itself."""
        now = state()
        if now in self._seen:
            raise ReleaseVerdict(
                "vLLM 0.33.0 goes on for ever here: its requests preempt each other, and no step"
                " yields a token any more"
            )
        self._seen.add(now)
