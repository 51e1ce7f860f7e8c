"""Every way of submitting, both layouts, both directions: exactly the right bytes, in so many calls."""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.errors import FaultError
from policy.plan import Copy, Direction
from policy.pools.runs import Run
from realrun import eachcopy
from realrun.driver import COPY
from realrun.kvstore import LAYOUTS, KVStore
from realrun.pieces import Pieces
from realrun.runtime import CpuLane
from realrun.transfer import MOVERS, Put
from tests.helpers.fake_device import FakeDevice
from tests.helpers.swapping import IN, OUT, SUBMISSIONS, make_store, one_thread, sides, tiny

BLOCKS = 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def bits(store: KVStore, tier: str) -> list[list[Any]]:
    """The bits of every block, so that NaN equals itself."""
    side = getattr(store, tier)
    return [
        [part.contiguous().view(torch.uint8).tolist() for part in sides(side, block)]
        for block in range(BLOCKS)
    ]


def scramble(store: KVStore, seed: int) -> None:
    """Any bits at all, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    for piece in [*store.device.pieces, *store.host.pieces]:
        raw = piece.view(torch.uint8)
        raw.copy_(torch.randint(0, 256, raw.shape, generator=generator, dtype=torch.uint8))


def job(way: Direction, runs: tuple[Run, ...]) -> Copy:
    return Copy(1, way, "r1", runs, sum(run[2] for run in runs))


@st.composite
def some_runs(draw: st.DrawFn) -> tuple[Run, ...]:
    """Runs of which no two share a block on either side, in any order."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    spare = BLOCKS - sum(lengths)
    if spare < 0:
        lengths, spare = lengths[:1], BLOCKS - lengths[0]

    def places() -> list[int]:
        order = draw(st.permutations(range(len(lengths))))
        gaps = sorted(draw(st.integers(0, spare)) for _ in lengths)
        found, at = [0] * len(lengths), 0
        for gap, index in zip(gaps, order, strict=True):
            found[index] = at + gap
            at += lengths[index]
        return found

    return tuple(zip(places(), places(), lengths, strict=True))


def moved(before: list[Any], source: list[Any], pairs: list[tuple[int, int]]) -> list[Any]:
    """The slow way: block by block."""
    after = list(before)
    for target, origin in pairs:
        after[target] = source[origin]
    return after


@pytest.mark.parametrize("machine", ["cpu", "fake"])
@pytest.mark.parametrize("way", Direction)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("submission", SUBMISSIONS)
@settings(max_examples=30)
@given(runs=some_runs(), seed=st.integers(0, 1 << 30), layers=st.integers(1, 2))
def test_a_job_moves_its_blocks_bit_for_bit_and_touches_nothing_else(
    submission: str,
    layout: str,
    way: Direction,
    machine: str,
    runs: tuple[Run, ...],
    seed: int,
    layers: int,
) -> None:
    config = tiny(layers=layers, kv_heads=2, head_dim=2)
    store = make_store(layout, BLOCKS, BLOCKS, config=config, dtype=torch.bfloat16)
    check_move(MOVERS[submission], store, job(way, runs), machine, seed)


def check_move(mover: Any, store: KVStore, copy: Copy, machine: str, seed: int) -> None:
    """All bits of both tiers are what moving block by block would have left."""
    way, runs = copy.direction, copy.runs
    scramble(store, seed)
    device, host = bits(store, "device"), bits(store, "host")
    fake = FakeDevice(seed)
    lane = CpuLane() if machine == "cpu" else fake.lane()
    with lane.on():
        mover(store, copy, lane)
    fake.run()
    pairs = [(d + i, h + i) for d, h, n in runs for i in range(n)]
    if way is OUT:
        host = moved(host, device, [(h, d) for d, h in pairs])
    else:
        device = moved(device, host, pairs)
    assert (bits(store, "device"), bits(store, "host")) == (device, host)


