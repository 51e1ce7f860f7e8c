"""Decode steps by recorded graphs write what steps without them write.

The graphs here are recorded on a CPU (`tests.helpers.recorded`): Python runs while recording and never
again, so a value, a shape or an address that was wrongly taken from it shows.
"""

# ruff: noqa: E402  (without its libraries a file is skipped before it imports ours)
from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="the executor needs torch")
pytest.importorskip("tokenizers", reason="the executor needs tokenizers")
pytest.importorskip("gguf", reason="the executor needs gguf")

from realrun.graphs import (
    BATCHES,
    CONTEXTS,
    PADDING,
    Bucket,
    DecodeGraphs,
    Rows,
    Work,
    bucket_for,
    capture_for,
)
from realrun.kvstore import KVStore
from realrun.model import LoadedModel, load_model
from realrun.runner import Runner
from tests.helpers.recorded import NotRecordable, Recorder

LAYOUTS = ("layer_major", "block_major")
SIZE = 8
BLOCKS = 64


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("random:tiny", torch.float32, "cpu", seed=3)


# ---------------------------------------------------------------------- what is pure


def test_a_bucket_is_the_smallest_that_holds_the_step() -> None:
    for batch in range(1, BATCHES[-1] + 1):
        for context in (1, 1023, 1024, 1025, 8192, CONTEXTS[-1]):
            bucket = bucket_for(batch, context)
            assert bucket is not None
            assert bucket.batch == min(size for size in BATCHES if size >= batch)
            assert bucket.context == min(size for size in CONTEXTS if size >= context)
    assert bucket_for(BATCHES[-1] + 1, 1) is None
    assert bucket_for(1, CONTEXTS[-1] + 1) is None
    assert bucket_for(3, 9, (2, 4), (8, 16)) == Bucket(4, 16)


def test_a_table_row_is_the_blocks_of_its_context_then_the_spare_one(model: LoadedModel) -> None:
    store = Bench(model, "layer_major").store
    graphs = DecodeGraphs(
        model.decoder, store.device, lambda _: lambda: None, batches=(2,), contexts=(2 * SIZE,)
    )
    graph = graphs.graph_for(2, SIZE)
    assert graph is not None
    spare = store.device.scratch
    with torch.inference_mode():
        graph.start([Work([1], 3, [5, 3, 7, 1])])  # with blocks in reserve behind the context
        assert graph._staged.tolist() == [[1, 3, 5, 3], [0, PADDING, spare, spare]]
        graph.tokens()
        graph.start([Work([1], 2, [4]), Work([9], 0, [6, 2])])
        assert graph._staged[:, 2:].tolist() == [[4, spare], [6, 2]]


blocks = st.lists(st.integers(0, 3), min_size=1, max_size=3)
works = st.builds(
    lambda token, past, table: Work([token], past, table), *[st.integers(0, 3)] * 2, blocks
)
#: What runs, or None: what ran before goes on. And what the graph answers.
steps = st.tuples(
    st.none() | st.lists(works, min_size=1, max_size=4), st.lists(st.integers(0, 3), min_size=4)
)


@given(st.lists(steps, max_size=12))
def test_rows_not_written_hold_what_they_should(schedule: Any) -> None:
    """A device that is written only where `aim` says always holds the step's rows."""
    host = Rows(4)
    device = [Work([0], PADDING, [])] * 4
    work: list[Work] = []
    for given_work, answers in schedule:
        work = work if given_work is None else given_work
        for row in host.aim(work):
            device[row] = Work([host.tokens[row]], host.positions[row], list(host.tables[row]))
        assert device[: len(work)] == work
        assert all((past, table) == (PADDING, []) for _, past, table in device[len(work) :])
        work = [
            Work([token], one.past + 1, one.table)
            for token, one in zip(answers, work, strict=False)
        ]
        device[: len(work)] = work  # which is what the graph does
        host.moved_on(answers[: len(work)], 1)


def test_a_step_that_follows_leaves_nothing_to_write() -> None:
    host = Rows(4)
    tables = [[1, 2], [3], [9, 4]]
    assert host.aim([Work([7], 8 + i, table) for i, table in enumerate(tables)]) == [0, 1, 2]
    host.moved_on([5, 6, 7], 1)
    follows = [Work([5 + i], 9 + i, table) for i, table in enumerate(tables)]
    assert host.aim(follows) == []
    host.moved_on([1, 1, 1], 1)
    tables[1] = [3, 8]  # it grew
    assert host.aim([Work([1], 10 + i, table) for i, table in enumerate(tables)]) == [1]
    host.moved_on([1, 1, 1], 3)
    assert host.aim([Work([1], 13 + i, table) for i, table in enumerate(tables[:2])]) == [2]
    assert host.aim([Work([1], 13, tables[0]), Work([2], 14, tables[1])]) == [1]  # another token


# ---------------------------------------------------------------------- with a model


class Request:
    """A text, and the blocks it lies in."""

    def __init__(self, tokens: list[int], table: list[int]) -> None:
        self.tokens = tokens
        self.table = table

    @property
    def work(self) -> Work:
        """Its next step, with a table of a length of its own."""
        return Work(self.tokens[-1:], len(self.tokens) - 1, self.table)


