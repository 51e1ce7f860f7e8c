"""The endpoints, and the guard before them: host, token, body; every error in OpenAI's shape."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from door.asked import (
    ChatAsked,
    CompletionAsked,
    DetokenizeAsked,
    Generation,
    MessageAsked,
    TokenizeAsked,
    read,
)
from door.errors import Refused, too_long
from door.front import Asker, Front
from door.reply import Form, Receive, Reply, Scope, Send, Streamed, Whole
from policy.errors import ConfigError
from realrun.chat import Message

#: Texts longer than this are cut into tokens beside the loop.
_LONG_TEXT = 16_384
#: A text of more characters than so many a token of the longest context cannot fit.
_CHARACTERS = 128
_SESSION_HEADERS = ("x-session-id", "x-session-affinity", "x-correlation-id")
_LOCAL = frozenset(("127.0.0.1", "localhost", "[::1]", "testserver"))
_GUARDED = ("/v1", "/v2", "/inference", "/cohere")
_MAX_HEADER = 200


class Guard:
    """Asks of every request: is it for us, may it, is its body small enough and quick enough."""

    def __init__(self, app: Any, front: Front, token: str | None, *, is_local: bool) -> None:
        self._app = app
        self._front = front
        self._token = token
        self._is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        scope["door.headers"] = headers
        try:
            self._check(scope["path"], headers)
        except Refused as refused:
            await _refuse(self._front, refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "localhost").rpartition(":")
        name = host[0] if host[2].isdigit() else "".join(host)
        if self._is_local and name.lower() not in _LOCAL:
            raise Refused(403, "The Host header is not of this machine")
        if self._token is not None and path.startswith(_GUARDED):
            given = headers.get(b"authorization", "").encode("latin-1")
            if not secrets.compare_digest(given, b"Bearer " + self._token.encode()):
                raise Refused(401, "Unauthorized")
        declared = headers.get(b"content-length", "0")
        if declared.isdigit() and int(declared) > self._front.limits.body:
            raise _too_large(self._front.limits.body)


def _too_large(limit: int) -> Refused:
    return Refused(413, f"The body is larger than {limit} bytes")


def _refuse(front: Front, refused: Refused) -> Response:
    front.metrics.refused[str(refused.status)] += 1
    headers = refused.headers()
    if refused.status in (408, 413):
        headers["Connection"] = "close"
    body: dict[str, Any] = refused.body()
    if refused.status == 401:
        body = {"error": "Unauthorized"}  # vLLM's
    return JSONResponse(body, refused.status, headers)


async def _body(receive: Receive, front: Front) -> bytes:
    """The body. Raises Refused for one that is too large or too slow, or whose client leaves."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(front.limits.read_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refused(400, "The client left")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > front.limits.body:
                    raise _too_large(front.limits.body)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(408, "The body did not come in time") from None


Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]


class Completions:
    """Both kinds of completion, as an ASGI application."""

    def __init__(self, front: Front, *, is_chat: bool) -> None:
        self._front = front
        self._is_chat = is_chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        front = self._front
        try:
            front.check_open()
            kind = ChatAsked if self._is_chat else CompletionAsked
            asked: Generation = read(await _body(receive, front), kind, front.metrics.ignored)
            front.check(asked)
            prompts = await self._prompts(asked)
            reply = self._admitted(asked, prompts, scope["door.headers"])
        except Refused as refused:
            await _refuse(front, refused)(scope, receive, send)
            return
        reply.client = scope.get("client")
        front.replies[reply] = None
        try:
            await reply.run(receive, send, front)
        finally:
            del front.replies[reply]

    def _admitted(
        self, asked: Generation, prompts: Sequence[Sequence[int]], headers: dict[bytes, str]
    ) -> Reply:
        front = self._front
        given = headers.get(b"x-request-id", asked.request_id)
        given = None if given is None else given[:_MAX_HEADER]
        named = asked.session_id
        for name in _SESSION_HEADERS:
            named = named or headers.get(name.encode())
        owner = named or asked.user or headers.get(b"authorization", "")
        client = None if asked.user is None else asked.user[:128]
        who = Asker(owner[:512], None if named is None else named[:100], client, given)
        form = Form(front.next_name, front.known.model, is_chat=self._is_chat)
        more = [] if given is None else [(b"x-request-id", given.encode("latin-1", "replace"))]
        reply: Reply
        if asked.stream:
            options = asked.stream_options
            reply = Streamed(
                form,
                more,
                with_usage=bool(options and options.include_usage),
                each=bool(options and options.continuous_usage_stats),
            )
        else:
            reply = Whole(form, more)
        reply.expect(front.admit(asked, prompts, who, reply))
        return reply

    async def _prompts(self, asked: Generation) -> list[list[int]]:
        if isinstance(asked, ChatAsked):
            text = chat_text(self._front, asked.messages)
            return [await encoded(self._front, text, begins=False)]
        assert isinstance(asked, CompletionAsked)
        prompt = asked.prompt
        if isinstance(prompt, str):
            return [await encoded(self._front, prompt)]
        found: list[list[int]] = []
        if all(isinstance(one, int) for one in prompt):
            return [[one for one in prompt if isinstance(one, int)]]
        for one in prompt:
            if isinstance(one, str):
                found.append(await encoded(self._front, one))
            elif isinstance(one, list):
                found.append(one)
        return found


