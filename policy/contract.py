"""What every order must keep to, as a suite that says in words what is broken.

    from policy.contract import check
    check(MyOrder)

`check` makes fresh orders, serves a small crowd with each on a machine whose memory is short, and asks:

* **form**: every key is a tuple of numbers, none of them NaN; no method raises;
* **no mutation**: nothing that the order was shown is changed;
* **a key is a question**: asked twice at one moment, it has one answer;
* **determinism**: same events, same keys, in another process too: nothing hangs on id(), hash(), the
  order of a set, a clock, global random numbers, or on what an earlier run left behind. A clock that
  stands still for the half second this takes goes unseen;
* **safety**: after every step all laws of `policy.integrity` hold;
* **progress**: once arrivals stop, everybody is served;
* **bounded parkings**: nobody is parked more often than planner rule 10 allows.

The last three are promises of the planner, which an order can at worst make it keep slowly; they are
asked of the two together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import zip_longest
from typing import NamedTuple

from policy.errors import ConfigError, FastSwitchError, InvariantError, ProgressError
from policy.integrity import check_integrity
from policy.orders.base import Key, Order
from policy.orders.guard import Guarded, Maker, maker_of
from policy.plan import Copy, CopyResult, Direction, Outcome, Plan
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import SYSTEMS, System
from policy.views import RequestView

#: Swapping that steps wait for, that they overlap with, and recomputing instead.
WORLDS = (
    SYSTEMS["+groups"],
    SYSTEMS["fastswitch"],
    replace(SYSTEMS["+groups"], name="recompute", preemption="recompute"),
)
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


def check(given: object, name: str = "the order") -> None:
    """Raise ConfigError naming every promise that an order breaks, in at most five lines.

    `given`: an Order, or what makes one (`policy.orders.guard.maker_of`).
    """
    found = violations(given, name)
    if found:
        raise ConfigError("\n".join(found[:5]))


def violations(given: object, name: str = "the order") -> list[str]:
    """Every promise that an order breaks, in words; an empty list if it keeps them all."""
    try:
        maker = maker_of(given)
    except ConfigError as error:
        return [str(error)]
    found: list[str] = []
    for system in WORLDS:
        for problem in _violations_in(maker, name, system):
            if problem not in found:
                found.append(problem)
    return found


class _Answer(NamedTuple):
    """One question and what the order said."""

    request_id: str
    now_ns: int
    key: Key


class _Witness(Order):
    """Asks twice and writes down what was answered."""

    def __init__(self, order: Guarded) -> None:
        self.name = order.name
        self.refreshes = order.refreshes
        self.answers: list[_Answer] = []
        self.kept: list[RequestView] = []  # alive, so that the next crowd has other ids
        self._order = order

    def arrived(self, request: RequestView, now_ns: int) -> None:
        self._order.arrived(request, now_ns)
        self.kept += [request, self._order.views[request.request_id]]

    def left(self, request: RequestView, now_ns: int) -> None:
        self._order.left(request, now_ns)

    def update(self, index: int, now_ns: int) -> None:
        self._order.update(index, now_ns)

    def key(self, request: RequestView, now_ns: int) -> Key:
        key = self._order.key(request, now_ns)
        again = self._order.key(request, now_ns)
        if again != key:
            raise ConfigError(
                f"order {self.name}: asked twice for the key of {request.request_id} at one moment,"
                f" it said {key} and then {again}; a key must change nothing"
            )
        self.answers.append(_Answer(str(request.request_id), now_ns, key))
        return key


class _Salted(str):
    """Text that is equal to itself and hashes as it might in another process."""

    __slots__ = ()

    def __hash__(self) -> int:
        return str.__hash__(self) ^ 0x2545F4914F6CDD1D


def _violations_in(maker: Maker, name: str, system: System) -> list[str]:
    try:
        first = _served(maker, name, system, str)
    except ConfigError as error:
        return [str(error)]
    except FastSwitchError as error:
        return [_of_the_planner(name, system, error)]
    try:
        second = _served(maker, name, system, _Salted)
    except FastSwitchError:
        # Text made from an id hashes as ever, so an order that looks one up by the other trips here
        # and nowhere else. What is left to ask is whether it says the same again.
        try:
            second = _served(maker, name, system, str)
        except FastSwitchError as error:
            return [f"order {name}: served the same crowd again, it failed: {error}"]
    for one, other in zip_longest(first.answers, second.answers):
        if one != other:
            return [_differing(name, one, other)]
    return []


def _of_the_planner(name: str, system: System, error: FastSwitchError) -> str:
    promise = "progress" if isinstance(error, ProgressError) else "safety"
    return f"order {name}: {promise} is lost under {system.name}: {error}"


def _differing(name: str, one: _Answer | None, other: _Answer | None) -> str:
    said = " and then ".join(
        "nothing" if a is None else f"{a.key} for {a.request_id} at {a.now_ns} ns"
        for a in (one, other)
    )
    return (
        f"order {name}: it is not deterministic: serving the same crowd twice, it said {said}; it must"
        " not hang on id(), hash(), the order of a set, a clock, or random numbers other than draw()"
    )


# ---------------------------------------------------------------------- a crowd and a machine


class _Turn(NamedTuple):
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


def _draw(purpose: str, name: str, k: int, /) -> int:
    digest = blake2b(f"{purpose}|{name}|{k}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def crowd(text: Callable[[str], str] = str) -> list[_Turn]:
    """Conversations of one to three turns of three clients, in bursts; a turn repeats its parent's
    context."""
    turns: list[_Turn] = []
    for index in range(CONVERSATIONS):
        session, parent = f"c{index}", None
        is_late = index == CONVERSATIONS - 1  # after everybody else has gone
        arrival, context = 4_000_000 * (1000 if is_late else index // 3), 0
        for turn in range(1, 2 + index % 3):
            prompt = context + 3 + _draw("prompt", session, turn) % 18
            reply = 1 + _draw("reply", session, turn) % 14
            name = f"{session}/{turn}"
            turns.append(
                _Turn(
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


def _served(maker: Maker, name: str, system: System, text: Callable[[str], str]) -> _Witness:
    """The order after it has served everybody. Raises FastSwitchError for a promise it broke."""
    try:
        made = maker(_draw)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"order {name}: making it raised {error!r}") from error
    witness = _Witness(Guarded(name, made))
    _Machine(Scheduler(SETTINGS, system, witness, _draw), crowd(text)).serve()
    return witness


class _Machine:
    """Executes plans. A step takes a millisecond; a copy that no step waits for ends two polls later."""

    POLLS = 2

    def __init__(self, scheduler: Scheduler, turns: Sequence[_Turn]) -> None:
        self.scheduler = scheduler
        self.coming = deque(turns)
        self.now_ns = 0
        self.left: dict[str, int] = {}  # live request -> output tokens it still wants
        self.done: set[str] = set()
        self.moving: dict[Direction, deque[list[int]]] = {way: deque() for way in Direction}
        self.cancelled: set[int] = set()

    def serve(self) -> None:
        """Everybody, to the end. Raises ProgressError, or what a broken law raises."""
        scheduler = self.scheduler
        for _ in range(MAX_PLANS):
            self._arrive()
            plan = scheduler.schedule(self.now_ns)
            check_integrity(scheduler)
            if not (plan.is_numbered or plan.has_commands or any(self.moving.values())):
                if not self.coming and not scheduler.num_live:
                    return
                self.now_ns = max(self.now_ns, self.coming[0].arrival_ns)
                continue
            self._look_at_parkings(plan)
            scheduler.update(self._execute(plan))
            check_integrity(scheduler)
        raise ProgressError(f"after {MAX_PLANS} plans {scheduler.num_live} requests are not served")

    def _arrive(self) -> None:
        later: list[_Turn] = []
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
                ),
                self.now_ns,
            )
        self.coming.extendleft(reversed(later))

    def _look_at_parkings(self, plan: Plan) -> None:
        settings = self.scheduler.settings
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
        finished = tuple([r for r in plan.num_scheduled_tokens if self._gains(r)])
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

    def _gains(self, request_id: str) -> bool:
        self.left[request_id] -= 1
        if self.left[request_id]:
            return False
        del self.left[request_id]
        self.done.add(request_id)
        return True
