"""A machine made of tags: it knows what every slot of both pools holds, so it catches wrong KV.

Each token of each request has a tag; a next turn's prompt repeats its parent's tags as far as the
workload says. The machine writes tags where the scheduler's block tables say, moves them as copies
say, at any moment the plan allows, and checks before every step that a request finds its own tags.
Copies that no step waits for end in FIFO order per direction, after a number of steps that the test
chooses. This is the simulator's and the executor's contract in its smallest form.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from policy.plan import Copy, CopyResult, Direction, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from tests.helpers.watchdog import NoProgress, Watchdog

Tag = tuple[str, int]


@dataclass
class Turn:
    """What the test wants served."""

    request_id: str
    arrival_ns: int
    input_tokens: int
    output_tokens: int
    session_id: str = ""
    parent_id: str | None = None
    parent_prefix_tokens: int | None = None
    client_id: str | None = None
    priority: int = 0
    opening: tuple[str, int] = ("", 0)  # tokens it begins with, which others begin with too


@dataclass
class _Served:
    turn: Turn
    tags: list[Tag]
    produced: int = 0


@dataclass
class _Moving:
    copy: Copy
    left: int
    early: bool  # the bytes are read when it starts, not when it ends
    source: list[list[Tag | None]] = field(default_factory=list)
    cancelled: bool = False


class WrongKV(AssertionError):
    """A request would have computed on KV that is not its own."""


class ShadowMachine:
    """Executes plans on tags. `fail(copy)` decides which copies fail."""

    def __init__(self, scheduler: Scheduler, rng: random.Random, fail=lambda _copy: False) -> None:
        self.scheduler = scheduler
        self.rng = rng
        self.fail = fail
        settings = scheduler.settings
        self.size = settings.block_size
        self.device: list[list[Tag | None]] = [
            [None] * self.size for _ in range(settings.device_blocks)
        ]
        self.host: list[list[Tag | None]] = [
            [None] * self.size for _ in range(settings.host_blocks)
        ]
        self.now_ns = 0
        self.served: dict[str, _Served] = {}
        self.contexts: dict[str, list[Tag]] = {}  # finished turns
        self.finished: dict[str, int] = {}
        self.rejected: dict[str, str] = {}
        self.moving: dict[Direction, deque[_Moving]] = {d: deque() for d in Direction}
        self.moved_blocks = dict.fromkeys(Direction, 0)
        self.done: list[CopyResult] = []

    def arrive(self, turn: Turn) -> None:
        parent = self.contexts.get(turn.parent_id or "", [])
        shared = len(parent)
        if turn.parent_prefix_tokens is not None:
            shared = min(shared, turn.parent_prefix_tokens)
        tags = parent[: min(shared, turn.input_tokens)]
        if not tags:
            name, length = turn.opening
            tags = [(name, i) for i in range(min(length, turn.input_tokens))]
        tags += [(turn.request_id, i) for i in range(len(tags), turn.input_tokens)]
        self.served[turn.request_id] = _Served(turn, tags)
        self.scheduler.add(
            Request(
                turn.request_id,
                arrival_ns=turn.arrival_ns,
                input_tokens=turn.input_tokens,
                session_id=turn.session_id or None,
                parent_id=turn.parent_id,
                parent_prefix_tokens=turn.parent_prefix_tokens,
                client_id=turn.client_id,
                priority=turn.priority,
                prefix_keys=self._keys(tags),
            ),
            self.now_ns,
        )

    def _keys(self, tags: list[Tag]) -> tuple[str, ...]:
        """Names of the full blocks: what they hold."""
        if not self.scheduler.system.shares_prefixes:
            return ()
        size = self.scheduler.settings.prefix_block or self.size
        return tuple(str(tags[i : i + size]) for i in range(0, len(tags) - size + 1, size))

    def execute(self, plan: Plan) -> Outcome:
        failed: list[CopyResult] = []
        for copy_id in plan.cancel:
            for queue in self.moving.values():
                for moving in queue:
                    if moving.copy.copy_id == copy_id:
                        moving.cancelled = True
        for request_id, why in plan.reject:
            self.rejected[request_id] = why
            self.served.pop(request_id)
        for copy in plan.copies:
            self.moved_blocks[copy.direction] += copy.num_blocks
        stores = [c for c in plan.copies if c.direction is Direction.TO_HOST]
        loads = [c for c in plan.copies if c.direction is Direction.TO_DEVICE]
        waits = set(plan.wait_for)
        self._begin(stores)
        self._settle(Direction.TO_HOST, waits, failed)
        self._begin(loads)
        self._settle(Direction.TO_DEVICE, waits, failed)
        assert not waits, f"waits for copies that are not in flight: {waits}"
        lost = {r.copy_id for r in failed if not r.ok}
        lost_requests = {c.request_id for c in loads if c.copy_id in lost}
        start = self.now_ns
        tokens, finished = [], []
        if plan.runs:
            self.now_ns += self.rng.randrange(1, 5)
            chunks = set()
            for request_id, count in plan.prefill:
                if request_id in lost_requests:
                    tokens.append((request_id, 0))
                else:
                    past = self.scheduler.num_computed(request_id)
                    if past + count < len(self.served[request_id].tags):
                        chunks.add(request_id)
                    self._compute(request_id, past, count)
                    tokens.append((request_id, 1))
            for request_id in plan.batch.decode if plan.batch else ():
                if request_id in lost_requests:
                    tokens.append((request_id, 0))
                else:
                    self._compute(request_id, len(self.served[request_id].tags) - 1, 1)
                    tokens.append((request_id, 1))
            for request_id, count in tokens:
                if count and request_id not in chunks:
                    served = self.served[request_id]
                    served.tags.append((request_id, len(served.tags)))
                    served.produced += 1
                    if served.produced == served.turn.output_tokens:
                        finished.append(request_id)
                        self.contexts[request_id] = self.served.pop(request_id).tags
                        self.finished[request_id] = self.now_ns
        results = failed + self.poll()
        as_planned = all(count for _, count in tokens) and self.rng.random() < 0.7
        return Outcome(
            plan.runs,
            start,
            self.now_ns,
            None if as_planned else tuple(tokens),
            tuple(finished),
            tuple(results),
        )

    def poll(self, *, force: bool = False) -> list[CopyResult]:
        """Copies that end now, in FIFO order per direction. `force`: at least one."""
        results = []
        for queue in self.moving.values():
            if force and queue:
                queue[0].left = 0
            while queue and queue[0].left <= 0:
                results.append(self._end(queue.popleft()))
                force = False
            if queue:
                queue[0].left -= 1
        return results

    def _begin(self, copies: list[Copy]) -> None:
        for copy in copies:
            moving = _Moving(copy, self.rng.randrange(0, 4), self.rng.random() < 0.5)
            moving.source = [list(slots) for slots in self._sources(copy)]
            self.moving[copy.direction].append(moving)

    def _settle(self, direction: Direction, waits: set[int], failed: list[CopyResult]) -> None:
        """End what this step waits for; what was submitted before it ends first."""
        queue = self.moving[direction]
        while any(m.copy.copy_id in waits for m in queue):
            moving = queue.popleft()
            waits.discard(moving.copy.copy_id)
            failed.append(self._end(moving))

    def _end(self, moving: _Moving) -> CopyResult:
        copy = moving.copy
        ok = not moving.cancelled and not self.fail(copy)
        if ok or (moving.cancelled and self.writes_after_all()):
            now = [list(slots) for slots in self._sources(copy)]
            source = moving.source if moving.early else now
            for (device, host, length), base in self._spans(copy):
                for i in range(length):
                    target = (
                        self.host[host + i]
                        if copy.direction is Direction.TO_HOST
                        else self.device[device + i]
                    )
                    target[:] = source[base + i]
        elif copy.direction is Direction.TO_DEVICE:
            for device, _host, length in copy.runs:
                for i in range(length):
                    self.device[device + i][:] = [None] * self.size
        return CopyResult(copy.copy_id, ok, self.now_ns)

    def writes_after_all(self) -> bool:
        """Whether a cancelled copy had been submitted already: it moves what is there by now."""
        return self.rng.random() < 0.5

    def _spans(self, copy: Copy):
        base = 0
        for run in copy.runs:
            yield run, base
            base += run[2]

    def _sources(self, copy: Copy) -> list[list[Tag | None]]:
        pool = self.device if copy.direction is Direction.TO_HOST else self.host
        side = 0 if copy.direction is Direction.TO_HOST else 1
        return [pool[run[side] + i] for run in copy.runs for i in range(run[2])]

    def _compute(self, request_id: str, past: int, count: int) -> None:
        """Compute KV of `count` tokens behind `past`, after checking that all before are right."""
        served = self.served[request_id]
        total = len(served.tags)
        assert self.scheduler.num_tokens(request_id) == total
        table = self.scheduler.block_table(request_id)
        assert len(table) >= -(-total // self.size), f"{request_id}: table too short"
        for position in range(past + count):
            slots = self.device[table[position // self.size]]
            if position >= past:
                slots[position % self.size] = served.tags[position]
            elif slots[position % self.size] != served.tags[position]:
                raise WrongKV(
                    f"{request_id} position {position} of {total}: block"
                    f" {table[position // self.size]} holds {slots[position % self.size]},"
                    f" not {served.tags[position]}"
                )


def serve(
    machine: ShadowMachine,
    turns: list[Turn],
    *,
    check=None,
    max_plans: int = 100_000,
    patience: int = 200,
) -> list[Plan]:
    """Serve all turns to the end. A turn with a parent arrives once its parent has ended.

    Raises NoProgress after `patience` plans in a row from which nobody gained anything.
    """
    scheduler = machine.scheduler
    watchdog = Watchdog(scheduler, patience)
    waiting = sorted(turns, key=lambda t: (t.arrival_ns, t.request_id))
    plans: list[Plan] = []
    for _ in range(max_plans):
        due = [
            t
            for t in waiting
            if t.arrival_ns <= machine.now_ns
            and (
                t.parent_id is None
                or t.parent_id in machine.finished
                or t.parent_id in machine.rejected
            )
        ]
        for turn in due:
            machine.arrive(turn)
            waiting.remove(turn)
        plan = scheduler.schedule(machine.now_ns)
        watchdog.look(plan)
        plans.append(plan)
        if check is not None:
            check(scheduler)
        if plan.is_numbered or plan.has_commands:
            scheduler.update(machine.execute(plan))
        elif any(machine.moving.values()):
            results = machine.poll(force=True)
            now = machine.now_ns
            scheduler.update(Outcome(False, now, now, None, (), tuple(results)))
        elif not waiting and not scheduler.num_live:
            return plans
        elif not waiting:
            raise NoProgress(f"nothing is under way; the plan waits on {plan.waiting_on}")
        else:
            machine.now_ns = max(machine.now_ns + 1, min(t.arrival_ns for t in waiting))
        if check is not None:
            check(scheduler)
    raise AssertionError(f"not done after {max_plans} plans: {scheduler.num_live} live")