def chat_text(front: Front, messages: Sequence[MessageAsked]) -> str:
    """The prompt of a conversation. Raises Refused where the template does."""
    said = [Message("system" if m.role == "developer" else m.role, m.text) for m in messages]
    try:
        return front.known.words.chat(said)
    except ConfigError as error:
        raise Refused(400, str(error), "messages") from None


async def encoded(front: Front, text: str, *, begins: bool = True) -> list[int]:
    """The tokens of a text. Raises Refused for one that no context can hold."""
    limit, words = front.known.max_model_len, front.known.words
    if len(text) > limit * _CHARACTERS:
        raise too_long(limit, len(text) // _CHARACTERS, 1)
    if len(text) > _LONG_TEXT:
        return await asyncio.to_thread(words.encode, text, begins=begins)
    return words.encode(text, begins=begins)


class Pages:
    """The small endpoints."""

    def __init__(self, front: Front, version: str) -> None:
        self._front = front
        self._version = version

    async def health(self, _request: Request) -> Response:
        """200 while the engine lives and the door is open."""
        is_well = self._front.dead is None and not self._front.is_draining
        return Response(status_code=200 if is_well else 503)

    async def ping(self, request: Request) -> Response:
        """As `health`."""
        return await self.health(request)

    async def version(self, _request: Request) -> Response:
        """Ours."""
        return JSONResponse({"version": self._version})

    async def load(self, _request: Request) -> Response:
        """Requests being served."""
        return JSONResponse({"server_load": len(self._front.live)})

    async def models(self, _request: Request) -> Response:
        """The one model."""
        known = self._front.known
        card = {
            "id": known.model,
            "object": "model",
            "created": 0,
            "owned_by": "fastswitch",
            "root": known.model,
            "parent": None,
            "max_model_len": known.max_model_len,
        }
        return JSONResponse({"object": "list", "data": [card]})

    async def metrics(self, _request: Request) -> Response:
        """For Prometheus."""
        page = self._front.metrics.text()
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def tokenize(self, request: Request) -> Response:
        """Tokens of a prompt or a conversation."""
        front = self._front
        asked = read(await _body(request.receive, front), TokenizeAsked, front.metrics.ignored)
        front.check_model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise Refused(400, "Give prompt or messages", "prompt")
        is_chat = asked.messages is not None
        text = (
            chat_text(front, asked.messages) if asked.messages is not None else asked.prompt or ""
        )
        begins = not is_chat if asked.add_special_tokens is None else asked.add_special_tokens
        ids = await encoded(front, text, begins=begins)
        strings = front.known.words.pieces(ids) if asked.return_token_strs else None
        return JSONResponse(
            {
                "count": len(ids),
                "max_model_len": front.known.max_model_len,
                "tokens": ids,
                "token_strs": strings,
            }
        )

    async def detokenize(self, request: Request) -> Response:
        """The text of tokens."""
        front = self._front
        asked = read(await _body(request.receive, front), DetokenizeAsked, front.metrics.ignored)
        front.check_model(asked.model)
        if asked.tokens and max(asked.tokens) >= front.known.words.vocab:
            raise Refused(400, "A token id is out of vocabulary", "tokens")
        return JSONResponse({"prompt": front.known.words.decode(asked.tokens)})


def make_app(front: Front, *, token: str | None, is_local: bool, version: str) -> Guard:
    """The application."""

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return _refuse(front, error)

    async def http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _refuse(front, Refused(error.status_code, str(error.detail)))

    async def fault(_request: Request, _error: Exception) -> Response:
        return _refuse(front, Refused(500, "Internal server error"))

    pages = Pages(front, version)
    routes = [
        Route("/v1/chat/completions", Completions(front, is_chat=True), methods=["POST"]),
        Route("/v1/completions", Completions(front, is_chat=False), methods=["POST"]),
        Route("/v1/models", pages.models),
        Route("/tokenize", pages.tokenize, methods=["POST"]),
        Route("/detokenize", pages.detokenize, methods=["POST"]),
        Route("/metrics", pages.metrics),
        Route("/health", pages.health),
        Route("/ping", pages.ping, methods=["GET", "POST"]),
        Route("/version", pages.version),
        Route("/load", pages.load),
    ]
    handlers: dict[Any, Any] = {Refused: refused, HTTPException: http, Exception: fault}
    return Guard(
        Starlette(routes=routes, exception_handlers=handlers), front, token, is_local=is_local
    )
