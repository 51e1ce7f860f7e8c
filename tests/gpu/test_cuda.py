"""What only a GPU can show. `make gpu-check PART=tests` runs these, and the Triton kernels' tests on it."""

# ruff: noqa: E402, N806  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the executor needs torch")
pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
pytest.importorskip("gguf", reason="the executor needs gguf")

from policy.plan import Copy, Direction
from policy.pools.runs import Run
from realrun.attention import PLAIN, splits_for
from realrun.kvstore import LAYOUTS, KVStore
from realrun.model import LoadedModel, load_model
from realrun.runtime import runtime_for
from realrun.swap import SwapManager
from realrun.transfer import MOVERS
from tests.helpers.kernels import device, kernels_of, memory, normal, padded, shaped
from tests.realrun.test_graphs import Bench, drive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SUBMISSIONS = tuple(MOVERS)
#: Of both pools.
BLOCKS = 96
OUT, IN = Direction.TO_HOST, Direction.TO_DEVICE


@pytest.fixture
def model() -> LoadedModel:
    return load_model("random:tiny", torch.float32, device(), seed=3)


def new_store(layout: str, dtype: Any = torch.bfloat16) -> KVStore:
    return KVStore(
        shaped(32, 8, 64, layers=4),
        layout=layout,
        device_blocks=BLOCKS,
        host_blocks=BLOCKS,
        block_size=16,
        dtype=dtype,
        device=device(),
    )


def fill(store: KVStore, seed: int) -> None:
    generator = torch.Generator(device()).manual_seed(seed)
    for piece in store.device.pieces:
        piece.normal_(generator=generator)


def scattered(rng: random.Random, count: int, taken: Sequence[int] = ()) -> list[int]:
    """Block ids in a few stretches, none of those taken."""
    free = [block for block in range(BLOCKS) if block not in taken]
    start = rng.randrange(len(free) - count)
    ids = free[start : start + count]
    cut = rng.randrange(1, count)
    return ids[cut:] + ids[:cut]


def runs_of(on_device: list[int], on_host: list[int]) -> tuple[Run, ...]:
    """Pairs, with neighbours on both sides joined."""
    runs: list[Run] = []
    for d, h in zip(on_device, on_host, strict=True):
        if runs and (d, h) == (runs[-1][0] + runs[-1][2], runs[-1][1] + runs[-1][2]):
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((d, h, 1))
    return tuple(runs)


class Swaps:
    """A swap manager and the copies put into it."""

    def __init__(self, store: KVStore, submission: str, threads: int) -> None:
        self.manager = SwapManager(
            store,
            runtime_for(device()),
            submission=submission,
            threads=threads,
            clock=time.perf_counter_ns,
        )
        self._next_id = 0

    def start(self, way: Direction, on_device: list[int], on_host: list[int]) -> int:
        self._next_id += 1
        runs = runs_of(on_device, on_host)
        self.manager.submit(Copy(self._next_id, way, "r", runs, len(on_device), urgent=True))
        return self._next_id

    def finish(self) -> None:
        """Wait for all of them; none may have failed."""
        manager = self.manager
        manager.wait(list(manager.in_flight))
        for transfer in manager.poll():
            assert transfer.ok, transfer.error
        assert not manager.in_flight


