"""The crowd that the contract suite serves, and the machine that serves it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from policy.errors import InvariantError, ProgressError
from policy.integrity import check_integrity
from policy.plan import Copy, CopyResult, Direction, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings

SETTINGS = Settings(
    device_blocks=24,
    host_blocks=48,
    block_size=4,
    watermark=0.0,
    max_num_seqs=6,
    max_num_batched_tokens=256,
    max_model_len=256,
    initial_group=4,
    growth_group=2,
    host_increment=2,
    update_every=1,
    max_parkings=2,
    token_quantum=8,
)
CONVERSATIONS = 14
#: Plans in which all of them are served with plenty to spare.
MAX_PLANS = 4000
#: Parkings beyond rule 10's: of a shielded request that had to make room for growth or the leader.
SPARE_PARKINGS = 3


class Salted(str):
    """Text that is equal to itself and hashes as it might in another process."""

    __slots__ = ()

    def __hash__(self) -> int:
        return str.__hash__(self) ^ 0x2545F4914F6CDD1D


class Turn(NamedTuple):
    """What the crowd wants."""

    request_id: str
    session_id: str
    turn: int
    parent_id: str | None
    client_id: str
    arrival_ns: int
    input_tokens: int
    output_tokens: int
    priority: int


def draw(purpose: str, name: str, k: int, /) -> int:
    """64 uniform bits."""
    digest = blake2b(f"{purpose}|{name}|{k}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def crowd(text: Callable[[str], str] = str) -> list[Turn]:
    """Conversations of one to three turns of three clients, in bursts; a turn repeats its parent's
    context."""
    turns: list[Turn] = []
    for index in range(CONVERSATIONS):
        session, parent = f"c{index}", None
        is_late = index == CONVERSATIONS - 1  # after everybody else has gone
        arrival, context = 4_000_000 * (1000 if is_late else index // 3), 0
        for turn in range(1, 2 + index % 3):
            prompt = context + 3 + draw("prompt", session, turn) % 18
            reply = 1 + draw("reply", session, turn) % 14
            name = f"{session}/{turn}"
            turns.append(
                Turn(
                    text(name),
                    text(session),
                    turn,
                    None if parent is None else text(parent),
                    text(f"k{index % 3}"),
                    arrival,
                    prompt,
                    reply,
                    index % 4,
                )
            )
            arrival += 5_000_000
            context, parent = prompt + reply, name
    return sorted(turns, key=lambda turn: (turn.arrival_ns, turn.request_id))


class Machine:
    """Executes plans, with every law checked around each. A step takes a millisecond; a copy that no
    step waits for ends two polls later. `plans`: all that were handed out and did something.
    `checks`: not for a run that repeats one that was checked."""

    POLLS = 2

    def __init__(self, scheduler: Scheduler, turns: Sequence[Turn], *, checks: bool = True) -> None:
        self.scheduler = scheduler
        self._checks = checks
        self.coming = deque(turns)
        self.now_ns = 0
        self.left: dict[str, int] = {}  # live request -> output tokens it still wants
        self.done: set[str] = set()
        self.moving: dict[Direction, deque[list[int]]] = {way: deque() for way in Direction}
        self.cancelled: set[int] = set()
        self.plans: list[Plan] = []

    def serve(self) -> None:
        """Everybody, to the end. Raises ProgressError, or what a broken law raises."""
        scheduler = self.scheduler
        for _ in range(MAX_PLANS):
            self._arrive()
            plan = scheduler.schedule(self.now_ns)
            self._check()
            if not (plan.is_numbered or plan.has_commands or any(self.moving.values())):
                if not self.coming and not scheduler.num_live:
                    return
                self.now_ns = max(self.now_ns, self.coming[0].arrival_ns)
                continue
            self.plans.append(plan)
            self._look_at_parkings(plan)
            scheduler.update(self._execute(plan))
            self._check()
        raise ProgressError(f"after {MAX_PLANS} plans {scheduler.num_live} requests are not served")

    def _check(self) -> None:
        if self._checks:
            check_integrity(self.scheduler)

    def _arrive(self) -> None:
        later: list[Turn] = []
        while self.coming and self.coming[0].arrival_ns <= self.now_ns:
            turn = self.coming.popleft()
            if turn.parent_id is not None and turn.parent_id not in self.done:
                later.append(turn)
                continue
            self.left[turn.request_id] = turn.output_tokens
            self.scheduler.add(
                Request(
                    turn.request_id,
                    arrival_ns=max(turn.arrival_ns, self.now_ns),
                    input_tokens=turn.input_tokens,
                    session_id=turn.session_id,
                    turn=turn.turn,
                    client_id=turn.client_id,
                    parent_id=turn.parent_id,
                    priority=turn.priority,
                    prefix_keys=self._keys(turn),
                ),
                self.now_ns,
            )
        self.coming.extendleft(reversed(later))

    def _keys(self, turn: Turn) -> tuple[str, ...]:
        """All prompts of a client begin alike, where prompts that do share blocks."""
        if not self.scheduler.system.shares_prefixes:
            return ()
        blocks = turn.input_tokens // self.scheduler.settings.block_size
        return tuple(
            f"{turn.client_id if index < 2 else turn.session_id} {index}" for index in range(blocks)
        )

    def _look_at_parkings(self, plan: Plan) -> None:
        settings = self.scheduler.settings
        system = self.scheduler.system
        if system.engine != "ranked" or not system.options.caps_parkings:
            return
        for request_id, _ in plan.preempt:
            request = self.scheduler.request(request_id)
            quanta = 1 + request.num_generated // settings.token_quantum
            limit = settings.max_parkings * quanta + SPARE_PARKINGS
            if request.num_preemptions > limit:
                raise InvariantError(
                    f"{request_id} was parked {request.num_preemptions} times for"
                    f" {request.num_generated} tokens; rule 10 allows {limit}"
                )

    def _execute(self, plan: Plan) -> Outcome:
        start = self.now_ns
        self.cancelled.update(plan.cancel)
        waits = set(plan.wait_for)
        results = []
        for way in (Direction.TO_HOST, Direction.TO_DEVICE):
            self._begin(plan.copies, way)
            queue = self.moving[way]
            while waits.intersection(copy_id for copy_id, _ in queue):
                results.append(self._end(queue))
        if plan.runs:
            self.now_ns += 1_000_000
        chunks = {name for name, count in plan.prefill if self._is_part(name, count)}
        scheduled = [name for name in plan.num_scheduled_tokens if name not in chunks]
        finished = tuple([name for name in scheduled if self._gains(name)])
        for queue in self.moving.values():
            for copy in queue:
                copy[1] -= 1
            while queue and queue[0][1] <= 0:
                results.append(self._end(queue))
        return Outcome(plan.runs, start, self.now_ns, None, finished, tuple(results))

    def _begin(self, copies: Sequence[Copy], way: Direction) -> None:
        self.moving[way].extend([c.copy_id, self.POLLS] for c in copies if c.direction is way)

    def _end(self, queue: deque[list[int]]) -> CopyResult:
        copy_id, _ = queue.popleft()
        return CopyResult(copy_id, copy_id not in self.cancelled, self.now_ns)

    def _is_part(self, request_id: str, count: int) -> bool:
        """A chunk that does not complete its prompt, so that no token comes of it."""
        scheduler = self.scheduler
        return scheduler.num_computed(request_id) + count < scheduler.num_tokens(request_id)

    def _gains(self, request_id: str) -> bool:
        self.left[request_id] -= 1
        if self.left[request_id]:
            return False
        del self.left[request_id]
        self.done.add(request_id)
        return True
