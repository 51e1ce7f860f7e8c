"""Lanes, marks and barriers: of a CPU, and of CUDA as far as a machine without one can tell."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from realrun import runtime
from realrun.pieces import Pieces
from realrun.runtime import CpuRuntime, CudaRuntime, runtime_for
from tests.helpers.swapping import one_thread

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def test_a_cpu_is_done_when_its_call_returns() -> None:
    made = runtime_for(torch.device("cpu"))
    assert isinstance(made, CpuRuntime)
    lane, target = made.lane(), torch.zeros(3)
    with lane.on():
        lane.wait(made.barrier())
        lane.copy(target[:1], torch.ones(1))
        ones = torch.ones(2)
        rows = ([target[1:].data_ptr()], [ones.data_ptr()], [ones.nbytes])
        assert lane.copy_batch(Pieces(*(np.array(row, np.int64) for row in rows))) == 1
        mark = lane.mark()
    mark.synchronize()
    assert mark.is_done() and target.tolist() == [1, 1, 1]


def test_a_lane_may_write_what_was_made_in_inference_mode() -> None:
    with torch.inference_mode():
        target = torch.zeros(2)
    lane = CpuRuntime().lane()
    with lane.on():
        lane.copy(target, torch.ones(2))
    assert target.tolist() == [1, 1]


# ---------------------------------------------------------------------- CUDA, called by a fake


class Log(list[Any]):
    """What the CUDA runtime was asked, in order."""


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """torch.cuda's streams, events and contexts, replaced by ones that only note."""
    said = Log()
    streams = iter(range(100))

    class Stream:
        def __init__(self, handle: int, device: Any) -> None:
            self.name = handle - 1000
            self.device = device
            self.cuda_stream = handle

        def wait_event(self, event: Any) -> None:
            said.append(("wait", self.name, event.name))

    class Event:
        made = iter("abcdefgh")

        def __init__(self) -> None:
            self.name = next(Event.made)
            self.asked = 0

        def record(self, stream: Any) -> None:
            said.append(("record", self.name, stream.name))

        def query(self) -> bool:
            self.asked += 1
            return self.asked > 1

        def synchronize(self) -> None:
            said.append(("synchronize", self.name))

    class Driver:
        def stream(self) -> int:
            return 1000 + next(streams)

        def context(self) -> int:
            return 77

        def binder(self) -> Any:
            def bind(context: int) -> int:
                said.append(("bind", context))
                return 0

            return bind

        def copy_call(self) -> str:
            return "cuMemcpyAsync"

    compute = Stream(Driver().stream(), CUDA)
    monkeypatch.setattr(runtime, "driver", Driver)

    def within(kind: str) -> Any:
        @contextmanager
        def enter(what: Any) -> Iterator[None]:
            said.append((f"enter {kind}", getattr(what, "name", what)))
            yield
            said.append((f"leave {kind}", getattr(what, "name", what)))

        return enter

    monkeypatch.setattr(torch.cuda, "ExternalStream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: compute)
    monkeypatch.setattr(torch.cuda, "device", within("device"))
    monkeypatch.setattr(torch.cuda, "stream", within("stream"))
    return said


class Noted:
    """A tensor that notes how it is copied to."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def copy_(self, source: Any, *, non_blocking: bool) -> None:
        self._log.append(("copy", source, non_blocking, torch.is_inference_mode_enabled()))


def test_a_copy_waits_on_its_own_stream_and_its_mark_is_recorded_behind_it(log: Log) -> None:
    made = runtime_for(CUDA)
    assert isinstance(made, CudaRuntime)
    barrier, lane = made.barrier(), made.lane()
    with lane.on():
        lane.wait(barrier)
        lane.copy(Noted(log), "source")
        mark = lane.mark()
    assert log == [
        ("record", "a", 0),
        ("enter device", CUDA),  # the stream is made
        ("leave device", CUDA),
        ("bind", 77),  # calls of the driver need a context in every thread
        ("enter device", CUDA),
        ("enter stream", 1),
        ("wait", 1, "a"),
        ("copy", "source", True, True),
        ("record", "b", 1),
        ("leave stream", 1),
        ("leave device", CUDA),
    ]
    assert [mark.is_done(), mark.is_done()] == [False, True]
    mark.synchronize()
    assert log[-1] == ("synchronize", "b")


def test_every_lane_is_a_stream_and_every_mark_an_event_of_its_own(log: Log) -> None:
    made = CudaRuntime(CUDA)
    lanes = [made.lane() for _ in range(3)]
    for lane in lanes:
        lane.mark()
        lane.mark()
    recorded = [said[1:] for said in log if said[0] == "record"]
    assert recorded == [("a", 1), ("b", 1), ("c", 2), ("d", 2), ("e", 3), ("f", 3)]


def test_a_batch_goes_to_the_lanes_stream_by_its_handle(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(runtime, "copy_batch", lambda *args: found.append(args))
    monkeypatch.setattr(runtime, "copy_each", lambda *args: found.append(args))
    lane = CudaRuntime(CUDA).lane()
    lane.copy_batch(["piece"])
    lane.copy_each(["piece"])
    assert found == [(["piece"], 1001), (["piece"], 1001, "cuMemcpyAsync")]


def test_more_lanes_than_torch_has_streams_share_none(log: Log) -> None:
    made = CudaRuntime(CUDA)
    assert len({made.lane().stream.cuda_stream for _ in range(40)}) == 40


def test_what_a_lane_raises_leaves_its_contexts(log: Log) -> None:
    lane = CudaRuntime(CUDA).lane()
    with pytest.raises(RuntimeError, match="no such block"), lane.on():
        raise RuntimeError("no such block")
    assert not torch.is_inference_mode_enabled()


def test_packing_is_work_of_the_current_stream_and_its_host_buffer_is_page_locked(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    proper = torch.empty

    def empty(shape: Any, *, dtype: Any, pin_memory: bool) -> Any:
        asked.append((shape, dtype, pin_memory))
        return proper(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    lane = CudaRuntime(CUDA).lane()
    blocks = torch.arange(12.0).view(6, 2)
    index = torch.tensor([4, 1])
    assert lane.host_buffer(2, blocks).shape == (2, 2)
    assert asked == [((2, 2), torch.float32, True)]
    packed = lane.pack(blocks, index)
    assert packed.tolist() == [[8, 9], [2, 3]]
    lane.unpack(blocks, index, packed.flip(0))
    assert blocks[[4, 1]].tolist() == [[2, 3], [8, 9]]