class Bench:
    """A runner over poisoned memory, and requests in it."""

    def __init__(self, model: LoadedModel, layout: str, **options: Any) -> None:
        self.store = KVStore(
            model.config,
            layout=layout,
            device_blocks=BLOCKS,
            host_blocks=BLOCKS,
            block_size=SIZE,
            dtype=torch.float32,
            device=model.decoder.device,
        )
        self.tier = self.store.device
        assert self.tier.scratch == BLOCKS
        self.tier.poison(list(range(BLOCKS + 1)))
        self.runner = Runner(model.decoder, self.tier, **options)
        self.free = list(range(BLOCKS))
        self.requests: dict[int, Request] = {}

    def admit(self, name: int, prompt: list[int]) -> None:
        request = Request(list(prompt), [])
        self.requests[name] = request
        self._grow(request, len(prompt))
        with torch.inference_mode():
            request.tokens += self.runner.greedy_step([Work(prompt, 0, request.table)])

    def step(self, names: list[int]) -> None:
        """One more token for these."""
        for name in names:
            self._grow(self.requests[name], len(self.requests[name].tokens))
        with torch.inference_mode():
            found = self.runner.greedy_step([self.requests[name].work for name in names])
        for name, token in zip(names, found, strict=True):
            self.requests[name].tokens.append(token)

    def move(self, name: int) -> None:
        """As a swap does: out and in again, into other blocks; the old ones are poisoned."""
        request = self.requests[name]
        old = list(request.table)
        new = [self.free.pop(0) for _ in old]
        with torch.inference_mode():
            for piece in self.tier.pieces:
                piece[new] = piece[old]
            self.tier.poison(old)
        request.table[:] = new
        self.free += old

    def leave(self, name: int) -> None:
        request = self.requests.pop(name)
        with torch.inference_mode():
            self.tier.poison(request.table)
        self.free += request.table

    def _grow(self, request: Request, tokens: int) -> None:
        while len(request.table) * SIZE < tokens:
            request.table.append(self.free.pop(0))


def drive(bench: Bench, seed: int) -> dict[int, list[int]]:
    """A random life of several requests. Returns all texts."""
    draw = random.Random(seed)
    texts: dict[int, list[int]] = {}
    for name in range(9):
        bench.admit(name, [draw.randrange(256) for _ in range(draw.randint(2, 20))])
        texts[name] = bench.requests[name].tokens
        for _ in range(draw.randint(0, 6)):
            names = sorted(bench.requests)
            bench.step(draw.sample(names, draw.randint(1, len(names))))
            if draw.random() < 0.5:
                bench.move(draw.choice(names))
        if len(bench.requests) > draw.randint(2, 5):
            bench.leave(draw.choice(sorted(bench.requests)))
    return texts


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_graphs_write_the_same_texts_as_eager_steps(
    model: LoadedModel, layout: str, seed: int
) -> None:
    recorder = Recorder()
    by_graph = drive(Bench(model, layout, capture=recorder), seed)
    eagerly = drive(Bench(model, layout), seed)
    assert by_graph == eagerly
    assert recorder.num_replayed > 15
    assert 2 <= recorder.num_recorded <= 4  # buckets of 1, 2, 4 and 8 rows


def test_a_step_follows_only_where_blocks_have_room_and_the_last_was_by_a_graph(
    model: LoadedModel,
) -> None:
    store = Bench(model, "layer_major").store
    capture = Recorder()
    graphs = DecodeGraphs(model.decoder, store.device, capture, batches=(2,), contexts=(3 * SIZE,))
    assert graphs.again() is None
    first = graphs.step([Work([1], SIZE - 2, [4]), Work([9], 0, [6, 2])])
    assert first is not None
    assert graphs.again() is not None  # the last slot of block 4
    assert graphs.again() is None
    again = graphs.step([Work([first[0]], SIZE - 1, [4, 5]), Work([9], 1, [6, 2])])
    assert again is not None and graphs.again() is not None
    assert graphs.step([Work([1], 3 * SIZE, [4, 5, 7, 8])]) is None  # beyond the largest graph
    assert graphs.again() is None


