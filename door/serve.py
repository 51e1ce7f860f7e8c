"""`serve(...)`: a machine in a thread of its own, and clients before it, until a signal."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from door.app import make_app
from door.driver import LiveDriver
from door.front import Front, Known, Limits
from door.server import listening
from door.server import serve as listen
from door.tap import Happened
from policy.errors import ConfigError, FastSwitchError, FaultError
from runs.recording import Recording
from traces.strict import shown_path

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: The interpreter's default lets a thread hold the lock for as long as a whole step.
_SWITCH_INTERVAL_S = 2e-4
_MAX_TOKEN = 4096


class Machine(Protocol):
    """Either of them."""

    known: Known
    driver: LiveDriver

    def run(
        self, out: Path, tell: Callable[[Happened], None], more: Callable[[], dict[str, Any]]
    ) -> Recording:
        """Serve in the calling thread until the driver is closed."""


@dataclass(frozen=True)
class Options:
    """Of the door. `token`: what clients must show, None: nothing, on loopback alone."""

    host: str = "127.0.0.1"
    port: int = 0
    token: str | None = None
    keep_prompts: bool = False
    limits: Limits = field(default_factory=Limits)


def token_in(path: Path) -> str:
    """The token in a file. Raises ConfigError."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"--token-file: {shown_path(path)}: cannot be read") from None
    if not 16 <= len(token) <= _MAX_TOKEN or not token.isascii():
        raise ConfigError(
            f"--token-file: {shown_path(path)}: a token has 16 to {_MAX_TOKEN} ASCII characters"
        )
    return token


def serve(
    machine: Machine, options: Options, out: Path, *, say: Callable[[str], None]
) -> Recording:
    """Serve until SIGTERM or SIGINT; the recording. `say` is told the URL. Raises ConfigError before anything listens, and what
    the engine died of."""
    if options.host not in _LOOPBACK and options.token is None:
        raise ConfigError(
            f"--host {options.host}: another address than loopback needs --token-file"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{shown_path(out)}: is not empty; a session needs a folder of its own")
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        return asyncio.run(Session(machine, options, out, say).run())
    finally:
        sys.setswitchinterval(before)


class Session:
    """One machine served once."""

    def __init__(
        self,
        machine: Machine,
        options: Options,
        out: Path,
        say: Callable[[str], None],
    ) -> None:
        self._say = say
        self._machine = machine
        self._options = options
        self._out = out
        self._found: Recording | None = None
        self._error: BaseException | None = None
        self.front: Front | None = None

    async def run(self) -> Recording:
        """Serve. Raises what the engine died of."""
        options, machine, out = self._options, self._machine, self._out
        sock = listening(options.host, options.port)
        out.mkdir(parents=True, exist_ok=True)
        self.front = front = Front(
            machine.known,
            machine.driver,
            options.limits,
            out / "asked.jsonl",
            keep_prompts=options.keep_prompts,
        )
        thread = threading.Thread(target=self._engine, args=(front,), name="engine", daemon=True)
        thread.start()
        app = make_app(
            front,
            token=options.token,
            is_local=options.host in _LOOPBACK,
            version=version("fastswitch-lab"),
        )
        host = f"[{options.host}]" if ":" in options.host else options.host
        url = f"http://{host}:{sock.getsockname()[1]}"

        def ended() -> None:
            machine.driver.close()
            thread.join()

        try:
            await listen(app, front, sock, lambda: self._say(url), ended)
        finally:
            await asyncio.to_thread(ended)
            front.close()
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def _engine(self, front: Front) -> None:
        def more() -> dict[str, Any]:
            metrics = front.metrics
            return {
                "served": True,
                "door": {
                    "requests": front.num_asked,
                    "refused": dict(sorted(metrics.refused.items())),
                    "ignored_fields": dict(sorted(metrics.ignored.items())),
                },
            }

        try:
            self._found = self._machine.run(self._out, front.tell, more)
            verdict = self._found.summary.get("verdict")
            if verdict is not None:
                front.loop.call_soon_threadsafe(front.died, verdict)
        except FastSwitchError as error:
            self._died(front, error)
        except BaseException as error:  # noqa: BLE001  # whatever it is, every client must hear of it
            self._died(front, FaultError(f"{type(error).__name__}: {error}"), error)

    def _died(
        self, front: Front, error: FastSwitchError, cause: BaseException | None = None
    ) -> None:
        error.__cause__ = cause
        self._error = error
        front.loop.call_soon_threadsafe(front.died, str(error))
