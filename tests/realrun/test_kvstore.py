"""Paged KV in two tiers: what a block is, and that what a run names is what a run moves."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from hypothesis import given
from hypothesis import strategies as st

from policy.errors import ConfigError, InvariantError
from realrun import kvstore
from realrun.kvstore import LAYOUTS, KVStore
from realrun.pieces import Pieces, cut
from realrun.pinned import Registered, page_lock
from tests.helpers.fake_device import FakeLocker
from tests.helpers.swapping import IN, OUT, make_store, one_thread, sides, tiny


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_and_values_of_a_layer_look_the_same_in_both_layouts(layout: str) -> None:
    store = make_store(layout, config=tiny(layers=3, kv_heads=2, head_dim=4))
    assert store.device.keys(2).shape == store.device.values(0).shape
    assert store.host.keys(1).shape == (8, 2, 2, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_through_a_view_is_in_no_other_layer_side_or_block(layout: str) -> None:
    tier = make_store(layout).host
    tier.values(1)[3] = 5
    assert sum(int(piece.sum()) for piece in tier.pieces) == 5 * 4
    assert [float(side.sum()) for side in sides(tier, 3)] == [0, 0, 0, 20]


def test_a_block_is_a_piece_or_one_for_each_layer_and_side() -> None:
    assert len(make_store("block_major").pieces(((0, 0, 1),), OUT).sizes) == 1
    assert len(make_store("layer_major").pieces(((0, 0, 1),), OUT).sizes) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_has_the_bytes_of_its_tokens(layout: str, dtype: torch.dtype) -> None:
    store = make_store(layout, host_blocks=0, config=tiny(layers=3, head_dim=8), dtype=dtype)
    tokens, per_token = store.block_size, 2 * 3 * 8 * dtype.itemsize
    assert store.device.block_bytes == store.host.block_bytes == tokens * per_token


def test_an_unknown_layout_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'diagonal' is not one of layer_major, block_major"):
        make_store("diagonal")


@pytest.mark.parametrize("by_block", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_is_whole_stretches_from_one_side_to_the_other(layout: str, by_block: bool) -> None:
    store = make_store(layout)
    runs = ((2, 5, 3), (7, 0, 1))
    out, back = (store.pieces(runs, way, by_block=by_block) for way in (OUT, IN))
    assert out.sources.tolist() == back.targets.tolist()
    assert out.targets.tolist() == back.sources.tolist()
    assert out.sizes.tolist() == back.sizes.tolist()
    expected = [
        (on_host[h + i].data_ptr(), on_device[d + i].data_ptr())
        for on_device, on_host in zip(store.device.pieces, store.host.pieces, strict=True)
        for d, h, n in runs
        for i in (range(n) if by_block else [0])
    ]
    assert list(zip(out.targets.tolist(), out.sources.tolist(), strict=True)) == expected
    assert int(out.sizes.sum()) == 4 * store.device.block_bytes


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    borders=st.lists(st.integers(0, 400), max_size=12, unique=True),
    side=st.sampled_from(["targets", "sources"]),
)
def test_a_cut_piece_is_the_same_bytes_and_no_part_crosses_a_border(
    lengths: list[int], borders: list[int], side: str
) -> None:
    sizes = np.array(lengths, np.int64)
    begin = np.cumsum(sizes) - sizes
    whole = Pieces(begin + 3 * np.arange(len(sizes)), begin + 1000, sizes)
    if side == "sources":
        whole = Pieces(whole.sources, whole.targets, sizes)
    parts = cut(whole, getattr(whole, side), np.array(sorted(borders), np.int64))

    def pairs(pieces: Pieces) -> list[tuple[int, int]]:
        rows = zip(*(part.tolist() for part in pieces), strict=True)
        return [(target + i, source + i) for target, source, size in rows for i in range(size)]

    assert pairs(parts) == pairs(whole)
    for at, size in zip(getattr(parts, side).tolist(), parts.sizes.tolist(), strict=True):
        assert size > 0 and not any(at < border < at + size for border in borders)


@pytest.mark.parametrize("run", [(6, 0, 3), (0, 6, 3), (-1, 0, 1), (0, -1, 1), (8, 8, 1)])
def test_a_run_that_leaves_a_pool_is_refused_and_not_cut_short(run: tuple[int, int, int]) -> None:
    with pytest.raises(InvariantError, match="not inside 8 device and 8 host blocks"):
        make_store().pieces(((0, 0, 1), run), OUT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_poison_fills_blocks_and_no_others(layout: str) -> None:
    tier = make_store(layout).device
    tier.poison([])
    tier.poison([1, 6])
    poisoned = [
        block
        for block in range(tier.num_blocks)
        if all(bool(side.isnan().all()) for side in sides(tier, block))
    ]
    assert poisoned == [1, 6]
    assert sum(int(piece.isnan().sum()) for piece in tier.pieces) == 2 * 16


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_a_checksum_tells_any_change_of_a_bit_and_any_exchange_of_tokens(
    layout: str, data: st.DataObject
) -> None:
    tier = make_store(layout, config=tiny(layers=2, head_dim=4), dtype=torch.float32).host
    for piece in tier.pieces:
        piece.copy_(torch.arange(piece.numel(), dtype=torch.float32).view(piece.shape))
    before = tier.checksum(4)
    side = data.draw(st.sampled_from(list(sides(tier, 4))))
    if data.draw(st.booleans()):
        bits = side.view(torch.int32).flatten()
        bits[data.draw(st.integers(0, len(bits) - 1))] ^= 1 << data.draw(st.integers(0, 30))
    else:
        side.copy_(side.flip(0))
    assert tier.checksum(4) != before


def test_a_checksum_is_that_of_the_bits_so_nan_and_minus_zero_have_theirs() -> None:
    tier = make_store().host
    found = []
    for number in (0.0, -0.0, float("nan")):
        for side in sides(tier, 0):
            side.fill_(number)
        found.append(tier.checksum(0))
    assert len(set(found)) == 3
    assert found[2] == tier.checksum(0)


def registered_by(locker: FakeLocker, monkeypatch: pytest.MonkeyPatch) -> KVStore:
    """A store whose device calls itself a GPU, so that its host tier is page-locked."""

    def register(memory: torch.Tensor) -> Registered:
        return page_lock(memory, locker, is_locked=locker.is_locked)

    class Gpu:
        type = "cuda"

    proper = kvstore.Tier
    cpu = torch.device("cpu")
    monkeypatch.setattr(kvstore, "page_lock", register)
    monkeypatch.setattr(kvstore, "Tier", lambda *args, **rest: proper(*args[:5], cpu, **rest))
    return KVStore(
        tiny(),
        layout="layer_major",
        device_blocks=4,
        host_blocks=6,
        block_size=2,
        dtype=torch.float64,
        device=Gpu(),
    )


def test_the_host_tier_of_a_gpu_is_page_locked_from_start_to_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locker = FakeLocker()
    store = registered_by(locker, monkeypatch)
    assert all(locker.is_locked(piece) for piece in store.host.pieces)
    [length] = locker.chunks.values()  # one registration for the whole pool
    assert length >= 6 * store.host.block_bytes
    store.close()
    store.close()
    assert locker.chunks == {}


def test_a_host_tier_that_cannot_be_page_locked_is_no_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locker = FakeLocker(largest=0)
    with pytest.raises(ConfigError, match=r"pool\.host_blocks"):
        registered_by(locker, monkeypatch)
    assert locker.chunks == {}


def test_a_cpu_locks_nothing() -> None:
    store = make_store()
    assert store.registered is None
    store.close()
