"""Replay: the simulated machine runs again, and only the times are those of a recording.

The engine, the device's count of tokens and completions, the driver of turns and the policy are the
real code. What is put in their way is a clock that shows recorded times, arrivals and cancellations
when they were seen, copies that end when their ends were seen, and output lengths as they turned
out. Every line of decisions.jsonl must come out as it was recorded, whichever machine recorded it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import simpy

from policy.errors import ConfigError, InputError, InvariantError, ProgressError
from policy.plan import Batch, Copy, Plan
from policy.scheduler import Scheduler
from runs.lineages import Names, names_for
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario
from runs.serving import CHUNKED_TOKENS, SEATS, Serving, make_scheduler, settings_for
from runs.turns import NEVER, Arrival, TurnDriver
from runs.user_order import OrderLike, user_order
from sim.clock import Clock
from sim.costs import CopyCost
from sim.device import Device
from sim.engine import Engine, StepEnd
from sim.link import Job
from traces.prefixes import Keys
from traces.randomness import Streams
from traces.strict import quoted, shown
from traces.workload import Header, Turn, Workload

NOTHING = "nothing"


@dataclass(frozen=True)
class Difference:
    """The first thing that came out otherwise. `where` names the line, the copy or the verdict."""

    where: str
    recorded: str
    replayed: str


@dataclass(frozen=True)
class Replayed:
    """How many lines were equal, up to the first difference if there is one."""

    equal_lines: int
    difference: Difference | None


def replay(recording: Recording, scenario: Scenario, order: OrderLike | None = None) -> Replayed:
    """Run a recording again. `order`: the user's own, if the run was made with one.

    Raises ConfigError or InputError for a recording that cannot be replayed.
    """
    notes = _Notes(recording)
    serving = _serving(recording, scenario, notes)
    own = None if order is None else user_order(order)
    scheduler = make_scheduler(serving, None if own is None else own.make(serving.streams))
    made_with = recording.summary.get("order")
    if scheduler.order.name != made_with:
        raise ConfigError(
            f"order: the run was made with '{shown(str(made_with), 200)}', and this is"
            f" {scheduler.order.name}; name a user's own with --order"
        )
    copies = _copies(recording)

    def keys(turn: Turn) -> tuple[int | str, ...]:
        return notes.keys.get(turn.request_id, ())

    return _Replay(
        scheduler,
        RecordedTurns(_turns(recording, notes), notes.last),
        _Tape(_calls(recording, notes, copies), len(copies)),
        copies,
        recording,
        last_turn_known=scenario.last_turn_known,
        keys=keys,
        names=_names(serving, keys, notes),
    ).run()


# ---------------------------------------------------------------------- what was recorded


class Call(NamedTuple):
    """One call of `schedule`. `step` None: its plan got no number. `copies`: ends seen before."""

    step: int | None
    now_ns: int
    end_ns: int
    copies: int


class SeenCopy(NamedTuple):
    """A row of copies.parquet, as far as a replay needs it."""

    copy_id: int
    request_id: str
    direction: str
    blocks: int
    runs: int
    end_ns: int
    seen_step: int
    ok: bool

    @property
    def facts(self) -> str:
        """What the copy was, in words."""
        return _facts(self.request_id, self.direction, self.blocks, self.runs)


def _facts(request_id: str, direction: str, blocks: int, runs: int) -> str:
    return f"{direction} of {request_id}, {blocks} blocks in {runs} runs"


class _Notes:
    """replay.jsonl: the lengths that aged the pools, the links between turns, plans without number.

    Raises InputError for a line that is none of these.
    """

    def __init__(self, recording: Recording) -> None:
        self.aging: list[tuple[int, int]] = []
        self.parents: dict[str, str | None] = {}
        self.last: set[str] = set()
        self.keys: dict[str, tuple[int | str, ...]] = {}  # of those that have any
        self.names: dict[str, list[int]] = {}  # of blocks, where the run named them by their tokens
        self.unnumbered: list[tuple[int, int, int]] = []  # before which step, now_ns, copies seen
        for number, line in enumerate(recording.replay_lines(), start=1):
            try:
                self._read(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                problem = f"replay.jsonl:{number}: {quoted(line)} is not a line of it"
                raise InputError(problem) from None

    def _read(self, row: dict[str, Any]) -> None:
        if "aging" in row:
            self.aging = [(int(prompt), int(reply)) for prompt, reply in row["aging"]]
        elif "request" in row:
            self.parents[row["request"]] = row["parent"]
            if row["last"]:
                self.last.add(row["request"])
            if "names" in row:
                self.names[row["request"]] = [int(name) for name in row["names"]]
            if "keys" in row:
                self.keys[row["request"]] = tuple(
                    key if isinstance(key, str) else int(key) for key in row["keys"]
                )
        else:
            numbers = (int(row["before_step"]), int(row["now_ns"]), int(row["copies"]))
            self.unnumbered.append(numbers)


def _serving(recording: Recording, scenario: Scenario, notes: _Notes) -> Serving:
    """What the scenario resolves to on the machine of the recording; no profile is needed."""
    sizes: dict[str, int] = {}
    for name in ("device_blocks", "host_blocks", "max_model_len"):
        size = recording.summary.get(name)
        if not isinstance(size, int):
            raise InputError(f"run.json: {name} is {quoted(size)}, not a number")
        sizes[name] = size
    if scenario.pool.aging == "churn" and not notes.aging and _rows(recording, "workload"):
        raise InputError("replay.jsonl: does not say which lengths the pools were aged with")
    limits = tuple(
        int(recording.summary.get(name, default))
        for name, default in (("max_num_batched_tokens", CHUNKED_TOKENS), ("max_num_seqs", SEATS))
    )
    settings = settings_for(scenario, **sizes, v1=(limits[0], limits[1]))
    prefixes = recording.summary.get("prefixes")
    if prefixes is not None:
        settings = replace(settings, prefix_block=prefixes["block_tokens"])
    lengths = Workload.of(
        Turn(str(k), str(k), 1, prompt, reply) for k, (prompt, reply) in enumerate(notes.aging)
    )
    return Serving(
        scenario,
        scenario.resolve_system(),
        settings,
        Streams(scenario.seed, scenario.run, scenario.replica),
        lengths,
    )


def _names(serving: Serving, keys: Keys, notes: _Notes) -> Names:
    """The names of blocks: as written down, or by descent as in the simulation that was recorded."""
    by_descent = names_for(serving.system, serving.settings, keys)
    return lambda arrival: notes.names.get(arrival.request_id) or by_descent(arrival)


def _rows(recording: Recording, name: str, *columns: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = recording.table(name, list(columns) or None).to_pylist()
    return rows


def _copies(recording: Recording) -> list[SeenCopy]:
    rows = _rows(recording, "copies", *SeenCopy._fields)
    return [SeenCopy(**row) for row in rows]


def _calls(recording: Recording, notes: _Notes, copies: list[SeenCopy]) -> Iterator[Call]:
    """Every call of `schedule` that mattered, in order."""
    seen = due = 0
    unnumbered = notes.unnumbered
    for step, (number, start_ns, end_ns) in enumerate(_steps(recording)):
        if number != step:
            raise InputError(f"steps.parquet: step {number} where {step} was due")
        while due < len(unnumbered) and unnumbered[due][0] <= step:
            _, now_ns, count = unnumbered[due]
            yield Call(None, now_ns, now_ns, count)
            due += 1
        while seen < len(copies) and copies[seen].seen_step <= step:
            seen += 1
        yield Call(step, start_ns, end_ns, seen)
    for _, now_ns, count in unnumbered[due:]:
        yield Call(None, now_ns, now_ns, count)


def _steps(recording: Recording) -> Iterator[tuple[int, int, int]]:
    """(step, start, end), a few at a time."""
    table = recording.table("steps", ["step", "start_ns", "end_ns"])
    for chunk in table.to_batches(max_chunksize=1 << 12):
        yield from zip(*(column.to_pylist() for column in chunk.columns), strict=True)


def _turns(recording: Recording, notes: _Notes) -> list[Turn]:
    """The turns served, with the arrivals, leaves and output lengths that they turned out to have:
    an open workload, since nothing is left to be found out."""
    starts = recording.table("steps", ["start_ns"])["start_ns"]
    between = {step: now_ns for step, now_ns, _ in reversed(notes.unnumbered)}
    ended = {row["request_id"]: row for row in _rows(recording, "requests")}
    turns = []
    for row in _rows(recording, "workload"):
        name = row["request_id"]
        if name not in ended:
            raise InputError(f"requests.parquet: {quoted(name)} of workload.parquet is missing")
        end = ended[name]
        is_finished, was_cancelled = end["status"] == "finished", end["cancel_ns"] is not None
        turns.append(
            Turn(
                name,
                row["session_id"],
                row["turn"],
                row["input_tokens"],
                end["output_tokens"] if is_finished else row["output_tokens"],
                arrival_ns=end["arrival_ns"],
                parent_id=notes.parents.get(name),
                parent_prefix_tokens=row["parent_prefix_tokens"],
                client_id=row["client_id"],
                priority=row["priority"],
                cancel_ns=(
                    _cancel_ns(end, starts, between) - end["arrival_ns"] if was_cancelled else None
                ),
            )
        )
    turns.sort(key=lambda turn: turn.arrival_ns or 0)  # stable: rows came in the order seen
    return turns


def _cancel_ns(end: dict[str, Any], starts: Any, between: dict[int, int]) -> int:
    """When the client left, moved if it must be so that it is seen before the recorded step and after
    the one before that. `between`: by step, when the first plan without number before it was made.

    Steps that only reject take no time: who came with the end of one may have left by then.
    """
    at, step = int(end["cancel_ns"]), int(end["cancel_seen_step"])
    if step < len(starts):
        at = min(at, starts[step].as_py())
    if 0 < step <= len(starts):
        after = starts[step - 1].as_py() + 1
        soonest = between.get(step, starts[step].as_py() if step < len(starts) else after)
        at = max(at, min(after, soonest))
    return at


# ---------------------------------------------------------------------- the machine's stand-ins


class RecordedClock(Clock):
    """Shows the time it is set to. Nothing that is scheduled on it comes by itself."""

    def schedule(self, event: simpy.Event, priority: int = 1, delay: float = 0) -> None:
        """Forget the event: the recording says what comes next."""

    def show(self, now_ns: int) -> None:
        """It is this late now."""
        self._now = now_ns


class _Tape:
    """The recorded calls, one after the other. `call` is the one being made."""

    def __init__(self, calls: Iterator[Call], num_copies: int) -> None:
        self._calls = calls
        self._num_copies = num_copies
        self.call = next(calls, None)
        self._next = next(calls, None)

    @property
    def copies(self) -> int:
        """Ends of copies seen before the next call."""
        return self._num_copies if self._next is None else self._next.copies

    @property
    def duration(self) -> int:
        """From the call to the end of its step."""
        return 0 if self.call is None else self.call.end_ns - self.call.now_ns

    def advance(self) -> Call:
        """The next call. Raises _Over after the last."""
        if self._next is None:
            raise _Over(None)
        self.call, self._next = self._next, next(self._calls, None)
        return self.call


class _Over(Exception):
    """The replay ends here, at a difference or at the end of the tape."""

    def __init__(self, difference: Difference | None) -> None:
        super().__init__(difference)
        self.difference = difference


class RecordedTurns(TurnDriver):
    """The turns served, at the recorded times. `last`: known to be a conversation's last."""

    def __init__(self, turns: Iterable[Turn], last: set[str]) -> None:
        self._known_last = last
        super().__init__(Workload.of(turns, Header(timing="open")))

    def _accept(self, row: Turn) -> None:
        self._last.clear()  # every parent was written down, and a replica may never have had it
        super()._accept(row)

    def due(self, now_ns: int) -> list[Arrival]:
        return [a._replace(is_last=a.request_id in self._known_last) for a in super().due(now_ns)]

    def _set_next(self) -> None:
        """A run that was stopped may have waited for turns that it never served."""
        super()._set_next()
        self.next_ns = min(self.next_ns, NEVER - 1)


