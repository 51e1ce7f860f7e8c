"""The simulated device: how long a step takes, and who is done with it.

It alone knows output lengths. Completions are looked up by the count of decode steps, so a step in
which nothing changes costs the same for one request as for a hundred.
"""

from __future__ import annotations

import runs.loop
from policy.plan import Batch, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from sim.costs import DECODE_SHIFT, StepCosts
from traces.workload import Turn


class Served(runs.loop.Served):
    """A turn being served. While it decodes, `produced` is as of `decodes_since`, a count of decode
    steps, and `done_at` is the one that completes it; both are -1 otherwise."""

    __slots__ = ("decodes_since", "done_at")

    def __init__(self, turn: Turn, arrival_ns: int, request: Request, target: int) -> None:
        super().__init__(turn, arrival_ns, request, target)
        self.decodes_since = self.done_at = -1


class Device:
    """Steps of one accelerator. `count` is the number of decode steps it has run."""

    def __init__(self, costs: StepCosts, scheduler: Scheduler) -> None:
        self._costs = costs
        self._scheduler = scheduler
        self.served: dict[str, Served] = {}
        self.count = 0
        self.batch: Batch | None = None
        self.batch_size = 0
        self.kv_tokens = 0
        self._uneven = 0  # its longest context times its size, less its KV tokens
        self._at_none = self._per_token = 0  # of a decode step as a line over its KV tokens
        self._done_at: dict[int, dict[str, None]] = {}
        self.largest_batch = 0
        self._largest_kv_tokens = 0  # of the batches before this one
        self.largest_prefill = 0

    @property
    def largest_kv_tokens(self) -> int:
        """KV tokens of the largest decode step; a batch that stands grows until its last one."""
        return max(self._largest_kv_tokens, self.kv_tokens)

    def decode_ns(self, batch: Batch) -> int:
        """Duration of the next decode step; follows who joined and left since the last one."""
        if batch is self.batch:
            self.kv_tokens += self.batch_size
        else:
            self._change(batch)
        return (self._at_none + self._per_token * self.kv_tokens) >> DECODE_SHIFT

    def prefill_ns(self, plan: Plan) -> int:
        return self._costs.prefill_ns(self._prompts(plan))

    def mixed_ns(self, plan: Plan, batch: Batch) -> int:
        """Duration of a step in which the batch decodes beside prompts."""
        self.decode_ns(batch)
        size, kv_tokens = self.batch_size, self.kv_tokens
        return self._costs.mixed_ns(size, kv_tokens, self._uneven, self._prompts(plan))

    def _prompts(self, plan: Plan) -> list[tuple[int, int]]:
        """(new tokens, tokens already there) of each prompt, or of the chunk of it."""
        computed = self._scheduler.num_computed
        lengths = [(new, computed(request_id)) for request_id, new in plan.prefill]
        self.largest_prefill = max(self.largest_prefill, sum(new for new, _ in lengths))
        return lengths

    def end_decode(self) -> tuple[str, ...]:
        """A decode step has ended: who is done, in id order."""
        done = self._done_at.pop(self.count, None)
        self.count += 1
        if done is None:
            return ()
        finished = [name for name in done if self._is_done_at(name, self.count - 1)]
        finished.sort()
        return tuple(finished)

    def end_prefill(self, plan: Plan, lost: set[str], end_ns: int) -> tuple[str, ...]:
        """A step with prompts has ended: each of which all is computed has its next token, but for
        the `lost` ones."""
        finished = []
        for request_id, count in plan.prefill:
            if request_id in lost or not self.completes(request_id, count):
                continue
            served = self.served[request_id]
            self.leave(served)  # it may have been preempted since the last decode step
            served.produced += 1
            if served.first_token_ns is None:
                served.first_token_ns = end_ns
            if served.produced == served.target:
                finished.append(request_id)
        finished.sort()
        return tuple(finished)

    def completes(self, request_id: str, count: int) -> bool:
        """Whether `count` more tokens are all that is left to prefill: the step yields a token."""
        scheduler = self._scheduler
        return scheduler.num_computed(request_id) + count == scheduler.num_tokens(request_id)

    def withhold(self, request_id: str) -> None:
        """The step just ended gave this decoding request no token."""
        served = self.served[request_id]
        served.produced -= 1

    def produced(self, served: Served) -> int:
        """Output tokens so far."""
        if served.decodes_since < 0:
            return served.produced
        return served.produced + self.count - served.decodes_since

    def leave(self, served: Served) -> None:
        """It decodes no longer."""
        if served.decodes_since >= 0:
            served.produced = self.produced(served)
            served.decodes_since = served.done_at = -1

    def _is_done_at(self, request_id: str, count: int) -> bool:
        served = self.served.get(request_id)
        return served is not None and served.done_at == count

    def _change(self, batch: Batch) -> None:
        """A new batch stands. Whoever left and came back is in both lists."""
        for request_id in batch.left:
            served = self.served.get(request_id)
            if served is not None:
                self.leave(served)
        for request_id in batch.joined:
            served = self.served[request_id]
            served.decodes_since = self.count
            served.done_at = self.count + served.target - served.produced - 1
            self._done_at.setdefault(served.done_at, {})[request_id] = None
        self._largest_kv_tokens = self.largest_kv_tokens
        self.batch = batch
        self.batch_size = len(batch.decode)
        self.kv_tokens = batch.kv_tokens
        self._uneven = uneven = 0
        if self._costs.asks_longest:
            longest = max(map(self._scheduler.num_tokens, batch.decode))
            self._uneven = uneven = longest * self.batch_size - self.kv_tokens
        self._at_none, self._per_token = self._costs.decode_line(self.batch_size, uneven)
        self.largest_batch = max(self.largest_batch, self.batch_size)