def test_steps_can_follow_one_another_on_the_device(model: LoadedModel) -> None:
    prompts = {0: [1, 2, 3], 1: [250, 4, 4, 9], 2: [7, 8]}
    benches = [Bench(model, "block_major", capture=capture) for capture in (Recorder(), None)]
    for bench in benches:
        for name, prompt in prompts.items():
            bench.admit(name, prompt)
            bench._grow(bench.requests[name], 40)  # room for all steps
    ahead, eager = benches
    for _ in range(23):
        eager.step([0, 1, 2])
    assert ahead.runner.graphs is not None
    graph = ahead.runner.graphs.graph_for(3, 40)
    assert graph is not None
    with torch.inference_mode():
        graph.start([ahead.requests[name].work for name in prompts])
        for _ in range(9):
            graph.again()
        tenth = graph.tokens()
    for name, prompt in prompts.items():
        tokens = eager.requests[name].tokens[: len(prompt) + 11]  # one from the prompt, and ten
        assert tenth[name] == tokens[-1]
        ahead.requests[name].tokens = tokens
    for _ in range(13):
        ahead.step([0, 1, 2])
    for name in prompts:
        assert ahead.requests[name].tokens == eager.requests[name].tokens


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_rows_write_to_the_spare_block_alone(model: LoadedModel, layout: str) -> None:
    bench = Bench(model, layout, capture=Recorder())
    for name in range(3):
        bench.admit(name, [name + 1] * (SIZE - 1))
    tier = bench.tier
    with torch.inference_mode():
        for piece in tier.pieces:
            piece.nan_to_num_(nan=0.5)
    before = [piece.clone() for piece in tier.pieces]
    bench.step([0, 1, 2])  # a fourth row is padding
    touched = set()
    for now, then in zip(tier.pieces, before, strict=True):
        touched |= {int(index) for index in (now != then).flatten(1).any(1).nonzero()}
    own = {bench.requests[name].table[0] for name in range(3)}
    assert own <= touched <= own | {tier.scratch}
    assert bench.runner.graphs is not None
    graph = bench.runner.graphs.graph_for(3, 1)
    assert graph is not None
    assert graph._inputs[:, 1].tolist() == [SIZE, SIZE, SIZE, PADDING]  # it has not moved on


def test_recording_touches_nobodys_blocks(model: LoadedModel) -> None:
    bench = Bench(model, "layer_major", capture=Recorder())
    bench.admit(0, [1, 2, 3])
    tier = bench.tier
    before = [piece[:BLOCKS].nan_to_num(nan=0.5) for piece in tier.pieces]
    assert bench.runner.graphs is not None
    assert bench.runner.graphs.warm_up(5, 1500) == 4 * 2
    after = [piece[:BLOCKS].nan_to_num(nan=0.5) for piece in tier.pieces]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_each_bucket_is_recorded_once_and_when_it_is_needed(model: LoadedModel) -> None:
    recorder = Recorder()
    bench = Bench(model, "block_major", capture=recorder)
    for name in range(3):
        bench.admit(name, [5, name])
    assert recorder.num_recorded == 0
    for names in ([0], [1], [0, 1], [2, 0], [0, 1, 2], [1]):
        bench.step(names)
    assert (recorder.num_recorded, recorder.num_replayed) == (3, 6)


def test_steps_beyond_the_buckets_run_without_a_graph(model: LoadedModel) -> None:
    recorder = Recorder()
    bench, eager = Bench(model, "block_major"), Bench(model, "block_major")
    bench.runner.graphs = DecodeGraphs(
        model.decoder, bench.tier, recorder, batches=(1, 2), contexts=(16,)
    )
    for one in (bench, eager):
        for name in range(3):
            one.admit(name, [9, name] * (1 + 3 * name))
    replays = []
    for names in ([0, 1], [0, 1, 2], [2], [2], [2], [0, 2]):
        for one in (bench, eager):
            one.step(names)
        replays.append(recorder.num_replayed)
    # three rows are too many; request 2 has 15 tokens, and may have 16
    assert replays == [1, 1, 2, 2, 2, 2]
    for name in range(3):
        assert bench.requests[name].tokens == eager.requests[name].tokens


def test_prompts_and_the_deterministic_mode_use_no_graph(model: LoadedModel) -> None:
    recorder = Recorder()
    for options in ({"deterministic": True}, {"eager": True}):
        bench = Bench(model, "block_major", capture=recorder, **options)
        assert bench.runner.graphs is None
        bench.admit(0, [1, 2])
        bench.step([0])
    mixed = Bench(model, "block_major", capture=recorder)
    mixed.admit(0, [1, 2])
    work = [Work([4, 5], 0, [BLOCKS - 1]), mixed.requests[0].work]
    with torch.inference_mode():
        mixed.runner.greedy_step(work)
        mixed.runner.step([mixed.requests[0].work])  # who wants logits, to sample from
    assert recorder.num_recorded == 0


def test_a_cpu_records_no_graphs_of_its_own(model: LoadedModel) -> None:
    assert capture_for(torch.device("cpu")) is None
    assert Bench(model, "block_major").runner.graphs is None


# ---------------------------------------------------------------------- the recorder itself


@pytest.mark.parametrize(
    "run",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.add_(torch.tensor([1.0])),
        lambda x: [x] if (x > 0).all() else [],
    ],
)
def test_what_a_graph_cannot_hold_is_refused(run: Any) -> None:
    with pytest.raises(NotRecordable):
        Recorder()(lambda: run(torch.ones(3)))


def test_a_recording_reads_its_inputs_again_and_python_never() -> None:
    given, out, python = torch.ones(2), torch.zeros(2), [10.0]
    replay = Recorder()(lambda: out.copy_((given.view(2) * 2 + python[0])[:2]))
    given.fill_(3.0)
    python[0] = 1000.0
    replay()
    assert out.tolist() == [16.0, 16.0]
