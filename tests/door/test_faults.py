"""What clients do to a server, by accident or not: it goes on, and its recording is whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette")
pytest.importorskip("tokenizers")

from door.asked import ChatAsked, CompletionAsked, Generation, read
from door.errors import Refused
from door.serve import Options, serve, token_in
from door.simulated import Simulated
from door.words import Bytes
from explore.validation.validate import replay
from policy.errors import ConfigError
from policy.request import RequestState
from runs.recording import load
from tests.helpers.door import Door, Raw, open_door, requests_of, scenario, wait_for

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"

ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("\ud800")
)
JSON = st.recursive(ATOMS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3))  # fmt: skip
FIELDS = sorted({*CompletionAsked.model_fields, *ChatAsked.model_fields, "n", "tools", "echo"})
BODIES = st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6)


@given(body=BODIES, base=st.booleans())
def test_any_body_is_read_within_its_bounds_or_refused(body: dict[str, Any], base: bool) -> None:
    data = {"prompt": "a", "messages": [{"role": "user", "content": "a"}], **body} if base else body
    for kind in (CompletionAsked, ChatAsked):
        try:
            found: Generation = read(json.dumps(data).encode("utf-8", "replace"), kind, Counter())
        except Refused as refused:
            assert refused.status == 400
            json.dumps(refused.body()).encode()
        else:
            assert found.length is None or 1 <= found.length <= 1 << 24
            assert -(1 << 63) <= found.priority < 1 << 63


@given(body=st.binary(max_size=60))
def test_any_bytes_are_refused_in_our_shape(body: bytes) -> None:
    with pytest.raises(Refused) as caught:
        read(body, CompletionAsked, Counter())
    assert caught.value.status == 400


@pytest.mark.full
def test_bodies_over_http_get_only_2xx_and_4xx_and_leave_a_recording(tmp_path: Path) -> None:
    statuses: Counter[int] = Counter()
    with open_door(tmp_path / "run") as door:

        @given(body=BODIES)
        def ask(body: dict[str, Any]) -> None:
            data = {"prompt": "ab", "max_tokens": 2, **body}
            status, _ = door.ask(PLAIN, json.dumps(data).encode("utf-8", "replace"))
            statuses[status // 100] += 1

        ask()
        assert door.ask("/health")[0] == 200
    assert set(statuses) <= {2, 4}
    assert len(load(tmp_path / "run").table("requests")) == statuses[2] or statuses[2] > 0


# ---------------------------------------------------------------------- leaving


def levels(door: Door) -> tuple[int, int]:
    """Free blocks of both pools."""
    found: tuple[int, int] = door.machine.scheduler.engine.levels()  # type: ignore[attr-defined]
    return found


def leave_again_and_again(door: Door, cycles: int) -> Counter[RequestState]:
    """Clients who leave at any moment; the states they left in."""
    seen: Counter[RequestState] = Counter()
    scheduler = door.machine.scheduler  # type: ignore[attr-defined]
    for cycle in range(cycles):
        raws = [
            Raw(door, {"prompt": "x" * (20 + 40 * k), "max_tokens": 200, "priority": (cycle + k) % 3,
                       "ignore_eos": True, "stream": k % 2 == 0}, PLAIN)
            for k in range(4)
        ]  # fmt: skip
        time.sleep(0.001 * (cycle % 13))
        for one in raws:
            seen.update(request.state for request in list(scheduler.desk.live.values()))
            one.close()
    wait_for(lambda: not door.front.live)
    return seen


@pytest.mark.parametrize("cycles", [8, pytest.param(1000, marks=pytest.mark.full)])
def test_who_leaves_in_whatever_state_leaks_no_block(tmp_path: Path, cycles: int) -> None:
    with open_door(tmp_path / "run", {"system": "paged"}, scale=20) as door:
        before = levels(door)
        seen = leave_again_and_again(door, cycles)
        wait_for(lambda: levels(door)[0] == before[0])
        assert door.ask(PLAIN, {"prompt": "ab", "max_tokens": 2})[0] == 200
    assert seen[RequestState.RUNNING]
    assert replay(tmp_path / "run").difference is None


# ---------------------------------------------------------------------- slow, large, many


def raw_send(door: Door, data: bytes) -> socket.socket:
    found = socket.create_connection(("127.0.0.1", door.port), timeout=20)
    found.sendall(data)
    return found


def test_half_a_head_and_half_a_body_are_given_up_in_time(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", read_s=1.0) as door:
        head = raw_send(door, b"POST /v1/completions HTTP/1.1\r\nHost: loc")
        body = raw_send(
            door, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        )
        assert head.recv(100) == b""
        assert body.recv(100).startswith(b"HTTP/1.1 408")
        head.close()
        body.close()


def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", body=10_000) as door:
        head = (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n"
        )
        connection = raw_send(door, head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
        connection.close()
        chunks = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection = raw_send(door, chunks + b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        connection.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")
        connection.close()


@pytest.mark.full
def test_a_client_that_never_reads_is_closed_and_its_request_cancelled(tmp_path: Path) -> None:
    pool = {"device_blocks": 4000, "host_blocks": 10, "aging": "none"}
    made = scenario(limits={"max_model_len": 60_000}, pool=pool)

    def machine() -> Simulated:
        return Simulated(made, Bytes(), 100, None, "off")

    with open_door(tmp_path / "run", machine=machine, write_s=0.5) as door, socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", door.port))
        each = {"include_usage": True, "continuous_usage_stats": True}
        asked = {"prompt": "x", "max_tokens": 59_000, "ignore_eos": True, "stream": True}
        body = json.dumps({**asked, "stream_options": each})
        head = f"POST {PLAIN} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        slow.sendall((head + body).encode())
        wait_for(lambda: door.front.live)
        wait_for(lambda: not door.front.live, 120)
        wait_for(lambda: not door.front.replies)
    assert requests_of(tmp_path / "run")["q1"]["status"] == "cancelled"


def test_connections_beyond_the_limit_are_told(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", connections=3) as door:
        idle = [raw_send(door, b"") for _ in range(3)]
        wait = raw_send(door, b"")
        assert wait.recv(200).startswith(b"HTTP/1.1 503")
        for one in (*idle, wait):
            one.close()


@pytest.mark.full
def test_ten_thousand_idle_connections_leave_health_quick(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 25_000:
        pytest.skip("too few file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (25_000, hard))
    try:
        with open_door(tmp_path / "run", connections=20_000) as door:
            idle = [raw_send(door, b"") for _ in range(10_000)]
            assert door.ask("/health")[0] == 200
            for one in idle:
                one.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---------------------------------------------------------------------- who may come


def test_another_host_name_and_a_missing_token_are_refused(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", token="0123456789abcdef") as door:
        assert door.ask("/health", Host="evil.example")[0] == 403
        assert door.ask("/health")[0] == 200
        assert door.ask("/v1/models") == (401, {"error": "Unauthorized"})
        assert door.ask("/v1/models", Authorization="Bearer 0123456789abcdef")[0] == 200
    assert "0123456789abcdef" not in (tmp_path / "run" / "asked.jsonl").read_text()


def test_another_address_needs_a_token_and_a_token_needs_a_length(tmp_path: Path) -> None:
    machine = Simulated(scenario(), Bytes(), 1000, None, "off")
    with pytest.raises(ConfigError, match="token"):
        serve(machine, Options(host="0.0.0.0"), tmp_path / "run", say=print)
    assert not (tmp_path / "run").exists()
    (tmp_path / "token").write_text("short")
    with pytest.raises(ConfigError, match="16"):
        token_in(tmp_path / "token")


# ---------------------------------------------------------------------- the engine's end


def test_when_the_engine_dies_every_client_hears_of_it(tmp_path: Path) -> None:
    with open_door(tmp_path / "run", scale=1) as door:
        stream = Raw(door, {"prompt": "x", "max_tokens": 300, "ignore_eos": True}, PLAIN)
        stream.until(b"finish_reason")

        def broken(_: int) -> None:
            raise ZeroDivisionError("planted")

        door.machine.lateness.add = broken  # type: ignore[attr-defined]
        assert b"planted" in stream.rest()
        assert door.ask("/health")[0] == 503
        assert door.ask(PLAIN, {"prompt": "x"})[0] == 503
    assert "planted" in str(door.error)


@pytest.mark.full
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_signals_leave_a_recording_or_a_journal(tmp_path: Path, how: signal.Signals) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "import fastswitch; fastswitch.main()",
        "serve",
        "paper-8b-a10",
    ]
    settings = ["--set", "pool.aging=none", "--set", "order=fcfs", "--scale", "10", "--grace", "1"]
    with subprocess.Popen(
        [*command, *settings, "--out", str(run)], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        assert process.stdout is not None
        port = int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])
        raws = [Outside(port, 20 if k < 4 else 4000) for k in range(8)]
        for one in raws[:4]:
            one.until_done()
        process.send_signal(how)
        began = time.monotonic()
        process.wait(30)
        took = time.monotonic() - began
        for one in raws:
            one.close()
    found = load(run)
    statuses = Counter(row["status"] for row in found.rows("requests"))
    assert statuses["finished"] == 4
    if how is signal.SIGTERM:
        assert process.returncode == 0
        assert statuses["cancelled"] == 4
        assert took < 1 + 2 + 10  # the interpreter's own end included, on a busy host
        assert replay(run).difference is None


class Outside(Raw):
    """A client of another process."""

    def __init__(self, port: int, tokens: int) -> None:
        self.port = port
        super().__init__(self, {"prompt": "x", "max_tokens": tokens, "ignore_eos": True}, PLAIN)  # type: ignore[arg-type]

    def until_done(self) -> None:
        self.until(b"[DONE]")
