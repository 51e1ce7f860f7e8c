"""Who stands where, if displacement is not by rank: merged as far as somebody looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from typing import Any

from policy.request import Request


class Merged:
    """`residents`, few and sorted by `place`, among all of `ranked`. Those of `ranked` that hold no device
    memory stand in that order by their places too (`policy.choices.displacement`), so that nothing has to
    be sorted that nobody looks at."""

    __slots__ = ("_place", "_ranked", "_residents")

    def __init__(
        self,
        residents: list[Request],
        ranked: list[Request],
        place: Callable[[Request], tuple[Any, ...]],
    ) -> None:
        self._residents = residents
        self._ranked = ranked
        self._place = place

    def __iter__(self) -> Iterator[Request]:
        others = (request for request in self._ranked if request.context.device is None)
        return merge(self._residents, others, key=self._place)
