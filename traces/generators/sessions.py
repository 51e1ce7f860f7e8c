"""Sessions drawn from a model's laws: who begins when, how many turns, how long, how far apart.

A `SessionModel` is what was fitted on data and is kept in a file; a `Generator` is a model with the
user's choices: how many sessions, at what rate, up to which context, for which priority process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar, Literal

from policy.errors import ConfigError
from traces.generators.arrivals import Arrivals, Start, check_rate, pick
from traces.generators.laws import Values, draw_turns, seconds_to_ns
from traces.generators.prefixes import Prefixes
from traces.randomness import Streams
from traces.strict import MAX_SECONDS
from traces.workload import MAX_TOKENS, Header, Turn, Workload


@dataclass(frozen=True, slots=True)
class Wait:
    """What comes after a reply that ended by `stop` (None: nobody says), which a share does."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    share: float
    law: Values
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class Think:
    """A law of think times: waits, and what a header calls them."""

    waits: tuple[Wait, ...]
    words: str

    def draw_ns(self, streams: Streams, turn: Turn, stop: str | None) -> int:
        """The time before a turn whose parent's reply ended by `stop`; where no wait has that name,
        one is drawn."""
        wait = next((w for w in self.waits if w.stop is not None and w.stop == stop), None)
        if wait is None:
            wait = pick_wait(self.waits, streams, turn.session_id, turn.turn - 1)
        return wait_ns(wait, streams, turn.session_id, turn.turn)


def pick_wait(waits: tuple[Wait, ...], streams: Streams, session_id: str, turn: int) -> Wait:
    """How the reply of a turn ends."""
    if len(waits) == 1:
        return waits[0]
    shares = tuple(wait.share for wait in waits)
    return waits[pick(shares, streams.uniform("stop", session_id, turn))]


def wait_ns(wait: Wait, streams: Streams, session_id: str, turn: int) -> int:
    """The wait before a turn."""
    return seconds_to_ns(wait.law.draw(streams, "think", session_id, turn))


@dataclass(frozen=True, slots=True)
class Reset:
    """A share of later turns repeats only the first `kept_tokens` of its parent (a compaction, an
    edit): its prompt is as long as the parent's times a factor, whose quantiles at equal steps from
    0 to 1 are `sizes`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    share: float
    kept_tokens: int
    sizes: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.kept_tokens < 0:
            raise ConfigError("reset: share is 0 to 1 and kept_tokens at least 0")
        rising = all(a <= b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        if len(self.sizes) < 2 or not rising or self.sizes[0] < 0 or self.sizes[-1] > 1e4:
            raise ConfigError("reset.sizes: at least two factors, 0 to 10000, rising")


@dataclass(frozen=True, slots=True)
class SessionModel:
    """Laws of sessions.

    hazards: chance of another turn after 1, 2, ...; the last goes on to `max_turns`.
    first, later: tokens of the first prompt beyond `system_tokens`, and new tokens of later ones.
    reply: tokens; those of one session share a Gaussian copula of correlation `alike`.
    repeats_reply: whether the next prompt repeats the reply too. If not, `later` counts it as new.
    waits: by how the reply before ended; `waits_from` its end (think time) or its request's start.
    long_first: what is done with a first turn beyond the context cap.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    lengths: str
    times: str
    hazards: tuple[float, ...]
    max_turns: int
    first: Values
    later: Values
    reply: Values
    alike: float
    waits: tuple[Wait, ...]
    waits_from: Literal["reply", "start"] = "reply"
    repeats_reply: bool = True
    reset: Reset | None = None
    system_tokens: int = 0
    long_first: Literal["cut", "redraw"] = "cut"
    kind: str | None = None
    tokenizer: str = ""

    def __post_init__(self) -> None:
        if not self.hazards or not all(0 <= chance <= 1 for chance in self.hazards):
            raise ConfigError("hazards: at least one chance, each 0 to 1")
        if not 1 <= self.max_turns <= 1_000_000:
            raise ConfigError(f"max_turns: {self.max_turns} is not in 1 to 1000000")
        if not 0 <= self.alike < 1:
            raise ConfigError(f"alike: {self.alike} is not in 0 to below 1")
        if not 0 <= self.system_tokens < MAX_TOKENS:
            raise ConfigError(f"system_tokens: {self.system_tokens} is not in 0 to {MAX_TOKENS}")
        check_shares("waits", tuple(wait.share for wait in self.waits))


def check_shares(name: str, shares: tuple[float, ...]) -> None:
    """Raise ConfigError unless these are chances that sum to 1."""
    if not shares or min(shares) < 0 or abs(math.fsum(shares) - 1) > 1e-3:
        raise ConfigError(f"{name}: the shares must be at least 0 and sum to 1")


@dataclass(frozen=True, slots=True)
class Priorities:
    """Static priorities: level i (0 is the most urgent) has a share of the sessions, or of the
    clients."""

    shares: tuple[float, ...]
    by: Literal["session", "client"] = "session"

    def __post_init__(self) -> None:
        check_shares("workload.priority.shares", self.shares)

    def draw(self, streams: Streams, session_id: str, client_id: str | None) -> int:
        """A session's level. Without a client the session stands for it."""
        whose = client_id if self.by == "client" and client_id is not None else session_id
        return pick(self.shares, streams.uniform("priority", whose, 0))

    def in_words(self) -> str:
        """For a header."""
        return f"priorities: static, shares {'/'.join(f'{s:g}' for s in self.shares)} by {self.by}"


