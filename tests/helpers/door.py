"""A door in a thread of its own, and a client that is nobody's library."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from door.front import Limits
from door.serve import Machine, Options, Session
from door.simulated import Simulated
from door.words import Bytes, Words
from runs.recording import Recording, load
from runs.scenario import Scenario, build

WORKLOAD = {"generator": "chat", "conversations": 10, "rate": 5.0, "context_cap": 200}


def scenario(**values: Any) -> Scenario:
    """A device of 40 blocks, of 16 tokens, for contexts of up to 400."""
    data: dict[str, Any] = {
        "name": "door",
        "profile": "a10-llama-3-8b",
        "workload": WORKLOAD,
        "order": "priority",
        "pool": {"device_blocks": 40, "host_blocks": 60, "aging": "none"},
        "limits": {"max_model_len": 400},
    }
    return build({**data, **values}, "test")


class Door:
    """One that is open. `run` is its recording's folder."""

    def __init__(self, machine: Machine, run: Path, options: Options) -> None:
        self.machine = machine
        self.run = run
        self.url = ""
        self.recording: Recording | None = None
        self.error: BaseException | None = None
        self._ready = threading.Event()
        self.session = Session(machine, options, run, self._said)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._ready.wait(20)

    def _said(self, url: str) -> None:
        self.url = url
        self._ready.set()

    def _serve(self) -> None:
        try:
            self.recording = asyncio.run(self.session.run())
        except BaseException as error:  # noqa: BLE001
            self.error = error
        self._ready.set()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def front(self) -> Any:
        return self.session.front

    def stop(self, *, hurry: bool = True, wait: bool = True) -> None:
        """As a signal does; twice to hurry."""
        for _ in range(1 + hurry):
            if self._thread.is_alive():
                self.front.loop.call_soon_threadsafe(self.front.stop)
        if wait:
            self._thread.join(30)
            assert not self._thread.is_alive()

    def ask(
        self, path: str, body: Any = None, method: str | None = None, **headers: str
    ) -> tuple[int, Any]:
        """Status, and what was said: JSON where it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body)
            how = method or ("GET" if body is None else "POST")
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(how, path, data, named)
            answer = connection.getresponse()
            text = answer.read()
            self.headers = dict(answer.getheaders())
        finally:
            connection.close()
        if "json" in self.headers.get("content-type", ""):
            return answer.status, json.loads(text)
        return answer.status, text.decode()

    def stream(self, path: str, body: dict[str, Any], **headers: str) -> list[Any]:
        """The events of a stream; the last is `[DONE]`."""
        status, text = self.ask(path, {**body, "stream": True}, **headers)
        assert status == 200, text
        events = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
        return [one if one == "[DONE]" else json.loads(one) for one in events]


@contextmanager
def open_door(
    folder: Path,
    values: dict[str, Any] | None = None,
    *,
    scale: float = 1000,
    words: Words | None = None,
    machine: Callable[[], Machine] | None = None,
    token: str | None = None,
    keep_prompts: bool = False,
    **limits: Any,
) -> Iterator[Door]:
    """A door that is closed, in a hurry, at the end."""
    made = (
        machine()
        if machine is not None
        else Simulated(scenario(**(values or {})), words or Bytes(), scale, None, "full")
    )
    options = Options(token=token, keep_prompts=keep_prompts, limits=Limits(**limits))
    door = Door(made, folder, options)
    try:
        yield door
    finally:
        door.stop()


def requests_of(run: Path) -> dict[str, dict[str, Any]]:
    """Rows of requests.parquet by id."""
    return {row["request_id"]: row for row in load(run).rows("requests")}


class Raw:
    """A stream that is read byte by byte, or not at all."""

    def __init__(
        self, door: Door, body: dict[str, Any], path: str = "/v1/chat/completions"
    ) -> None:
        data = json.dumps({"stream": True, **body}).encode()
        self.socket = socket.create_connection(("127.0.0.1", door.port), timeout=20)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        self.socket.sendall(head.encode() + data)

    def until(self, mark: bytes) -> bytes:
        found = b""
        while mark not in found:
            part = self.socket.recv(4096)
            assert part
            found += part
        return found

    def rest(self) -> bytes:
        found = self.until(b"[DONE]")
        while not found.endswith(b"0\r\n\r\n"):
            found += self.socket.recv(4096)
        self.close()
        return found

    def close(self) -> None:
        self.socket.close()


def wait_for(happened: Callable[[], Any], seconds: float = 10) -> None:
    for _ in range(round(100 * seconds)):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError(f"it did not happen within {seconds} s")