class _NoCosts:
    """The times are known, so nothing is computed and no profile needed."""

    asks_longest = False

    def decode_line(self, batch: int, uneven: int = 0) -> tuple[int, int]:  # noqa: ARG002
        return 0, 0

    def decode_ns(self, batch: int, kv_tokens: int, uneven: int = 0) -> int:  # noqa: ARG002
        return 0

    def prefill_ns(self, lengths: list[tuple[int, int]]) -> int:  # noqa: ARG002
        return 0

    def mixed_ns(self, *what: object) -> int:  # noqa: ARG002
        return 0


class RecordedDevice(Device):
    """The simulated device: it counts tokens and completions; only durations are recorded."""

    def __init__(self, scheduler: Scheduler, tape: _Tape) -> None:
        super().__init__(_NoCosts(), scheduler)
        self._tape = tape

    def decode_ns(self, batch: Batch) -> int:
        super().decode_ns(batch)
        return self._tape.duration

    def prefill_ns(self, plan: Plan) -> int:
        super().prefill_ns(plan)
        return self._tape.duration

    def mixed_ns(self, plan: Plan, batch: Batch) -> int:
        super().mixed_ns(plan, batch)
        return self._tape.duration


class RecordedLink:
    """Copies that end when their ends were seen, well or not as recorded."""

    _FREE = CopyCost(0, 0, 0, 0, 0, 0)

    def __init__(self, clock: RecordedClock, tape: _Tape, seen: list[SeenCopy]) -> None:
        self._clock = clock
        self._tape = tape
        self._seen = seen
        self._num_ended = 0
        self._ended: list[Job] = []
        self.in_flight: dict[int, Job] = {}
        self.on_end: simpy.Event | None = None

    @property
    def ended_jobs(self) -> list[Job]:
        """Jobs whose end was seen before the next plan, in the order seen."""
        while self._num_ended < self._tape.copies:
            self._end(self._seen[self._num_ended])
            self._num_ended += 1
        return self._ended

    def submit(self, copy: Copy, submitter_free_ns: int) -> Job:
        job = Job(copy, self._FREE, self._clock.now, self._clock.event())
        job.submitted_ns = submitter_free_ns
        self.in_flight[copy.copy_id] = job
        return job

    def cancel(self, copy_id: int) -> None:
        """The recording says how the copy ended."""

    def slowdown(self, begin_ns: int, step_ns: int) -> int:  # noqa: ARG002
        """Recorded steps are as slow as they were."""
        return 0

    def check_waits(self) -> None:
        """Raise _Over if a copy that the step had to wait for was not seen to end in it."""
        for job in self.in_flight.values():
            if job.waited:
                raise _Over(
                    Difference(
                        f"copy {job.copy.copy_id}",
                        "was still under way after the step",
                        "the step waits for it",
                    )
                )

    def _end(self, row: SeenCopy) -> None:
        job = self.in_flight.pop(row.copy_id, None)
        replayed = NOTHING if job is None else _facts_of(job.copy)
        if job is None or replayed != row.facts:
            where = f"copy {row.copy_id}, seen before step {row.seen_step}"
            raise _Over(Difference(where, row.facts, replayed))
        job.end_ns, job.ok = row.end_ns, row.ok
        self._ended.append(job)