@dataclass(frozen=True, slots=True)
class Generator:
    """`context_cap`: a session stops before the turn whose prompt and reply would pass it; a first
    turn is cut to fit. `hash_block`: give prefix ids in blocks of so many tokens.
    `priority_process`: the process of `policy/orders` that the workload is meant for.
    """

    model: SessionModel
    conversations: int
    arrivals: Arrivals
    context_cap: int | None = None
    hash_block: int | None = None
    priorities: Priorities | None = None
    priority_process: str = ""
    prefix: str = field(default="c")

    def __post_init__(self) -> None:
        if self.conversations < 1:
            raise ConfigError(f"workload.conversations: {self.conversations} is below 1")
        check_rate(self.arrivals.rate)
        least = self.model.system_tokens + 2
        if self.context_cap is not None and self.context_cap < least:
            raise ConfigError(f"workload.context_cap: {self.context_cap} is below {least}")

    def workload(self, streams: Streams) -> Workload:
        """The sessions in order of arrival, made anew at every iteration."""
        cap = "uncapped" if self.context_cap is None else f"{self.context_cap}-token cap"
        parts = [
            f"lengths and turns: {self.model.lengths}, {cap}",
            f"think time: {self.model.times}",
            f"arrivals: {self.arrivals.in_words()}",
        ]
        if self.priorities is not None:
            parts.append(self.priorities.in_words())
        header = Header(
            source=f"{self.model.name} generator",
            tokenizer=self.model.tokenizer,
            timing="closed" if self.model.waits_from == "reply" else "gap",
            block_size=self.hash_block,
            hash_scope=None if self.hash_block is None else "global",
            composed_from=tuple(parts),
            seed=streams.seed,
            priority_process=self.priority_process,
        )
        return Workload(header, lambda: self._turns(streams))

    def _turns(self, streams: Streams) -> Iterator[Turn]:
        prefixes = None
        if self.hash_block is not None:
            prefixes = Prefixes(self.hash_block, self.model.system_tokens)
        starts = islice(self.arrivals.starts(streams), self.conversations)
        for index, start in enumerate(starts):
            if start.at_s > MAX_SECONDS:
                raise ConfigError(
                    f"workload.rate: {self.arrivals.rate:g} per second: session {index + 1} would"
                    f" begin after more than {MAX_SECONDS} seconds"
                )
            yield from self._session(f"{self.prefix}{index:06d}", start, streams, prefixes)

    def _session(
        self, name: str, start: Start, streams: Streams, prefixes: Prefixes | None
    ) -> Iterator[Turn]:
        model = self.model
        alike = math.sqrt(model.alike) * streams.normal("reply-level", name, 0)
        own = math.sqrt(1 - model.alike)
        cap = MAX_TOKENS if self.context_cap is None else self.context_cap
        priority = 0
        if self.priorities is not None:
            priority = self.priorities.draw(streams, name, start.client_id)
        history = prompt_before = 0
        stop: Wait | None = None
        for turn in range(1, draw_turns(model.hazards, model.max_turns, streams, name) + 1):
            kept, new = self._prompt(streams, name, turn, history, prompt_before)
            score = alike + own * streams.normal("reply", name, turn)
            reply = max(1, round(model.reply.at(score)))
            if kept + new + reply > cap:
                if turn > 1:
                    return
                new = min(new, cap - 1)
                reply = min(reply, cap - new)
            waited = None if stop is None else wait_ns(stop, streams, name, turn)
            stop = pick_wait(model.waits, streams, name, turn)
            yield Turn(
                f"{name}/{turn}",
                name,
                turn,
                kept + new,
                reply,
                arrival_ns=seconds_to_ns(start.at_s) if turn == 1 else None,
                think_ns=waited if model.waits_from == "reply" else None,
                gap_ns=waited if model.waits_from == "start" else None,
                parent_prefix_tokens=None if turn == 1 else kept,
                new_input_tokens=new,
                client_id=start.client_id,
                priority=priority,
                kind=model.kind,
                stop=stop.stop,
                hash_ids=None if prefixes is None else prefixes.next(turn, kept, kept + new),
            )
            prompt_before = kept + new
            history = prompt_before + (reply if model.repeats_reply else 0)

    def _first(self, streams: Streams, name: str) -> int:
        """New tokens of the first prompt. A redraw is the stream's number before the last one."""
        law, cap = self.model.first, self.context_cap
        new = max(1, round(law.draw(streams, "user", name, 1)))
        if cap is not None and self.model.long_first == "redraw":
            for again in range(64):
                if self.model.system_tokens + new < cap:
                    break
                new = max(1, round(law.draw(streams, "user", name, -again)))
        return new

    def _prompt(
        self, streams: Streams, name: str, turn: int, history: int, prompt_before: int
    ) -> tuple[int, int]:
        """Tokens repeated from the parent, and new ones."""
        model = self.model
        if turn == 1:
            return 0, model.system_tokens + self._first(streams, name)
        reset = model.reset
        if reset is not None and streams.uniform("reset", name, turn) < reset.share:
            place = streams.uniform("reset-size", name, turn) * (len(reset.sizes) - 1)
            low = int(place)
            factor = reset.sizes[low] + (place - low) * (reset.sizes[low + 1] - reset.sizes[low])
            kept = min(reset.kept_tokens, prompt_before)
            return kept, max(1, round(factor * prompt_before) - kept)
        return history, round(model.later.draw(streams, "user", name, turn))
