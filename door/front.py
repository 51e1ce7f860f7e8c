"""Between clients and an engine: who comes in, with what, and who is told what.

All of it runs in the thread of the event loop. The engine's thread sees a `LiveDriver` on its way in and calls
`Front.happened` on the way out, once a step.
"""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from door.asked import Generation
from door.driver import LiveDriver
from door.errors import Refused, too_long
from door.metrics import Metrics
from door.reply import Reply
from door.sessions import Context, Sessions
from door.tap import Happened
from door.ticket import Ends, Listener, Mock, Teller, Ticket, Wish
from door.words import Words
from runs.scenario import Scenario
from traces.randomness import Streams
from traces.workload import Turn

#: Orders that read a client's priority.
_READS_PRIORITY = ("priority",)
_FINISHED = "finished"


@dataclass(frozen=True)
class Limits:
    """Of one door. `body`: bytes; times in seconds; `waiting`: requests without a token yet."""

    waiting: int = 1024
    body: int = 4 << 20
    connections: int = 4096
    read_s: float = 30.0
    write_s: float = 30.0
    grace_s: float = 30.0


@dataclass
class Known:
    """What a machine says of itself. `lengths`: the law of reply lengths of a machine that makes no
    text, `eos`: what ends a reply of one that does."""

    model: str
    max_model_len: int
    scenario: Scenario
    words: Words
    mock: Mock | None
    lengths: Sequence[int] = ()
    eos: frozenset[int] = frozenset()
    temperature: float = 1.0  # where a client names none, and so on
    top_p: float = 1.0
    top_k: int = 0
    gauges: Callable[[], dict[str, float]] = dict
    ends: dict[str, Ends] = field(default_factory=dict)
    prompts: dict[str, array[int]] = field(default_factory=dict)
    wishes: dict[str, Wish] = field(default_factory=dict)


@dataclass(frozen=True)
class Asker:
    """What HTTP says of a request beside its body. `owner`: whose contexts it may go on from, `named`: the
    session it names."""

    owner: str
    named: str | None
    client_id: str | None
    x_request_id: str | None


