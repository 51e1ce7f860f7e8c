"""Page-locked host memory: chunks, what the driver refuses, and that everything is given back."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, FaultError
from realrun.pinned import PAGE_BYTES, Registered, register_in_chunks
from tests.helpers.fake_device import FakeCudart
from tests.helpers.swapping import make_store, one_thread, tiny

CHUNK = 4 * PAGE_BYTES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def tensors(
    blocks: int = 40, head_dim: int = 128, layout: str = "layer_major"
) -> list[torch.Tensor]:
    """A host tier; a block of one of its tensors has 16 * head_dim bytes."""
    store = make_store(layout, 1, blocks, config=tiny(layers=1, head_dim=head_dim))
    return store.host.pieces


def register(made: list[torch.Tensor], cudart: FakeCudart, chunk: int = CHUNK) -> Registered:
    blocks = made[0].shape[0]
    return register_in_chunks(made, blocks, cudart, chunk, cudart.is_locked)


def test_every_byte_is_locked_once() -> None:
    made, cudart = tensors(), FakeCudart()
    registered = register(made, cudart)
    expected = sum(tensor.nbytes for tensor in made)
    assert registered.num_bytes == sum(cudart.chunks.values()) == expected
    assert all(cudart.is_locked(tensor[i : i + 1]) for tensor in made for i in range(40))


@given(blocks=st.integers(1, 50), head_dim=st.integers(1, 300), chunk=st.integers(1, 1 << 16))
def test_chunks_end_where_a_block_and_a_page_end(blocks: int, head_dim: int, chunk: int) -> None:
    made, cudart = tensors(blocks, head_dim, "block_major"), FakeCudart()
    register(made, cudart, chunk)
    [tensor] = made
    block_bytes = tensor[:1].nbytes
    end = tensor.data_ptr()
    for address, num_bytes in cudart.chunks.items():
        assert address == end
        assert num_bytes % block_bytes == 0
        assert address % PAGE_BYTES == 0
        end += num_bytes
    assert end == tensor.data_ptr() + tensor.nbytes


def test_a_chunk_is_no_larger_than_asked_for_unless_a_block_is() -> None:
    cudart = FakeCudart()
    register(tensors(), cudart)
    assert max(cudart.chunks.values()) == CHUNK
    large = FakeCudart()
    register(tensors(3, 2048), large)
    assert max(large.chunks.values()) == 2048 * 16 > CHUNK


def test_the_host_tier_begins_with_a_page_so_that_no_page_is_locked_twice() -> None:
    assert [tensor.data_ptr() % PAGE_BYTES for tensor in tensors()] == [0, 0]
    shifted = [tensor[1:] for tensor in tensors(200, head_dim=100)]
    with pytest.raises(ConfigError, match="CUDA error 712"):
        register(shifted, FakeCudart())


def test_whichever_registration_fails_all_are_given_back_and_the_limit_is_named() -> None:
    made = tensors()
    counted = FakeCudart()
    register(made, counted)
    assert counted.num_calls == 10
    for k in range(counted.num_calls):
        cudart = FakeCudart(fail_at=k)
        with pytest.raises(ConfigError, match=r"pool\.host_blocks.*CUDA error 2.*smaller") as error:
            register(made, cudart)
        assert len(str(error.value).splitlines()) == 1
        assert (cudart.chunks, cudart.num_calls) == ({}, k + 1)


def test_memory_that_the_driver_takes_and_does_not_lock_is_refused() -> None:
    cudart = FakeCudart(forgetful=True)
    with pytest.raises(FaultError, match="registered and are not page-locked"):
        register(tensors(), cudart)
    assert cudart.chunks == {}


def test_plain_memory_is_told_from_locked_without_a_fake() -> None:
    with pytest.raises(FaultError, match="are not page-locked"):
        register_in_chunks(tensors(), 40, FakeCudart())


def test_closing_twice_gives_back_once() -> None:
    cudart = FakeCudart()
    registered = register(tensors(), cudart)
    registered.close()
    registered.close()
    assert (cudart.chunks, registered.num_bytes) == ({}, 0)


def test_one_chunk_that_the_driver_keeps_does_not_keep_the_others() -> None:
    cudart = FakeCudart()
    registered = register(tensors(), cudart)
    del cudart.chunks[next(iter(cudart.chunks))]
    with pytest.raises(FaultError, match=r"1 of 10 chunks .* \(CUDA error 713\)"):
        registered.close()
    assert cudart.chunks == {}
    registered.close()


def test_nothing_is_registered_for_a_host_without_blocks() -> None:
    cudart = FakeCudart()
    assert register(tensors(0), cudart).num_bytes == cudart.num_calls == 0