class Counting(CpuLane):
    """Counts calls and the bytes of each."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def copy(self, target: Any, source: Any) -> None:
        self.calls.append(source.nbytes)
        super().copy(target, source)

    def copy_each(self, pieces: Any) -> None:
        self.calls += pieces.sizes.tolist()
        super().copy_each(pieces)

    def copy_batch(self, pieces: Any) -> int:
        self.calls.append(int(pieces.sizes.sum()))
        return super().copy_batch(pieces)


RUNS = ((0, 4, 3), (5, 1, 1), (7, 8, 2))


@pytest.mark.parametrize("way", Direction)
@pytest.mark.parametrize(
    ("layout", "submission", "calls"),
    [
        ("layer_major", "per_block", 6 * 4),
        ("layer_major", "merged", 3 * 4),
        ("layer_major", "batched", 1),
        ("layer_major", "gather", 4),
        ("block_major", "per_block", 6),
        ("block_major", "merged", 3),
        ("block_major", "batched", 1),
        ("block_major", "gather", 1),
    ],
)
def test_a_job_is_so_many_calls_and_every_byte_is_in_one_of_them(
    layout: str, submission: str, calls: int, way: Direction
) -> None:
    store = make_store(layout, BLOCKS, BLOCKS)
    lane = Counting()
    with lane.on():
        assert MOVERS[submission](store, job(way, RUNS), lane).calls == calls
    assert len(lane.calls) == calls
    assert sum(lane.calls) == 6 * store.device.block_bytes


def test_a_call_moves_a_block_or_a_run_of_one_layer_and_side() -> None:
    store = make_store("layer_major", BLOCKS, BLOCKS)
    piece = store.device.block_bytes // 4
    for submission, lengths in (("per_block", [1] * 6), ("merged", [3, 1, 2])):
        lane = Counting()
        with lane.on():
            MOVERS[submission](store, job(OUT, RUNS), lane)
        assert Counter(lane.calls) == Counter(length * piece for length in lengths * 4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("submission", SUBMISSIONS)
@settings(max_examples=30)
@given(runs=some_runs(), seed=st.integers(0, 1 << 30))
def test_block_checksums_survive_a_round_trip_through_a_wiped_device(
    submission: str, layout: str, runs: tuple[Run, ...], seed: int
) -> None:
    store = make_store(layout, BLOCKS, BLOCKS)
    scramble(store, seed)
    blocks = [d + i for d, _, n in runs for i in range(n)]
    before = [store.device.checksum(block) for block in blocks]
    fake = FakeDevice(seed)
    lane = fake.lane()
    for way in (OUT, IN):
        with lane.on():
            MOVERS[submission](store, job(way, runs), lane)
        fake.run()
        if way is OUT:
            store.device.poison(blocks)
            assert [store.device.checksum(block) for block in blocks] != before
    assert [store.device.checksum(block) for block in blocks] == before


def test_a_gather_to_the_host_has_landed_when_the_cpu_unpacks_it() -> None:
    fake = FakeDevice()
    fake.last = {"lane0"}
    store = make_store()
    store.device.keys(0)[2] = 7
    lane = fake.lane()
    with lane.on():
        MOVERS["gather"](store, job(OUT, ((2, 3, 1),)), lane)
    assert float(store.host.keys(0)[3].min()) == 7


@pytest.mark.parametrize("machine", ["cpu", "fake"])
@pytest.mark.parametrize("way", Direction)
def test_a_mover_that_leaves_out_a_run_or_shifts_one_is_caught(
    way: Direction, machine: str
) -> None:
    def short(store: KVStore, copy: Copy, lane: Any) -> Put:
        return MOVERS["merged"](store, copy._replace(runs=copy.runs[:-1]), lane)

    def shifted(store: KVStore, copy: Copy, lane: Any) -> Put:
        [*runs, (device, host, length)] = copy.runs
        return MOVERS["merged"](
            store, copy._replace(runs=(*runs, (device, host + 1, length))), lane
        )

    store = make_store("layer_major", BLOCKS, BLOCKS)
    check_move(MOVERS["merged"], store, job(way, RUNS), machine, 1)
    for mover in (short, shifted):
        with pytest.raises(AssertionError):
            check_move(mover, store, job(way, RUNS), machine, 1)


@pytest.mark.parametrize("way", Direction)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("submission", SUBMISSIONS)
@settings(max_examples=30)
@given(runs=some_runs(), seed=st.integers(0, 1 << 30), chunk=st.integers(1, 40))
def test_no_call_crosses_from_one_registered_chunk_into_the_next(
    submission: str, layout: str, way: Direction, runs: tuple[Run, ...], seed: int, chunk: int
) -> None:
    """Chunks that end inside runs, and inside blocks; the fake driver refuses a call that crosses."""
    store = make_store(layout, BLOCKS, BLOCKS, config=tiny(layers=2, kv_heads=2, head_dim=2))
    assert store.host.whole is not None
    first, total = store.host.whole.data_ptr(), store.host.whole.nbytes
    borders = list(range(first + 8 * chunk, first + total, 8 * chunk))
    store.registered = cast(Any, SimpleNamespace(borders=np.array(borders, np.int64)))
    scramble(store, seed)
    device, host = bits(store, "device"), bits(store, "host")
    fake = FakeDevice(seed)
    fake.borders = borders
    lane = fake.lane()
    with lane.on():
        MOVERS[submission](store, job(way, runs), lane)
    fake.run()
    pairs = [(d + i, h + i) for d, h, n in runs for i in range(n)]
    if way is OUT:
        host = moved(host, device, [(h, d) for d, h in pairs])
    else:
        device = moved(device, host, pairs)
    assert (bits(store, "device"), bits(store, "host")) == (device, host)


def test_a_call_across_two_chunks_is_refused_by_the_fake_driver_as_by_a_real_one() -> None:
    store = make_store("block_major", BLOCKS, BLOCKS)
    fake = FakeDevice()
    fake.borders = [store.host.pieces[0][2].data_ptr()]
    for submission in ("merged", "batched"):
        lane = fake.lane()
        with lane.on(), pytest.raises(FaultError, match="CUDA error 1 at piece 0 of 1"):
            MOVERS[submission](store, job(OUT, ((0, 1, 2),)), lane)


@pytest.mark.parametrize("native", [True, False])
def test_the_loop_names_the_piece_that_was_refused_and_leaves_the_rest(
    native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native and not eachcopy.is_native():
        pytest.skip("no C compiler here")
    if not native:
        monkeypatch.setattr(eachcopy, "_library", lambda: None)
    asked: list[tuple[int, ...]] = []

    def call(target: int, source: int, size: int, stream: int) -> int:
        asked.append((target, source, size, stream))
        return 2 * (len(asked) == 3)

    store = make_store("layer_major", BLOCKS, BLOCKS)
    pieces = store.pieces(RUNS, OUT)
    with pytest.raises(FaultError, match="CUDA error 2 at piece 2 of 12"):
        eachcopy.copy_each(pieces, 1 << 40, COPY(call))
    rows = zip(*(part.tolist() for part in pieces), strict=True)
    assert asked == [(*row, 1 << 40) for row in list(rows)[:3]]


def test_without_a_compiler_the_loop_is_python_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(eachcopy.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(eachcopy, "_library", eachcopy._library.__wrapped__)
    assert not eachcopy.is_native()
    check_move(
        MOVERS["merged"], make_store("layer_major", BLOCKS, BLOCKS), job(OUT, RUNS), "cpu", 1
    )


@pytest.mark.skipif(not eachcopy.is_native(), reason="no C compiler here")
def test_the_loop_of_a_job_leaves_the_interpreter_to_other_threads() -> None:
    """A call that waits for another thread to run Python code: with the lock held it would wait for ever.
    The calls themselves are C's, so the lock is given up once for the whole loop and not for each call."""
    library = ctypes.CDLL(None)
    usleep = ctypes.cast(library.usleep, ctypes.c_void_p).value
    count = 200
    slow = Pieces(*(np.full(count, value, np.int64) for value in (1000, 0, 0)))
    ran = [0]
    over = threading.Event()

    def spin() -> None:
        while not over.is_set():
            ran[0] += 1
            time.sleep(0)

    thread = threading.Thread(target=spin)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)  # nobody is made to give the lock up
    try:
        thread.start()
        at_begin = ran[0]
        eachcopy.copy_each(slow, 0, ctypes.c_void_p(usleep))
        during = ran[0] - at_begin
    finally:
        sys.setswitchinterval(before)
        over.set()
        thread.join()
    assert during > 100