class Front:
    """The desk at the door. `note`: a file of one line for each request, `keep_prompts` with its tokens."""

    def __init__(
        self, known: Known, driver: LiveDriver, limits: Limits, note: Path, *, keep_prompts: bool
    ) -> None:
        self.known = known
        self.driver = driver
        self.limits = limits
        self.metrics = Metrics(known.model, self._gauges)
        self.live: dict[str, Ticket] = {}
        self.replies: dict[Reply, None] = {}  # being answered
        self.num_waiting = 0
        self.is_draining = False
        self.dead: str | None = None
        self.empty = asyncio.Event()
        self.stop: Callable[[], None] = lambda: None  # as a signal does
        self.loop = asyncio.get_running_loop()
        self._sessions = Sessions()
        self._streams = Streams(known.scenario.seed)
        self._tellers: dict[str, Teller] = {}
        self._keep_prompts = keep_prompts
        self._count = 0
        self._note = note.open("w", encoding="utf-8")
        self.empty.set()

    @property
    def next_name(self) -> str:
        """What the next request will be called."""
        return f"q{self._count + 1}"

    @property
    def num_asked(self) -> int:
        """Requests sent to the engine so far."""
        return self._count

    def close(self) -> None:
        """No more lines."""
        self._note.close()

    # ------------------------------------------------------------------ in

    def check_open(self) -> None:
        """Raise Refused if nobody is served now."""
        if self.dead is not None:
            raise Refused(503, f"The engine has stopped: {self.dead}")
        if self.is_draining:
            raise Refused(503, "The server is shutting down", retry_s=30)
        if self.num_waiting >= self.limits.waiting:
            raise Refused(429, f"{self.num_waiting} requests are waiting already", retry_s=1)

    def check(self, asked: Generation) -> None:
        """Raise Refused for what this door cannot do for the request."""
        self.check_model(asked.model)
        order = self.known.scenario.order_name
        if asked.priority and order not in _READS_PRIORITY:
            raise Refused(
                400,
                f"Got priority {asked.priority} but Priority scheduling is not enabled.",
                "priority",
            )

    def check_model(self, name: str | None) -> None:
        """Raise Refused for a model that is not here."""
        if name not in (None, "", self.known.model):
            raise Refused(404, f"The model `{name}` does not exist.", "model")

    def wish(self, asked: Generation, prompt: Sequence[int], number: int) -> Wish:
        """What is asked for one prompt. Raises Refused for what does not fit the model."""
        known, limit = self.known, self.known.max_model_len
        if not prompt:
            raise Refused(400, "The prompt is empty", "prompt")
        if max(prompt) >= known.words.vocab:
            raise Refused(400, f"Token id {max(prompt)} is out of vocabulary", "prompt")
        room = limit - len(prompt)
        if room < 1 or (asked.length or 0) > room:
            raise too_long(limit, len(prompt), asked.length or 1)
        most, is_cut = asked.length or self._default(asked, room), True
        if asked.min_tokens > most:
            raise Refused(400, f"min_tokens must be at most max_tokens={most}", "min_tokens")
        if known.mock is not None:
            most, is_cut = self._mock_length(asked, most, number)
        return Wish(
            array("q", prompt),
            most,
            is_cut,
            asked.min_tokens,
            asked.ignore_eos,
            asked.stops,
            frozenset(asked.stop_token_ids or ()),
            asked.include_stop_str_in_output,
            known.temperature if asked.temperature is None else asked.temperature,
            known.top_p if asked.top_p is None else asked.top_p,
            known.top_k if asked.top_k is None else max(0, asked.top_k),
            asked.seed,
        )

    def _default(self, asked: Generation, room: int) -> int:
        return min(16, room) if hasattr(asked, "prompt") else room

    def _mock_length(self, asked: Generation, most: int, number: int) -> tuple[int, bool]:
        """Tokens of a reply that nobody writes, and whether it was cut."""
        known, is_cut = self.known, True
        assert known.mock is not None
        if not asked.ignore_eos and known.lengths:
            drawn = known.lengths[
                self._streams("reply-length", str(number), 0) % len(known.lengths)
            ]
            drawn = max(1, asked.min_tokens, drawn)
            if drawn < most:
                most, is_cut = drawn, False
        if asked.stops:
            found = known.mock.until_stop(number, most, asked.stops, asked.min_tokens)
            if found is not None:
                most, is_cut = found, False
        if asked.stop_token_ids:
            tokens = known.mock.tokens(number, most)
            for k, token in enumerate(tokens, start=1):
                if token in asked.stop_token_ids and k >= asked.min_tokens:
                    return k, False
        return most, is_cut

    def admit(
        self, asked: Generation, prompts: Sequence[Sequence[int]], asker: Asker, listener: Listener
    ) -> list[Ticket]:
        """Send prompts to the engine, all or none. Raises Refused."""
        self.check_open()
        first = self._count + 1
        wishes = [self.wish(asked, one, number) for number, one in enumerate(prompts, start=first)]
        found = []
        for index, wish in enumerate(wishes):
            self._count += 1
            found.append(self._admit(asked, wish, asker, listener, index))
        return found

    def _admit(
        self, asked: Generation, wish: Wish, asker: Asker, listener: Listener, index: int
    ) -> Ticket:
        known, name = self.known, f"q{self._count}"
        place = self._sessions.place(asker.owner, asker.named, wish.tokens)
        ticket = Ticket(
            name, self._count, asker.owner, place.session_id, place.turn, wish, listener, index
        )
        turn = Turn(
            name,
            place.session_id,
            place.turn,
            len(wish.tokens),
            wish.most,
            parent_id=place.parent_id,
            parent_prefix_tokens=place.parent_prefix_tokens,
            client_id=asker.client_id,
            priority=asked.priority,
        )
        known.prompts[name] = wish.tokens
        if known.mock is None:
            known.wishes[name] = wish
            known.ends[name] = Ends(known.words, wish, known.eos)
            self._tellers[name] = Teller(known.words, wish)
        elif wish.stops:
            self._tellers[name] = Teller(known.words, wish)
        self.live[name] = ticket
        self.num_waiting += 1
        self.empty.clear()
        self.metrics.histograms["request_params_max_tokens"].add(asked.length or wish.most)
        line: dict[str, Any] = {"request_id": name, "x_request_id": asker.x_request_id}
        if self._keep_prompts:
            line["prompt"] = list(wish.tokens)
        self._note.write(json.dumps(line) + "\n")
        self._note.flush()
        if not self.driver.put(turn):
            self._forget(ticket)
            raise Refused(503, "The server is shutting down", retry_s=30)
        return ticket

    def left(self, tickets: Sequence[Ticket]) -> None:
        """The client of these is gone."""
        for ticket in tickets:
            if not ticket.is_over:
                self.driver.cancel(ticket.request_id)

    def cancel_all(self) -> None:
        """Nobody is served any longer."""
        self.left(list(self.live.values()))

    # ------------------------------------------------------------------ out

    def tell(self, happened: Happened) -> None:
        """From the engine's thread: a step has been folded in."""
        self.loop.call_soon_threadsafe(self.happened, happened)

    def happened(self, happened: Happened) -> None:
        """Tell every client what it got in a step."""
        now = time.perf_counter()
        ended = {row["request_id"]: row for row in happened.ended}
        tokens, live = happened.tokens, self.live
        told = 0
        for names in (happened.prefilled, happened.decoded):
            for name in names:
                ticket = live.get(name)
                if ticket is not None:
                    self._token(ticket, tokens.get(name), ended.get(name), now)
                    told += 1
        if told:
            self.metrics.generation_tokens += told
            self.metrics.histograms["iteration_tokens_total"].add(told)
        for name, row in ended.items():
            ticket = live.get(name)
            if ticket is not None:
                self._ended(ticket, row, now)

    def _token(
        self, ticket: Ticket, token: int | None, row: dict[str, Any] | None, now: float
    ) -> None:
        """One token, the last if there is a row that finished with it."""
        histograms = self.metrics.histograms
        if ticket.first is None:
            ticket.first = now
            self.num_waiting -= 1
            self.metrics.prompt_tokens += len(ticket.wish.tokens)
            histograms["time_to_first_token_seconds"].add(now - ticket.came)
        else:
            histograms["inter_token_latency_seconds"].add(now - ticket.last)
        ticket.last = now
        is_last = row is not None and row["status"] == _FINISHED
        known, name, wish = self.known, ticket.request_id, ticket.wish
        teller = self._tellers.get(name)
        ticket.count += 1
        finish = None
        if is_last:
            finish = "length" if wish.is_cut and ticket.count >= wish.most else "stop"
        if known.mock is not None:
            text = known.mock.text(ticket.number, ticket.count - 1)
            if teller is not None:
                token = known.mock.tokens(ticket.number, ticket.count)[-1]
                text = teller.add(token, is_last=is_last, is_silent=False)
        else:
            assert token is not None
            assert teller is not None
            ticket.output.append(token)
            by_id = is_last and known.ends[name].is_end(token)
            if is_last and known.ends[name].has_stopped:
                finish = "stop"
            text = teller.add(token, is_last=is_last, is_silent=by_id)
        if row is not None and is_last:
            self._close(ticket, row, now)  # its numbers first, then its client
        ticket.listener.feed(ticket, text, finish)

    def _ended(self, ticket: Ticket, row: dict[str, Any], now: float) -> None:
        """It ended without a token."""
        status = row["status"]
        self._close(ticket, row, now)
        if status == "rejected":
            ticket.listener.fail(ticket, 400, row["reason"])
        elif status == "cancelled":
            ticket.listener.fail(
                ticket, 503, "The request was cancelled: the server is shutting down"
            )
        else:
            ticket.listener.fail(ticket, 503, row["reason"] or "The engine has stopped")

    def _close(self, ticket: Ticket, row: dict[str, Any], now: float) -> None:
        metrics, count = self.metrics, ticket.count
        reason = {"cancelled": "abort", "rejected": "error", "unfinished": "error"}.get(
            row["status"]
        )
        if reason is None:
            reason = "length" if ticket.wish.is_cut and count >= ticket.wish.most else "stop"
        metrics.finished[reason] += 1
        metrics.preemptions += row["preemptions"]
        metrics.cached_tokens += row["cached_tokens"]
        histograms = metrics.histograms
        histograms["e2e_request_latency_seconds"].add(now - ticket.came)
        histograms["request_prompt_tokens"].add(len(ticket.wish.tokens))
        histograms["request_generation_tokens"].add(count)
        histograms["request_num_preemptions"].add(row["preemptions"])
        if ticket.first is not None and count > 1:
            mean = (now - ticket.first) / (count - 1)
            histograms["request_time_per_output_token_seconds"].add(mean)
        if row["status"] == _FINISHED:
            self._remember(ticket)
        self._forget(ticket)

    def _remember(self, ticket: Ticket) -> None:
        """Its context may be gone on from."""
        known, wish = self.known, ticket.wish
        reply = ticket.output
        if known.mock is not None:
            reply = array("q", known.mock.tokens(ticket.number, ticket.count))
        context = Context(
            ticket.request_id, ticket.session_id, ticket.turn, len(wish.tokens), wish.tokens + reply
        )
        self._sessions.ended(ticket.owner, context)

    def _forget(self, ticket: Ticket) -> None:
        known, name = self.known, ticket.request_id
        ticket.is_over = True
        self.num_waiting -= ticket.first is None
        del self.live[name]
        for kept in (known.prompts, known.wishes, known.ends, self._tellers):
            kept.pop(name, None)
        if not self.live:
            self.empty.set()

    def died(self, why: str) -> None:
        """The engine is gone: everybody hears of it."""
        self.dead = why
        for ticket in list(self.live.values()):
            self._forget(ticket)
            ticket.listener.fail(ticket, 500, f"The engine has stopped: {why}")

    # ------------------------------------------------------------------ looked at

    def _gauges(self) -> dict[str, float]:
        return self.known.gauges()
