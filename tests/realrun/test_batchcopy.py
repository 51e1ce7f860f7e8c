"""The one driver call for a job: what it is given, read through its C prototype, and its errors."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from policy.errors import FaultError
from policy.plan import Direction
from realrun import batchcopy, batchtry, driver
from realrun.batchcopy import MAX_DESCRIPTORS, PROTOTYPE, copy_batch, driver_call
from realrun.kvstore import LAYOUTS
from realrun.pieces import Pieces
from realrun.runtime import CudaRuntime
from tests.helpers.fake_device import FakeDevice
from tests.helpers.swapping import OUT, Desk, make_store, one_thread

STREAM = 0x7F00DEADBEEF  # handles are addresses: more than 32 bits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    for cached in (driver_call, driver.driver):
        cached.cache_clear()
    with one_thread():
        yield
    for cached in (driver_call, driver.driver):
        cached.cache_clear()


class Driver:
    """`cuMemcpyBatchAsync`, as C calls it: notes its arguments and answers with `code`."""

    def __init__(self, code: int = 0, failed: int | None = None) -> None:
        self.code = code
        self.failed = failed
        self.calls: list[dict[str, Any]] = []
        self.call = PROTOTYPE(self._called)

    def _called(self, *args: Any) -> int:
        targets, sources, sizes, count, attributes, first, num_attributes, failed, stream = args
        size_t = ctypes.c_size_t
        self.calls.append(
            {
                "targets": list((size_t * count).from_address(targets)),
                "sources": list((size_t * count).from_address(sources)),
                "sizes": list((size_t * count).from_address(sizes)),
                "order": attributes[0].srcAccessOrder,
                "hints": [
                    (hint.type, hint.id)
                    for hint in (attributes[0].srcLocHint, attributes[0].dstLocHint)
                ],
                "flags": attributes[0].flags,
                "first": list((size_t * num_attributes).from_address(first)),
                "stream": stream,
            }
        )
        if self.failed is not None:
            failed[0] = self.failed
        return self.code


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", Direction)
def test_every_argument_is_what_the_driver_expects(layout: str, way: Direction) -> None:
    store, driver = make_store(layout), Driver()
    runs = ((1, 4, 2), (6, 0, 1))
    assert copy_batch(store.pieces(runs, way), STREAM, driver.call) == 1
    pairs = [
        (on_device[d : d + n], on_host[h : h + n])
        for on_device, on_host in zip(store.device.pieces, store.host.pieces, strict=True)
        for d, h, n in runs
    ]
    if way is OUT:
        pairs = [(host, device) for device, host in pairs]
    assert driver.calls == [
        {
            "targets": [target.data_ptr() for target, _ in pairs],
            "sources": [source.data_ptr() for _, source in pairs],
            "sizes": [source.nbytes for _, source in pairs],
            "order": 1,  # CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
            "hints": [(0, 0), (0, 0)],  # CU_MEM_LOCATION_TYPE_INVALID: no hint
            "flags": 0,
            "first": [0],  # one set of attributes, from the first piece on
            "stream": STREAM,
        }
    ]


def test_the_structures_have_the_sizes_of_the_c_headers() -> None:
    assert ctypes.sizeof(batchcopy.Attributes) == 4 + 2 * 8 + 4
    assert batchcopy.Attributes.flags.offset == 4 + 2 * 8


def test_no_pieces_are_no_call() -> None:
    driver = Driver()
    assert copy_batch(some(), STREAM, driver.call) == 0
    assert driver.calls == []


def test_a_refusal_names_the_piece_and_the_code() -> None:
    pieces = make_store().pieces(((0, 0, 1),), OUT)
    with pytest.raises(FaultError, match=r"CUDA error 1 at piece 2 of 4$"):
        copy_batch(pieces, STREAM, Driver(1, failed=2).call)


def test_a_refusal_that_is_no_pieces_fault_names_none() -> None:
    pieces = make_store().pieces(((0, 0, 1),), OUT)
    with pytest.raises(FaultError, match=r"CUDA error 700$"):
        copy_batch(pieces, STREAM, Driver(700, failed=ctypes.c_size_t(-1).value).call)


def test_a_source_may_be_let_go_of_once_the_call_returns() -> None:
    """The descriptors are read during the call: their arrays are nobody's afterwards (trap A9)."""
    driver = Driver()
    for _ in range(50):
        copy_batch(some(16), STREAM, driver.call)
    assert {tuple(call["targets"]) for call in driver.calls} == {(0,)}
    assert {tuple(call["sizes"]) for call in driver.calls} == {(16,)}


def some(*sizes: int) -> Pieces:
    """Pieces that nobody looks at."""
    return Pieces(*(np.array(row, np.int64) for row in (range(len(sizes)), sizes, sizes)))


def test_no_call_is_given_more_pieces_than_drivers_were_seen_to_take() -> None:
    driver = Driver()
    count = 2 * MAX_DESCRIPTORS + 5
    assert copy_batch(some(*range(1, count + 1)), STREAM, driver.call) == 3
    assert [len(call["sizes"]) for call in driver.calls] == [MAX_DESCRIPTORS, MAX_DESCRIPTORS, 5]
    assert [size for call in driver.calls for size in call["sizes"]] == list(range(1, count + 1))
    assert {tuple(call["first"]) for call in driver.calls} == {(0,)}


def test_a_refusal_in_a_later_call_names_the_piece_of_the_job() -> None:
    driver = Driver(1, failed=2)
    passing = Driver()
    calls = iter([passing.call, driver.call])

    def call(*args: Any) -> int:
        return int(next(calls)(*args))

    with pytest.raises(FaultError, match=r"at piece 4098 of 4100$"):
        copy_batch(some(*[1] * 4100), STREAM, call)