def _facts_of(copy: Copy) -> str:
    return _facts(copy.request_id, copy.direction.value, copy.num_blocks, len(copy.runs))


# ---------------------------------------------------------------------- the run


def _forget(_row: Iterable[int]) -> None:
    """A row that nobody will read."""


class _Replay(Recorder):
    """One replay. It is the engine's recorder, to compare each line as it is decided, and its
    check, to move the clock on between an update and the next plan."""

    def __init__(
        self,
        scheduler: Scheduler,
        turns: RecordedTurns,
        tape: _Tape,
        copies: list[SeenCopy],
        recording: Recording,
        *,
        last_turn_known: bool,
        keys: Keys,
        names: Names,
    ) -> None:
        super().__init__(decisions=True)
        self._steps = _forget
        self._notes = None
        self._tape = tape
        self._lines = recording.decision_lines()
        self._verdict: str | None = recording.summary.get("verdict")
        self._num_equal = 0
        self._has_plan = False
        self._clock = RecordedClock()
        self._link = RecordedLink(self._clock, tape, copies)
        self._engine = Engine(
            self._clock,
            scheduler,
            turns,
            RecordedDevice(scheduler, tape),
            self._link,
            self,
            submits_itself=False,  # what that took is in the recorded times
            last_turn_known=last_turn_known,
            plans_ahead=scheduler.system.transport.async_scheduling,
            frontend_ns=int(recording.summary.get("frontend_ns", 0)),
            keys=keys,
            names=names,
            check=self._checked,
        )

    def run(self) -> Replayed:
        """Play the tape to its end, or to the first difference."""
        try:
            difference = self._play()
        except _Over as over:
            difference = over.difference
        except (InvariantError, ProgressError, LookupError, AssertionError) as error:
            # What no machine may be told: it was not so when it was recorded.
            difference = self._at_line(f"stopped: {type(error).__name__}: {error}")
        if difference is None:
            difference = self._what_is_left()
        return Replayed(self._num_equal, difference)

    def _play(self) -> Difference | None:
        call = self._tape.call
        if call is None:
            return None
        self._clock.show(call.now_ns)
        for event in self._engine.run():
            call = self._tape.call
            if isinstance(event, StepEnd) and call is not None:
                self._clock.show(call.end_ns)
        return None

    def _checked(self, scheduler: Scheduler) -> None:
        """Called after every schedule and every update, in turn."""
        self._has_plan = not self._has_plan
        if self._has_plan:
            call = self._tape.call
            if call is not None and call.step is not None and call.step != scheduler.step:
                raise _Over(self._at_line(f"no step at now_ns {call.now_ns}"))
        else:
            self._link.check_waits()
            self._clock.show(self._tape.advance().now_ns)

    def decided(self, plan: Plan, step: int, now_ns: int, free: tuple[int, int]) -> None:
        """Compare the line with the recorded one."""
        super().decided(plan, step, now_ns, free)
        assert self._decisions is not None
        replayed = self._decisions.pop()
        recorded = next(self._lines, NOTHING)
        call = self._tape.call
        if recorded != replayed or call is None or call.step != step:
            raise _Over(Difference(self._where, recorded, replayed))
        self._num_equal += 1

    def unnumbered(self, plan: Plan | None, next_step: int, now_ns: int) -> None:
        """The tape knows already."""

    # ------------------------------------------------------------------ differences

    @property
    def _where(self) -> str:
        return f"line {self._num_equal + 1} of decisions.jsonl"

    def _at_line(self, replayed: str) -> Difference:
        return Difference(self._where, next(self._lines, NOTHING), replayed)

    def _what_is_left(self) -> Difference | None:
        """All lines must have been reached, and the same verdict."""
        recorded = next(self._lines, None)
        if recorded is not None:
            return Difference(self._where, recorded, self._engine.verdict or "the run is over")
        if self._engine.verdict != self._verdict:
            verdicts = (self._verdict or NOTHING, self._engine.verdict or NOTHING)
            return Difference("the verdict of vLLM 0.3.3", *verdicts)
        return None
