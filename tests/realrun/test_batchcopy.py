"""The one driver call for a job: what it is given, read through its C prototype, and its errors."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from policy.errors import ConfigError, FaultError
from policy.plan import Direction
from realrun import batchcopy
from realrun.batchcopy import PROTOTYPE, copy_batch, driver_call
from realrun.kvstore import LAYOUTS, Piece
from realrun.runtime import CudaRuntime
from tests.helpers.swapping import OUT, Desk, make_store, one_thread

STREAM = 0x7F00DEADBEEF  # handles are addresses: more than 32 bits


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    driver_call.cache_clear()
    with one_thread():
        yield
    driver_call.cache_clear()


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
    pieces = [*store.pieces((1, 4, 2), way), *store.pieces((6, 0, 1), way)]
    copy_batch(pieces, STREAM, driver.call)
    assert driver.calls == [
        {
            "targets": [piece.target.data_ptr() for piece in pieces],
            "sources": [piece.source.data_ptr() for piece in pieces],
            "sizes": [piece.source.nbytes for piece in pieces],
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
    copy_batch([], STREAM, driver.call)
    assert driver.calls == []


def test_a_refusal_names_the_piece_and_the_code() -> None:
    pieces = make_store().pieces((0, 0, 1), OUT)
    with pytest.raises(FaultError, match=r"CUDA error 1 at piece 2 of 4$"):
        copy_batch(pieces, STREAM, Driver(1, failed=2).call)


def test_a_refusal_that_is_no_pieces_fault_names_none() -> None:
    pieces = make_store().pieces((0, 0, 1), OUT)
    with pytest.raises(FaultError, match=r"CUDA error 700$"):
        copy_batch(pieces, STREAM, Driver(700, failed=ctypes.c_size_t(-1).value).call)


def test_a_source_may_be_let_go_of_once_the_call_returns() -> None:
    """The descriptors are read during the call: their arrays are nobody's afterwards (trap A9)."""
    driver = Driver()
    target, source = torch.zeros(4), torch.ones(4)
    for _ in range(50):
        copy_batch([Piece(target, source)], STREAM, driver.call)
    assert {tuple(call["targets"]) for call in driver.calls} == {(target.data_ptr(),)}
    assert {tuple(call["sizes"]) for call in driver.calls} == {(16,)}


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
    monkeypatch.setattr(batchcopy.ctypes, "CDLL", load)


def test_the_form_of_12_8_is_asked_for_by_version_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver()
    library = Library(0, ctypes.cast(driver.call, ctypes.c_void_p).value or 0)
    with_library(monkeypatch, {"libcuda.so.1": library}.__getitem__)
    pieces = make_store().pieces((0, 0, 1), OUT)
    copy_batch(pieces, STREAM)
    copy_batch(pieces, STREAM)
    assert library.asked == [(b"cuMemcpyBatchAsync", 12080, 0)]
    assert [call["stream"] for call in driver.calls] == [STREAM, STREAM]


@pytest.mark.parametrize(("code", "address"), [(500, 0), (0, 0)])
def test_a_driver_without_it_is_told_so_at_the_start(
    code: int, address: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library(monkeypatch, lambda _name: Library(code, address, 1))
    with pytest.raises(ConfigError, match=r"submission: .*needs CUDA 12\.8.*submission: merged"):
        CudaRuntime(torch.device("cuda")).check("batched")


def test_no_driver_at_all_is_a_fault_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    with_library(monkeypatch, missing)
    with pytest.raises(FaultError, match=r"no CUDA driver: libcuda\.so\.1"):
        driver_call()
    CudaRuntime(torch.device("cuda")).check("merged")


def test_a_manager_asks_before_anything_is_submitted() -> None:
    from tests.helpers.fake_device import FakeDevice

    device = FakeDevice()
    Desk(device, submission="batched")
    assert device.checked == ["batched"]