@pytest.fixture
def store(request: Any) -> Iterator[KVStore]:
    made = new_store(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_host_memory_is_page_locked_until_the_store_is_closed(layout: str) -> None:
    store = new_store(layout)
    assert all(piece.is_pinned() for piece in store.host.pieces)
    assert store.registered is not None
    assert store.registered.num_bytes == BLOCKS * store.host.block_bytes
    pieces = store.host.pieces
    store.close()
    assert not any(piece.is_pinned() for piece in pieces)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("submission", SUBMISSIONS)
@pytest.mark.parametrize("store", LAYOUTS, indirect=True)
def test_blocks_survive_a_round_trip_bit_by_bit(
    store: KVStore, submission: str, threads: int
) -> None:
    """Out, poisoned, and in again to other blocks, several jobs at once."""
    swaps = Swaps(store, submission, threads)
    rng = random.Random(1)
    with torch.inference_mode():
        fill(store, 1)
        old = [list(range(10, 22)), list(range(60, 40, -1)), [5, 3, 4, 90, 91, 92]]
        host = [scattered(rng, 12), [], []]
        host[1] = scattered(rng, 20, host[0])
        host[2] = scattered(rng, 6, host[0] + host[1])
        sums = [[store.device.checksum(block) for block in job] for job in old]
        swaps.manager.set_barrier()
        for on_device, on_host in zip(old, host, strict=True):
            swaps.start(OUT, on_device, on_host)
        swaps.finish()
        assert [[store.host.checksum(block) for block in job] for job in host] == sums
        store.device.poison(list(range(BLOCKS)))
        swaps.manager.set_barrier()
        new = [list(range(70, 82)), list(range(20)), [33, 95, 50, 51, 52, 40]]
        for on_device, on_host in zip(new, host, strict=True):
            swaps.start(IN, on_device, on_host)
        swaps.finish()
        assert [[store.device.checksum(block) for block in job] for job in new] == sums
    swaps.manager.close()


@pytest.mark.parametrize("submission", [name for name in SUBMISSIONS if name != "per_block"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_way_of_submitting_moves_what_single_copies_move(
    layout: str, submission: str
) -> None:
    hosts = []
    for way in ("per_block", submission):
        store = new_store(layout)
        with torch.inference_mode():
            fill(store, 2)
            swaps = Swaps(store, way, 0)
            swaps.manager.set_barrier()
            swaps.start(OUT, [*range(8, 40), 70, 2], [*range(50, 82), 3, 4])
            swaps.finish()
            swaps.manager.close()
            hosts.append([piece.view(torch.int16).clone() for piece in store.host.pieces])
        store.close()
    assert all(torch.equal(*pair) for pair in zip(*hosts, strict=True))
    assert any(piece.any() for piece in hosts[0])


@pytest.mark.parametrize("submission", ["merged", "batched"])
def test_a_store_waits_for_the_kernels_before_it(submission: str) -> None:
    """Long work on the compute stream writes what the copy moves (trap A1)."""
    store = new_store("block_major", torch.float32)
    swaps = Swaps(store, submission, 1)
    with torch.inference_mode():
        whole = store.device.pieces[0]
        large = torch.randn(4096, 4096, device=device())
        for value in range(1, 6):
            for _ in range(10):
                large = (large @ large).clamp_(-1, 1)
            whole.fill_(float(value))
            swaps.manager.set_barrier()
            swaps.start(OUT, list(range(BLOCKS)), list(range(BLOCKS)))
            swaps.finish()
            assert bool((store.host.pieces[0] == value).all())
    swaps.manager.close()
    store.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("batch", "longest"), [(1, 2048), (8, 2048), (64, 700)])
def test_the_kernels_attend_as_plain_torch_does_at_full_size(
    batch: int, longest: int, layout: str, dtype: Any
) -> None:
    """Heads of Llama-3-8B."""
    rng = random.Random(batch)
    lengths = [longest, *(rng.randrange(1, longest) for _ in range(batch - 1))]
    held = memory(shaped(32, 8, 128, layers=1), layout, lengths, 16, dtype)
    keys, values = held.tier.keys(0), held.tier.values(0)
    q_BHD = normal((batch, 32, 128), dtype, 4)
    at = torch.tensor(lengths, device=device())
    table_BN = padded(held.tables)
    found = kernels_of("triton").decode(table_BN, at, 16, splits_for(batch, 8, longest))(
        q_BHD, keys, values
    )
    expected = PLAIN.decode(table_BN, at, 16, 1)(q_BHD.float(), keys.float(), values.float())
    error = (found.float() - expected).abs().max() / expected.abs().max()
    assert float(error) < {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_graphs_write_the_same_texts_as_eager_steps(
    model: LoadedModel, layout: str, seed: int
) -> None:
    by_graph = Bench(model, layout)
    texts = drive(by_graph, seed)
    assert by_graph.runner.graphs is not None
    assert by_graph.runner.graphs.num_graphs >= 2
    assert texts == drive(Bench(model, layout, eager=True), seed)


@pytest.mark.parametrize("eager", [False, True], ids=["graphs", "eager"])
@pytest.mark.parametrize("submission", SUBMISSIONS)
def test_swapping_in_threads_disturbs_no_forward_pass(
    model: LoadedModel, submission: str, eager: bool
) -> None:
    """Requests decode, and graphs are recorded, while other blocks go out and in the whole time."""
    quiet = Bench(model, "layer_major", eager=eager)
    busy = Bench(model, "layer_major", eager=eager)
    swaps = Swaps(busy.store, submission, 2)
    for bench in (quiet, busy):
        for name in range(3):
            bench.admit(name, [name + 1, 7, 9])
    moved = list(range(48, 64))
    with torch.inference_mode():
        for piece in busy.tier.pieces:
            piece[moved] = torch.randn_like(piece[moved])
        sums = [busy.tier.checksum(block) for block in moved]
        for step in range(40):
            names = [0, 1, 2] if step % 7 else [step % 3]
            quiet.step(names)
            swaps.manager.set_barrier()
            swaps.start(OUT, moved, moved)
            busy.step(names)
            swaps.finish()
            busy.tier.poison(moved)
            swaps.manager.set_barrier()
            swaps.start(IN, moved, moved)
            busy.step(names)
            quiet.step(names)
            swaps.finish()
            assert [busy.tier.checksum(block) for block in moved] == sums
    for name in range(3):
        assert not set(moved) & set(busy.requests[name].table)
        assert busy.requests[name].tokens == quiet.requests[name].tokens
    swaps.manager.close()


@pytest.mark.parametrize("system", ["fastswitch", "vllm-0.3.3-keep", "+batched", "+block-major"])
def test_forced_swapping_changes_no_text(system: str, tmp_path: Path) -> None:
    pytest.importorskip("pydantic", reason="scenarios need pydantic")
    from realrun.serve import Options, serve
    from tests.helpers.real import ROOM, scenario, write_workload

    path = write_workload(tmp_path / "w.jsonl", seed=1)
    options = Options(
        device=device().type, model="random:tiny", dtype="float32", deterministic=True
    )
    replies = []
    preemptions = []
    for name, values in (
        ("roomy", {"pool": {**ROOM, "device_blocks": 300}, "limits": {"max_model_len": 60}}),
        ("tight", {"system": system, "pool": {**ROOM, "device_blocks": 16}}),
    ):
        recording = serve(scenario(path, **values), options, out=tmp_path / name)
        preemptions.append(recording.summary["metrics"]["preemptions"])
        lines = (tmp_path / name / "replies.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        replies.append({row["request_id"]: row["tokens"] for row in rows})
    assert replies[0] == replies[1]
    assert all(replies[0].values())
    assert preemptions[0] == 0 < preemptions[1]
