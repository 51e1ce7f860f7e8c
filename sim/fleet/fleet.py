"""The gateway: turns arrive, a router says where they go, replicas serve them.

One SimPy clock over engines unchanged. At one instant: copies end, turns arrive and are routed in
(arrival, id) order, then steps end. What a step's end lets come is routed before its engine plans again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import simpy

from policy.errors import InvariantError, ProgressError
from policy.routing.base import Router
from policy.routing.view import Choice, ReplicaState, ReplicaView, RoutedView
from runs.fleet_lines import Lines, Row
from runs.lineages import Names
from runs.turns import NEVER, Arrival, TurnDriver
from sim.clock import Clock
from sim.engine import Engine
from sim.fleet.ancestry import Ancestry
from sim.fleet.inbox import Inbox
from sim.fleet.telemetry import NOTHING_HEARD, Probe


@dataclass
class Member:
    """One replica. `probe`: where the router reads signals."""

    number: int
    name: str
    group: str
    inbox: Inbox
    engine: Engine
    probe: Probe | None
    state: ReplicaState = ReplicaState.READY

    @property
    def num_here(self) -> int:
        """Turns that were sent here and have not ended."""
        return self.inbox.num_waiting + len(self.engine.served)

    def view(self) -> ReplicaView:
        """As a router sees it now."""
        signals = NOTHING_HEARD if self.probe is None else self.probe.read()
        return ReplicaView(self.number, self.name, self.group, self.state, *signals)


class Fleet:
    """Everything between clients and engines. `names`: of a prompt's blocks, None where the router asks
    for none; `block_tokens`: of one of them; `delay_ns`: no signal is younger."""

    def __init__(
        self,
        clock: Clock,
        driver: TurnDriver,
        router: Router,
        lines: Lines,
        *,
        names: Names | None,
        block_tokens: int,
        delay_ns: int,
        is_checked: bool,
    ) -> None:
        self.clock = clock
        self.driver = driver
        self.router = router
        self.members: list[Member] = []
        self.num_routed = 0
        self.num_ended = 0
        self._lines = lines
        self._names = names
        self._block_tokens = block_tokens
        self._delay_ns = delay_ns
        self._is_checked = is_checked
        self._ancestry = Ancestry()
        self._where: dict[str, int] = {}  # turns under way -> replica
        self._views: list[ReplicaView] | None = None  # while they cannot change
        self._armed_ns = NEVER
        router.begin(block_tokens)

    # ------------------------------------------------------------------ the run

    def run(self) -> None:
        """Serve until nothing can happen any more. Raises ProgressError if somebody waits for ever."""
        processes = []
        for member in self.members:
            processes.append(self.clock.process(member.engine.run()))
            processes[-1].callbacks.append(self._stopped(member))
        self._arm()
        self.clock.run()
        for member, process in zip(self.members, processes, strict=True):
            if process.is_alive and member.engine.scheduler.num_live:
                raise ProgressError(f"{member.name} waits for ever")
        self.check_end()

    def _stopped(self, member: Member) -> Callable[[simpy.Event], None]:
        def stopped(_event: simpy.Event) -> None:
            """Its engine gave up, as vLLM 0.3.3's may: nobody is sent there any more."""
            if member.engine.verdict is None:
                return
            member.state, self._views = ReplicaState.DOWN, None
            for name in [name for name, at in self._where.items() if at == member.number]:
                del self._where[name]
                self._told_ended(name)
            self._lines.happened("down", member.number, self.clock.now)
            self.router.down(member.number, self.clock.now)

        return stopped

    @property
    def is_over(self) -> bool:
        """Nothing will be sent any more."""
        return self.driver.is_done

    # ------------------------------------------------------------------ turns come and go

    def route_due(self) -> None:
        """Send what has arrived by now, in (arrival, id) order."""
        for arrival in self.driver.due(self.clock.now):
            self._route(arrival)
        self._after()

    def ended(self, replica: int, request_id: str, now_ns: int) -> None:
        """A reply has ended there, or its turn was rejected or cancelled."""
        at = self._where.pop(request_id, None)
        if at != replica:
            raise InvariantError(f"{request_id} ended at replica {replica} and was sent to {at}")
        self.num_ended += 1
        self._told_ended(request_id)
        self.driver.ended(request_id, now_ns)
        self._after()

    def first_token(self, request_id: str) -> None:
        """A reply begins; recomputed prompts are told of again, which changes nothing."""
        self._lines.happened("first_token", request_id, self.clock.now)
        self.router.first_token(request_id, self.clock.now)

    def _told_ended(self, request_id: str) -> None:
        self._lines.happened("ended", request_id, self.clock.now)
        self.router.ended(request_id, self.clock.now)

    def _after(self) -> None:
        if self.driver.is_done:
            for member in self.members:
                member.inbox.close()
        self._arm()

    def _arm(self) -> None:
        """Be there when the next turn arrives."""
        wanted = max(self.driver.next_ns, self.clock.now)
        if wanted < min(self._armed_ns, NEVER):
            self._armed_ns = wanted
            event = self.clock.timeout(wanted - self.clock.now)
            event.callbacks.append(self._fired)

    def _fired(self, _event: simpy.Event) -> None:
        if self._armed_ns <= self.clock.now:
            self._armed_ns = NEVER
        if self.driver.next_ns <= self.clock.now:
            self.route_due()
        else:
            self._arm()

    # ------------------------------------------------------------------ one decision

    def _route(self, arrival: Arrival) -> None:
        now, turn = self.clock.now, arrival.turn
        request = RoutedView(
            turn.request_id,
            turn.session_id,
            turn.client_id or turn.session_id,
            turn.turn,
            turn.input_tokens,
            self._blocks(arrival),
        )
        views = self._seen()
        choice = self.router.route(request, views, now)
        lost = 0
        if choice.replica is not None:
            member = self.members[choice.replica]
            given, lost = self._ancestry.seen_by(arrival, member.number)
            self._send(arrival, given, request, member)
        self._lines.routed(_row(arrival, request, choice, views, now, lost), request, views, choice)

    def _send(self, arrival: Arrival, given: Arrival, request: RoutedView, member: Member) -> None:
        name = arrival.request_id
        if name in self._where:
            raise InvariantError(f"{name} is at replica {self._where[name]} and sent to another")
        if member.state is not ReplicaState.READY:
            raise InvariantError(f"{name} is sent to {member.name}, which is {member.state.value}")
        self._ancestry.served(arrival, member.number)
        self._where[name] = member.number
        self.router.sent(request, member.number, self.clock.now)
        member.inbox.push(given)
        self.num_routed += 1
        if self._is_checked:
            self._check_books(member)

    def _blocks(self, arrival: Arrival) -> tuple[object, ...]:
        if self._names is None:
            return ()
        names = self._names(arrival)
        assert names is not None
        return tuple([names[i] for i in range(arrival.turn.input_tokens // self._block_tokens)])

    def _seen(self) -> list[ReplicaView]:
        """All replicas as the router sees them now. Raises InvariantError for a view that is too young."""
        if self._views is not None:
            return self._views
        views = [member.view() for member in self.members]
        if not self.router.reads_signals:
            self._views = views
        elif self._is_checked:
            limit = max(-1, self.clock.now - self._delay_ns)  # -1: nothing was heard yet
            for view in views:
                if max(view.waiting.seen_ns, view.running.seen_ns, view.kv_share.seen_ns) > limit:
                    raise InvariantError(f"{view.name} is seen as it was after {limit} ns")
        return views

    # ------------------------------------------------------------------ laws

    def _check_books(self, member: Member) -> None:
        """The router's books are the member's. Raises InvariantError."""
        written = self.router.books.load(member.number).requests
        if written != member.num_here:
            raise InvariantError(
                f"{member.name}: the router has {written} under way there, and {member.num_here} are"
            )

    def check_end(self) -> None:
        """Every turn that was sent ended once, where it was sent, or is with an engine that gave up.
        Raises InvariantError."""
        if self._where:
            raise InvariantError(f"{len(self._where)} turns never ended, {min(self._where)} first")
        if all(member.engine.verdict is None for member in self.members):
            served = sum(member.engine.num_ended for member in self.members)
            if not self.num_routed == self.num_ended == served:
                raise InvariantError(
                    f"{self.num_routed} turns were sent, {self.num_ended} ended, replicas served {served}"
                )
        for member in self.members:
            self._check_books(member)


def _row(
    arrival: Arrival,
    request: RoutedView,
    choice: Choice,
    views: list[ReplicaView],
    now_ns: int,
    lost: int,
) -> Row:
    """A row of routing.parquet."""
    scores = dict(choice.scores)
    second = choice.second
    heard = [view.waiting.seen_ns for view in views]
    oldest = min(heard)
    return Row(
        request.request_id,
        request.attempt,
        arrival.arrival_ns,
        now_ns,
        choice.replica,
        second,
        None if choice.replica is None else scores.get(choice.replica),
        None if second is None else scores[second],
        choice.why,
        None if oldest < 0 else now_ns - oldest,
        lost,
    )
