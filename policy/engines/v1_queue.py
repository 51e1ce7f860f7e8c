"""Who waits in V1: first come first served, or a heap (R11, R12)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Protocol

from policy.desk import Rank, rank_of
from policy.request import Request


class Queue(Protocol):
    """Requests that wait."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Request]:
        """In the order in which they come up."""

    def add(self, request: Request) -> None:
        """A request arrives."""

    def put_back(self, request: Request) -> None:
        """A request was preempted."""

    def restore(self, requests: list[Request]) -> None:
        """These were taken off one after the other, and passed over in this step."""

    def first(self) -> Request:
        """Whose turn it is; there must be somebody."""

    def pop(self) -> Request:
        """Take `first` off."""

    def remove(self, request: Request) -> None:
        """A request was cancelled."""

    def keys_changed(self) -> None:
        """Ranks have changed."""


class Arrivals:
    """First come, first served. R11: a victim goes to the front, before victims of earlier steps."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)

    def add(self, request: Request) -> None:
        """See Queue."""
        self._queue.append(request)

    def put_back(self, request: Request) -> None:
        """See Queue."""
        self._queue.appendleft(request)

    def restore(self, requests: list[Request]) -> None:
        """See Queue."""
        self._queue.extendleft(reversed(requests))

    def first(self) -> Request:
        """See Queue."""
        return self._queue[0]

    def pop(self) -> Request:
        """See Queue."""
        return self._queue.popleft()

    def remove(self, request: Request) -> None:
        """See Queue."""
        self._queue.remove(request)

    def keys_changed(self) -> None:
        """Keys do not matter here."""


class ByRank:
    """R12: (priority, arrival, id) alone decides; who was preempted has no privilege.

    `remove` leaves the entry in the heap, to be dropped when it comes up: a cancelled request costs
    no walk over the queue.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, int, Request]] = []
        self._entry: dict[Request, int] = {}  # who waits -> number of its valid entry
        self._count = 0

    def __len__(self) -> int:
        return len(self._entry)

    def __iter__(self) -> Iterator[Request]:
        return iter(sorted(self._entry, key=rank_of))

    def add(self, request: Request) -> None:
        """See Queue."""
        self._count += 1
        self._entry[request] = self._count
        heappush(self._heap, (request.rank, self._count, request))

    put_back = add

    def restore(self, requests: list[Request]) -> None:
        """See Queue."""
        for request in requests:
            self.add(request)

    def first(self) -> Request:
        """See Queue."""
        heap, entry = self._heap, self._entry
        while entry.get(heap[0][2]) != heap[0][1]:
            heappop(heap)
        return heap[0][2]

    def pop(self) -> Request:
        """See Queue."""
        request = self.first()
        heappop(self._heap)
        del self._entry[request]
        return request

    def remove(self, request: Request) -> None:
        """See Queue."""
        del self._entry[request]

    def keys_changed(self) -> None:
        """Sort again: the release never does, since its priorities do not change."""
        self._heap = [(request.rank, count, request) for request, count in self._entry.items()]
        heapify(self._heap)
