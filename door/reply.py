"""What a client gets: one JSON document, or server-sent events in vLLM's order.

A stream's first byte is sent with its first token, so a request that is refused by the engine still gets its
status. One event for each token; several that are there at once are written at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from door.errors import Refused
from door.ticket import Ticket, usage

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

DONE = b"data: [DONE]\n\n"


class Leaving(Protocol):
    """Who is told that a client has left."""

    def left(self, tickets: Sequence[Ticket]) -> None:
        """The client of these is gone."""


class Form:
    """How the two kinds of completion are written."""

    def __init__(self, name: str, model: str, *, is_chat: bool) -> None:
        self.is_chat = is_chat
        self.id = f"{'chatcmpl' if is_chat else 'cmpl'}-{name}"
        self.created = int(time.time())
        self.model = model

    def whole(
        self, texts: Sequence[str], ends: Sequence[str], counted: dict[str, Any]
    ) -> dict[str, Any]:
        """The document."""
        choices: list[dict[str, Any]] = []
        for index, (text, finish) in enumerate(zip(texts, ends, strict=True)):
            said: dict[str, Any] = {"text": text}
            if self.is_chat:
                said = {"message": {"role": "assistant", "content": text}}
            choices.append({"index": index, **said, "logprobs": None, "finish_reason": finish})
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": counted}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def chunk(self, choices: list[Any], counted: dict[str, Any] | None = None) -> bytes:
        """One event."""
        data = {**self._head(self._kind), "choices": choices}
        if counted is not None:
            data["usage"] = counted
        return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"

    def role(self, index: int) -> bytes:
        """The event before a chat's first token."""
        delta = {"role": "assistant", "content": ""}
        return self.chunk(
            [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]
        )

    def around(self, index: int) -> tuple[str, str]:
        """What stands before and behind a token's text in its event."""
        mark = "\x00"
        said: dict[str, Any] = {"delta": {"content": mark}} if self.is_chat else {"text": mark}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": None}
        before, _, behind = self.chunk([choice]).decode().partition(json.dumps(mark))
        return before, behind

    def token(self, index: int, text: str) -> list[Any]:
        """The choices of an event before the last."""
        said: dict[str, Any] = {"delta": {"content": text}} if self.is_chat else {"text": text}
        return [{"index": index, **said, "logprobs": None, "finish_reason": None}]

    def last(self, index: int, text: str, finish: str) -> list[Any]:
        """The choices of a reply's last event."""
        said: dict[str, Any] = {"delta": {"content": text}} if self.is_chat else {"text": text}
        return [
            {"index": index, **said, "logprobs": None, "finish_reason": finish, "stop_reason": None}
        ]


class Reply:
    """What both have: tickets, a client that may leave, an error that may come."""

    def __init__(self, form: Form, headers: list[tuple[bytes, bytes]]) -> None:
        self.form = form
        self.headers = headers
        self.tickets: list[Ticket] = []
        self.failed: Refused | None = None
        self.client: Any = None  # its address
        self.sending_since: float | None = None
        self._wake: asyncio.Future[None] | None = None
        self._left = 0  # tickets that are not over
        self._gone = False

    def expect(self, tickets: list[Ticket]) -> None:
        """Of these it will hear."""
        self.tickets = tickets
        self._left = len(tickets)

    def fail(self, ticket: Ticket, status: int, why: str) -> None:  # noqa: ARG002
        """See Listener."""
        self.failed = Refused(status, why)
        self._rouse()

    def _rouse(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)

    async def _news(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake

    async def run(self, receive: Receive, send: Send, desk: Leaving) -> None:
        """Answer; whatever happens, nobody is served who does not listen."""
        watcher = asyncio.ensure_future(self._watch(receive))
        try:
            await self._answer(send)
        finally:
            watcher.cancel()
            desk.left(self.tickets)

    async def _watch(self, receive: Receive) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
        self._gone = True
        self._rouse()

    async def _answer(self, send: Send) -> None:
        raise NotImplementedError

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        self.sending_since = time.monotonic()
        await send(message)
        self.sending_since = None

    async def document(self, send: Send, status: int, data: Any, more: dict[str, str]) -> None:
        """A whole response."""
        body = json.dumps(data).encode()
        headers = [
            *self.headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in more.items()),
        ]
        await self._send(
            send, {"type": "http.response.start", "status": status, "headers": headers}
        )
        await self._send(send, {"type": "http.response.body", "body": body})


