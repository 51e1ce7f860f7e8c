"""Listening, deadlines and an orderly end: uvicorn, told what it does not know by itself."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from door.app import Guard
from door.front import Front, Limits
from policy.errors import ConfigError

#: Bytes of a request's head.
_MAX_HEAD = 32 << 10
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
#: What connections have to be gone after everybody has been told.
_CLOSING_S = 1.5


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(4096)
    except OSError as error:
        found.close()
        raise ConfigError(f"--port: {host}:{port} cannot be used: {error.strerror}") from None
    found.setblocking(False)
    return found


def protocol(limits: Limits) -> Any:
    """uvicorn's HTTP/1.1 with a deadline for a request's head and a limit of connections."""

    class Guarded(H11Protocol):  # type: ignore[misc,unused-ignore]
        """One connection."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """See asyncio."""
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                transport.write(_BUSY)
                transport.close()
                return
            self._arm()

        def data_received(self, data: bytes) -> None:
            """See asyncio."""
            if self.cycle is None or self.cycle.response_complete:
                self._arm()
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            """See asyncio."""
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

        def _arm(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(limits.read_s, self._is_late)

        def _is_late(self) -> None:
            self._deadline = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Guarded


async def serve(
    app: Guard,
    front: Front,
    sock: socket.socket,
    ready: Callable[[], None],
    ended: Callable[[], None],
) -> None:
    """Serve until a signal: then nobody comes in any more, who is here is served for the grace time, then
    cancelled. A second signal cuts that short. `ready` is called when clients may come; `ended` closes the engine and waits for its recording."""
    limits = front.limits
    config = uvicorn.Config(
        app,
        http=protocol(limits),
        loop="asyncio",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEAD,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    # uvicorn's own handlers would raise the signal again and end the process before the recording is whole
    server.capture_signals = contextlib.nullcontext
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            hurry.set()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError):  # not the main thread, in tests
            loop.add_signal_handler(number, on_signal)
    front.stop = on_signal
    serving = asyncio.create_task(server.serve(sockets=[sock]))
    reaping = asyncio.create_task(_reap(front, server))
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    ready()
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
    await _drain(front, hurry)
    await asyncio.to_thread(ended)
    reaping.cancel()
    server.should_exit = True
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(serving, _CLOSING_S + 2)


async def _drain(front: Front, hurry: asyncio.Event) -> None:
    front.is_draining = True
    waits = {asyncio.create_task(front.empty.wait()), asyncio.create_task(hurry.wait())}
    if front.dead is None:
        await asyncio.wait(waits, timeout=front.limits.grace_s, return_when=asyncio.FIRST_COMPLETED)
        front.cancel_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_S):
                await front.empty.wait()
    for one in waits:
        one.cancel()
    deadline = time.monotonic() + _CLOSING_S
    while front.replies and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


async def _reap(front: Front, server: Any) -> None:
    """Close who does not read what is sent."""
    while True:
        await asyncio.sleep(min(1.0, front.limits.write_s / 2))
        late = time.monotonic() - front.limits.write_s
        for reply in list(front.replies):
            if reply.sending_since is not None and reply.sending_since < late:
                for connection in list(server.server_state.connections):
                    if connection.client == reply.client:
                        connection.transport.abort()
