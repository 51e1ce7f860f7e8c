"""What every engine needs: the live requests in their order, and the batch that decodes.

Whose KV is where is not its business: an engine keeps that (`policy/memory/`, or as it likes).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import pairwise

from policy.choices.rates import Rates
from policy.engines.draft import Draft
from policy.errors import InvariantError
from policy.orders.base import Order
from policy.plan import Batch
from policy.request import DecodeClock, Move, Request
from policy.settings import Settings

Rank = tuple[tuple[int | float, ...], int, str]


def rank_of(request: Request) -> Rank:
    """Sort key of the total order."""
    return request.rank


class Desk:
    """Live requests, ranks, the decode clock and the standing batch. Methods act; engines decide when."""

    def __init__(self, settings: Settings, order: Order, rates: Rates | None = None) -> None:
        self.settings = settings
        self.order = order
        self.rates = rates or Rates()
        self.watermark = settings.watermark_blocks
        self.clock = DecodeClock()
        self.live: dict[str, Request] = {}
        self.ranked: list[Request] = []  # live requests by rank
        self.running: list[Request] = []  # the decode batch, in batch order
        #: Of the plan handed out, in queue order: tokens with KV once its step has ended.
        self.prefilling: dict[Request, int] = {}
        self.step = 0  # number that the next numbered plan gets
        self.now_ns = 0
        self._growth: list[dict[Request, None]] = [{} for _ in range(settings.block_size)]
        self._offset_sum = 0
        self._batch: Batch | None = None
        self._joined: dict[Request, None] = {}
        self._left: dict[Request, None] = {}
        self._rejects: list[tuple[str, str]] = []

    # ------------------------------------------------------------------ arrivals and departures

    def enter(self, request: Request) -> None:
        """A new turn, whose engine knows what it holds: it gets a rank."""
        self.live[request.request_id] = request
        self.order.arrived(request, self.now_ns)
        key = self.order.key(request, self.now_ns)
        request.rank = (key, request.arrival_ns, request.request_id)
        insort(self.ranked, request, key=rank_of)

    def leave(self, request: Request, move: Move) -> None:
        """A request is no longer live: finished, cancelled or rejected."""
        if request.is_decoding:
            self.leave_batch(request)
        request.move(move)
        del self.live[request.request_id]
        index = bisect_left(self.ranked, request.rank, key=rank_of)
        if index == len(self.ranked) or self.ranked[index] is not request:
            raise InvariantError(f"{request.request_id} is not where its rank says")
        del self.ranked[index]
        self.order.left(request, self.now_ns)

    def reject(self, request: Request, why: str) -> None:
        """Give a request up, in the next plan made."""
        self.leave(request, Move.REJECT)
        self._rejects.append((request.request_id, why))

    def flush_rejects(self, draft: Draft) -> None:
        """Rejections since the last plan."""
        draft.reject.extend(self._rejects)
        self._rejects.clear()

    # ------------------------------------------------------------------ the standing batch

    def join_batch(self, request: Request) -> None:
        """From its next step on the request decodes."""
        request.start_decoding(self.clock)
        self._bucket(request)[request] = None
        self._offset_sum += request.offset
        self.running.append(request)
        self._joined[request] = None
        self.order.began(request)

    def leave_batch(self, request: Request) -> None:
        """Freeze its token count; KV exists for all tokens but the last."""
        del self._bucket(request)[request]
        self._offset_sum -= request.offset
        request.stop_decoding()
        self.running.remove(request)
        if request in self._joined:
            del self._joined[request]
        else:
            self._left[request] = None

    def withhold(self, request: Request) -> None:
        """The last step gave a decoding request no token, because its copy failed."""
        self._bucket(request).pop(request)
        self._offset_sum -= 1
        request.withhold_token()
        self._bucket(request)[request] = None

    def growing(self) -> dict[Request, None]:
        """Decoding requests whose next token needs a new block."""
        return self._growth[self.clock.count % self.settings.block_size]

    def filling(self) -> dict[Request, None]:
        """Decoding requests whose next token fills a block."""
        return self._growth[(self.clock.count + 1) % self.settings.block_size]

    def next_fill(self) -> int | None:
        """The first step after the one being planned in which somebody of the batch fills a block, if
        none of them leaves; None if nobody decodes."""
        size = self.settings.block_size
        for ahead in range(1, size + 1):
            if self._growth[(self.clock.count + ahead + 1) % size]:
                return self.step + ahead
        return None

    def standing_batch(self, *, by_id: bool = False) -> Batch | None:
        """The decode batch; the same object while its members and their order are the same.

        `by_id`: list it by request id and not in queue order. Growth keeps queue order.
        """
        running = self.running
        if not running:
            return None
        ids = [request.request_id for request in running]
        if by_id:
            ids.sort()
        batch = self._batch
        if batch is None or self._joined or self._left or batch.decode != tuple(ids):
            for position, request in enumerate(running):
                request.position = position
            batch = self._batch = Batch(
                tuple(ids),
                self._offset_sum + len(running) * self.clock.count,
                tuple([request.request_id for request in self._joined]),
                tuple([request.request_id for request in self._left]),
            )
            self._joined.clear()
            self._left.clear()
        return batch

    def _bucket(self, request: Request) -> dict[Request, None]:
        """Of a decoding request: those that need a block in the same steps."""
        return self._growth[(1 - request.offset) % self.settings.block_size]

    # ------------------------------------------------------------------ ranks

    def refresh_ranks(self) -> None:
        """Ask the order for every live request's key again, and sort if one has changed."""
        key_of, now_ns = self.order.key, self.now_ns
        is_sorted = True
        for request in self.ranked:
            key = key_of(request, now_ns)
            if key != request.rank[0]:
                request.rank = (key, request.arrival_ns, request.request_id)
                is_sorted = False
        if not is_sorted:
            self.ranked.sort(key=rank_of)

    def rerank(self, request: Request) -> None:
        """The same for one that is no longer live, and whose conversation is idle."""
        key = self.order.key(request, self.now_ns)
        request.rank = (key, request.arrival_ns, request.request_id)

    # ------------------------------------------------------------------ laws

    def check_counts(self) -> None:
        """No more run than may. Raises InvariantError."""
        if len(self.running) > self.settings.max_num_seqs:
            raise InvariantError(
                f"{len(self.running)} requests run, limit {self.settings.max_num_seqs}"
            )

    def check(self) -> None:
        """One total order over exactly the live requests; batch, growth buckets and token sum are the
        same set of requests. Raises InvariantError."""
        self.check_counts()
        if len(self.ranked) != len(self.live):
            raise InvariantError(f"{len(self.ranked)} ranked, {len(self.live)} live")
        for before, after in pairwise(self.ranked):
            if not before.rank < after.rank:
                raise InvariantError(f"{before!r} does not rank before {after!r}")
        decoding = [request for request in self.live.values() if request.is_decoding]
        if sorted(r.request_id for r in decoding) != sorted(r.request_id for r in self.running):
            raise InvariantError("the batch is not the requests that decode")
        if sum(map(len, self._growth)) != len(decoding):
            raise InvariantError("growth buckets do not hold the batch")
        for request in decoding:
            if request not in self._bucket(request):
                raise InvariantError(f"{request!r} is in the wrong growth bucket")
        if sum(request.offset for request in decoding) != self._offset_sum:
            raise InvariantError("the sum of offsets is not the batch's")


def in_batch_order(requests: Iterable[Request]) -> list[Request]:
    """Requests of the standing batch, sorted as they stand there."""
    return sorted(requests, key=_position)


def _position(request: Request) -> int:
    return request.position