class Whole(Reply):
    """Everything at the end."""

    def __init__(self, form: Form, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(form, headers)
        self._texts: dict[int, list[str]] = {}
        self._ends: dict[int, str] = {}

    def feed(self, ticket: Ticket, text: str, finish: str | None) -> None:
        """See Listener."""
        self._texts.setdefault(ticket.index, []).append(text)
        if finish is not None:
            self._ends[ticket.index] = finish
            self._left -= 1
            if not self._left:
                self._rouse()

    async def _answer(self, send: Send) -> None:
        while self._left and self.failed is None and not self._gone:
            await self._news()
        if self._gone:
            return
        if self.failed is not None:
            await self.document(send, self.failed.status, self.failed.body(), self.failed.headers())
            return
        prompt = sum(len(ticket.wish.tokens) for ticket in self.tickets)
        count = sum(ticket.count for ticket in self.tickets)
        order = range(len(self.tickets))
        texts = ["".join(self._texts[index]) for index in order]
        data = self.form.whole(texts, [self._ends[index] for index in order], usage(prompt, count))
        await self.document(send, 200, data, {})


class Streamed(Reply):
    """Token by token. `with_usage`: at the end; `each`: with every event."""

    def __init__(
        self, form: Form, headers: list[tuple[bytes, bytes]], *, with_usage: bool, each: bool
    ) -> None:
        super().__init__(form, headers)
        self._with_usage = with_usage
        self._each = each and with_usage
        self._events: list[bytes] = []
        self._around: dict[int, tuple[str, str]] = {}

    def feed(self, ticket: Ticket, text: str, finish: str | None) -> None:
        """See Listener."""
        index, form = ticket.index, self.form
        around = self._around.get(index)
        if around is None:
            around = self._around[index] = form.around(index)
            if form.is_chat:
                self._events.append(form.role(index))
        if finish is not None:
            self._left -= 1
        if finish is None and not self._each:
            self._events.append(f"{around[0]}{json.dumps(text)}{around[1]}".encode())
        else:
            counted = usage(len(ticket.wish.tokens), ticket.count) if self._each else None
            choices = (
                form.last(index, text, finish) if finish is not None else form.token(index, text)
            )
            self._events.append(form.chunk(choices, counted))
        if not self._left:
            self._finish()
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    def _finish(self) -> None:
        if self._with_usage:
            prompt = sum(len(one.wish.tokens) for one in self.tickets)
            count = sum(one.count for one in self.tickets)
            self._events.append(self.form.chunk([], usage(prompt, count)))
        self._events.append(DONE)

    async def _answer(self, send: Send) -> None:
        await self._until_news()
        if self._gone:
            return
        if self.failed is not None and not self._events:
            await self.document(send, self.failed.status, self.failed.body(), self.failed.headers())
            return
        headers = [
            *self.headers,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": headers})
        while not self._gone:
            events, self._events = self._events, []
            if events:
                is_last = not self._left
                body = events[0] if len(events) == 1 else b"".join(events)
                await self._send(
                    send, {"type": "http.response.body", "body": body, "more_body": not is_last}
                )
                if is_last:
                    return
            elif self.failed is not None:
                error = b"data: " + json.dumps(self.failed.body()).encode() + b"\n\n"
                await self._send(send, {"type": "http.response.body", "body": error + DONE})
                return
            else:
                await self._until_news()

    async def _until_news(self) -> None:
        if not self._events and self.failed is None and not self._gone:
            await self._news()