# ---------------------------------------------------------------------- finding the function


class Library:
    """libcuda.so.1 with `cuGetProcAddress_v2`."""

    def __init__(self, code: int, address: int, status: int = 0) -> None:
        self.asked: list[tuple[bytes, int, int]] = []
        self._answer = (code, address, status)

    def cuGetProcAddress_v2(  # noqa: N802
        self, name: bytes, pointer: Any, version: int, flags: Any, status: Any
    ) -> int:
        code, address, found = self._answer
        self.asked.append((name, version, flags.value))
        pointer._obj.value = address
        status._obj.value = found
        return code


def with_library(monkeypatch: pytest.MonkeyPatch, load: Callable[[str], Any]) -> None:
    monkeypatch.setattr(driver.ctypes, "CDLL", load)


def test_the_form_of_12_8_is_asked_for_by_version_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = Driver()
    library = Library(0, ctypes.cast(called.call, ctypes.c_void_p).value or 0)
    with_library(monkeypatch, {"libcuda.so.1": library}.__getitem__)
    pieces = make_store().pieces(((0, 0, 1),), OUT)
    copy_batch(pieces, STREAM)
    copy_batch(pieces, STREAM)
    assert library.asked == [(b"cuMemcpyBatchAsync", 12080, 0)]
    assert [call["stream"] for call in called.calls] == [STREAM, STREAM]


@pytest.mark.parametrize(("code", "address"), [(500, 0), (0, 0)])
def test_a_driver_without_it_says_what_it_lacks(
    code: int, address: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library(monkeypatch, lambda _name: Library(code, address, 1))
    why = CudaRuntime(torch.device("cuda")).why_not("batched")
    assert why is not None and "not in this driver" in why and "needs CUDA 12.8" in why


def test_no_driver_at_all_is_a_reason_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    with_library(monkeypatch, missing)
    with pytest.raises(FaultError, match=r"no CUDA driver: libcuda\.so\.1"):
        driver_call()
    assert CudaRuntime(torch.device("cuda")).why_not("merged") is None


def test_a_manager_asks_before_anything_is_submitted() -> None:
    device = FakeDevice()
    Desk(device, submission="batched")
    assert device.checked == ["batched"]


def test_where_the_call_cannot_be_had_copies_go_one_by_one_and_the_manager_says_why() -> None:
    device = FakeDevice()
    device.refusals["batched"] = "cuMemcpyBatchAsync: a try hung"
    desk = Desk(device, submission="batched")
    assert desk.swap.fallback == "cuMemcpyBatchAsync: a try hung"
    desk.fill("device", 2, 5)
    desk.start(OUT, (1, 4, 3))
    [ended] = desk.settle()
    assert (ended.ok, ended.calls, desk.value("host", 5)) == (True, 4, 5.0)
    assert Desk(FakeDevice(), submission="batched").swap.fallback is None


# ---------------------------------------------------------------------- the try in a child


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_call_that_hangs_in_the_child_is_a_reason_after_its_time() -> None:
    begin = time.monotonic()
    why = batchtry.why_not(0, child("import time; time.sleep(60)"), 0.5)
    assert why == "cuMemcpyBatchAsync: a try in a process of its own hung for 0.5 s"
    assert time.monotonic() - begin < 20


def test_what_the_child_says_or_dies_of_is_the_reason() -> None:
    assert batchtry.why_not(0, child("pass")) is None
    said = batchtry.why_not(0, child("import sys; sys.exit('cuInit: CUDA error 100')"))
    assert said is not None and said.endswith("cuInit: CUDA error 100")
    killed = batchtry.why_not(0, child("import os; os.abort()"))
    assert killed is not None and killed.endswith("exit code -6")


def test_the_child_compares_what_came_back_through_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole child, with a driver of ours behind it: addresses are those of the host."""
    fake = Fakes()
    monkeypatch.setattr(batchtry, "driver", lambda: fake)
    monkeypatch.setattr(batchtry, "copy_batch", fake.copies(right=True))
    assert batchtry.main(0) == 0
    assert fake.calls == [MAX_DESCRIPTORS, MAX_DESCRIPTORS]
    monkeypatch.setattr(batchtry, "copy_batch", fake.copies(right=False))
    with pytest.raises(FaultError, match="other bytes came back"):
        batchtry.main(0)


class Fakes:
    """A driver whose device memory is the host's."""

    def __init__(self) -> None:
        self.memory = np.zeros(MAX_DESCRIPTORS * 512, np.uint8)
        self.calls: list[int] = []
        self._kept: list[Any] = []

    def address(self, name: str, _version: int = 0) -> int:
        def call(pointer: int, *_: Any) -> int:
            if name == "cuMemAlloc":
                ctypes.c_uint64.from_address(pointer).value = self.memory.ctypes.data
            return 0

        made = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(call)
        self._kept.append(made)
        return ctypes.cast(made, ctypes.c_void_p).value or 0

    def register(self, _address: int, _num_bytes: int) -> int:
        return 0

    def stream(self) -> int:
        return STREAM

    def copies(self, *, right: bool) -> Any:
        def copy(pieces: Pieces, stream: int) -> None:
            assert stream == STREAM
            self.calls.append(len(pieces.sizes))
            for target, source, size in zip(*(part.tolist() for part in pieces), strict=True):
                ctypes.memmove(target, source, size if right else size - 1)

        return copy
