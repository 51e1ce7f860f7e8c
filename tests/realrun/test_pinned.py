"""Page-locked host memory: chunks, what the driver refuses, and that everything is given back."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, FaultError
from realrun import pinned
from realrun.driver import Driver
from realrun.kvstore import LAYOUTS
from realrun.pinned import PAGE_BYTES, Registered, page_lock
from tests.helpers.fake_device import FakeLocker
from tests.helpers.swapping import make_store, one_thread, tiny

CHUNK = 4 * PAGE_BYTES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def memory(blocks: int = 40, layout: str = "layer_major") -> torch.Tensor:
    """A host tier of 10 chunks; a block of one of its tensors has 2 KiB."""
    store = make_store(layout, 1, blocks, config=tiny(layers=1, head_dim=128))
    assert store.host.whole is not None
    return store.host.whole


def lock(made: torch.Tensor, locker: FakeLocker, chunk: int = CHUNK) -> Registered:
    return page_lock(made, locker, chunk, locker.is_locked)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pool_is_one_registration_where_the_driver_allows(layout: str) -> None:
    made, locker = memory(layout=layout), FakeLocker()
    registered = lock(made, locker)
    assert locker.chunks == {made.data_ptr(): made.nbytes}
    assert registered.num_bytes == made.nbytes
    assert len(registered.borders) == 0


def test_else_it_goes_in_chunks_that_leave_nothing_out_and_say_where_they_end() -> None:
    made, locker = memory(), FakeLocker(largest=CHUNK)
    registered = lock(made, locker)
    assert registered.num_bytes == sum(locker.chunks.values()) == made.nbytes
    end = made.data_ptr()
    for address, num_bytes in locker.chunks.items():
        assert address == end
        assert num_bytes <= CHUNK and address % PAGE_BYTES == 0
        end += num_bytes
    assert end == made.data_ptr() + made.nbytes
    assert registered.borders.tolist() == list(locker.chunks)[1:]


@given(pages=st.integers(1, 30), chunk=st.integers(1, 1 << 16))
def test_chunks_of_any_size_end_with_a_page(pages: int, chunk: int) -> None:
    whole = torch.zeros((pages + 1) * PAGE_BYTES, dtype=torch.uint8)
    first = -whole.data_ptr() % PAGE_BYTES
    made = whole[first : first + pages * PAGE_BYTES]
    step = max(1, chunk // PAGE_BYTES) * PAGE_BYTES
    locker = FakeLocker(largest=min(step, made.nbytes - 1))
    if pages == 1:
        with pytest.raises(ConfigError):
            lock(made, locker, chunk)
        return
    if step > locker._largest:
        return
    lock(made, locker, chunk)
    assert sum(locker.chunks.values()) == made.nbytes
    assert all(address % PAGE_BYTES == 0 for address in locker.chunks)


def test_every_tensor_of_the_host_tier_begins_with_a_page() -> None:
    store = make_store("layer_major", 1, 7, config=tiny(layers=2, head_dim=10))
    assert [piece.data_ptr() % PAGE_BYTES for piece in store.host.pieces] == [0] * 4
    spans = [(piece.data_ptr(), piece.data_ptr() + piece.nbytes) for piece in store.host.pieces]
    assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))


def test_whichever_chunk_is_refused_all_are_given_back_and_the_limit_is_named() -> None:
    made = memory()
    for k in range(1, 11):
        locker = FakeLocker(fail_at=k, largest=CHUNK)
        with pytest.raises(ConfigError, match=r"pool\.host_blocks.*CUDA error 2.*smaller") as error:
            lock(made, locker)
        assert len(str(error.value).splitlines()) == 1
        assert (locker.chunks, locker.num_calls) == ({}, k + 1)


def test_a_refused_registration_leaves_no_error_in_the_runtime() -> None:
    """The driver is asked, whose errors are return codes, and not the CUDA runtime, whose last error
    the next kernel launch would report."""
    source = inspect.getsource(pinned)
    assert "cudart" not in source
    asked: list[str] = []

    class Library:
        def cuGetProcAddress_v2(self, name: bytes, pointer: Any, *_: Any) -> int:  # noqa: N802
            asked.append(name.decode())
            return 500

    with pytest.raises(FaultError, match="cuMemHostRegister: not in this driver"):
        page_lock(memory(), Driver(Library()))
    assert asked == ["cuMemHostRegister"]


def test_memory_that_the_driver_takes_and_does_not_lock_is_refused() -> None:
    locker = FakeLocker(forgetful=True)
    with pytest.raises(FaultError, match="registered and are not page-locked"):
        lock(memory(), locker)
    assert locker.chunks == {}


def test_plain_memory_is_told_from_locked_without_a_fake() -> None:
    with pytest.raises(FaultError, match="are not page-locked"):
        page_lock(memory(), FakeLocker())


def test_closing_twice_gives_back_once() -> None:
    locker = FakeLocker()
    registered = lock(memory(), locker)
    registered.close()
    registered.close()
    assert (locker.chunks, registered.num_bytes) == ({}, 0)


def test_one_chunk_that_the_driver_keeps_does_not_keep_the_others() -> None:
    locker = FakeLocker(largest=CHUNK)
    registered = lock(memory(), locker)
    del locker.chunks[next(iter(locker.chunks))]
    with pytest.raises(FaultError, match=r"1 of 10 chunks .* \(CUDA error 713\)"):
        registered.close()
    assert locker.chunks == {}
    registered.close()


def test_nothing_is_registered_for_a_host_without_blocks() -> None:
    locker = FakeLocker()
    assert lock(memory(0), locker).num_bytes == locker.num_calls == 0
