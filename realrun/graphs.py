"""Decode steps as graphs: recorded once for a shape, then replayed with one call.

A graph has fixed shapes and fixed addresses, so a step is padded up to a **bucket** (rows, longest
context) and its inputs are copied to where the graph looks for them. Block ids are inputs like any
other: swapping needs no new graph. The graph chooses the likeliest tokens itself and moves its own
inputs on by one token, so that a step which follows from the one before needs no copy at all.

A padding row is at position -1; its K and V go to the tier's spare block, which no request has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from realrun.attention import DecodeAttention, kernels_for, splits_for
from realrun.device_ops import Kernels
from realrun.ferry import Ferry
from realrun.kvstore import Tier
from realrun.model import Decoder
from realrun.sampling import greedy

#: Rows and longest contexts for which there are graphs.
BATCHES = (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 128, 160, 192, 224, 256)
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
PADDING = -1

#: Runs a function twice to warm up and records it at the third time; returns what replays it. What
#: it writes while being recorded must not matter.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Work(NamedTuple):
    """New tokens of one request, behind `past` tokens that are in its blocks already.

    `table`: the request's device block ids, in logical order.
    """

    tokens: Sequence[int]
    past: int
    table: Sequence[int]


class Bucket(NamedTuple):
    """A graph's shape: rows, and the longest context in tokens, the new one included."""

    batch: int
    context: int


def bucket_for(
    batch: int,
    context: int,
    batches: Sequence[int] = BATCHES,
    contexts: Sequence[int] = CONTEXTS,
) -> Bucket | None:
    """The smallest bucket that holds `batch` rows of at most `context` tokens; None if none does."""
    row = bisect_left(batches, batch)
    column = bisect_left(contexts, context)
    if row == len(batches) or column == len(contexts):
        return None
    return Bucket(batches[row], contexts[column])


class Rows:
    """What a graph's inputs hold, row by row, as the host knows it. No tensors, no device.

    `aim` names the rows that must be written before the graph may run on `work`; `moved_on` says what
    the graph has done to its inputs.
    """

    def __init__(self, batch: int) -> None:
        """All rows are padding."""
        self.positions = [PADDING] * batch
        self.tokens = [0] * batch
        self.tables: list[list[int]] = [[] for _ in range(batch)]
        self.num_used = 0  # rows behind these are padding

    def aim(self, work: Sequence[Work]) -> list[int]:
        """Take `work` as the first rows and padding as the others. Returns the rows that differ from
        what is there, in any way; a padding row's token is of no interest."""
        count = len(work)
        if (
            self.positions[:count] == [one.past for one in work]
            and self.tokens[:count] == [one.tokens[0] for one in work]
            and self.tables[:count] == [one.table for one in work]
            and self.num_used <= count
        ):  # the usual case, compared at the speed of C
            return []
        stale = []
        for row, (tokens, past, table) in enumerate(work):
            if (
                self.positions[row] != past
                or self.tokens[row] != tokens[0]
                or self.tables[row] != table
            ):
                self.positions[row] = past
                self.tokens[row] = tokens[0]
                self.tables[row] = list(table)
                stale.append(row)
        for row in range(count, self.num_used):
            if self.positions[row] != PADDING:
                self.positions[row] = PADDING
                self.tokens[row] = 0
                self.tables[row] = []
                stale.append(row)
        self.num_used = count
        return stale

    def moved_on(self, tokens: Sequence[int], steps: int) -> None:
        """The graph ran `steps` times: it has put these tokens in place of the first rows', which are
        all that are not padding, and moved those on."""
        count = len(tokens)
        self.positions[:count] = [position + steps for position in self.positions[:count]]
        self.tokens[:count] = tokens


class DecodeGraph:
    """One bucket's graph with its inputs. `inputs` is `[batch, 2 + table width]`: token, position and
    block ids of each row, int64, so that one copy writes them all."""

    def __init__(
        self, decoder: Decoder, tier: Tier, bucket: Bucket, capture: Capture, kernels: Kernels
    ) -> None:
        assert tier.scratch is not None, "graphs need a tier with a spare block"
        self._rows = Rows(bucket.batch)
        self._count = 0  # rows that are not padding
        self._steps = 0  # begun since `tokens`
        self._room = 0  # steps that the blocks of every row have room for
        self._scratch = tier.scratch
        self._block_size = tier.block_size
        self._width = -(-bucket.context // tier.block_size)
        self._move = kernels.move
        self._ferry = Ferry(decoder.device, kernels.move)
        self._landed = self._ferry.host_memory(bucket.batch)
        self._staged = self._ferry.host_memory(bucket.batch, 2 + self._width)
        self._staged[:, 1] = PADDING
        self._staged[:, 2:] = tier.scratch
        self._view = self._staged.numpy()
        self._inputs = self._staged.to(decoder.device, copy=True)
        tokens_B, positions_B, table_BN = (
            self._inputs[:, 0],
            self._inputs[:, 1],
            self._inputs[:, 2:],
        )
        splits = splits_for(bucket.batch, tier.keys(0).shape[2], bucket.context)

        def step() -> None:
            attend = DecodeAttention(tier, positions_B, table_BN, splits, kernels=kernels)
            hidden_BM = decoder.forward(tokens_B, positions_B.clamp_min(0), attend)
            chosen_B = greedy(decoder.logits(hidden_BM))
            tokens_B.copy_(chosen_B)
            kernels.move(chosen_B, self._landed)
            positions_B.add_(positions_B > PADDING)

        self._replay = capture(step)

    def start(self, work: Sequence[Work]) -> None:
        """Begin a step of these rows, each one new token. It ends when `tokens` is asked for."""
        assert not self._steps, "the tokens of the step before have not been asked for"
        rows = self._rows
        stale = rows.aim(work)
        if stale:
            for row in stale:
                table = rows.tables[row][: self._width]
                self._view[row, 2 : 2 + len(table)] = table
                self._view[row, 2 + len(table) :] = self._scratch
            self._view[:, 0] = rows.tokens
            self._view[:, 1] = rows.positions
            self._move(self._staged, self._inputs)
        self._count = len(work)
        size, width = self._block_size, self._width
        self._room = min([size * min(len(one.table), width) - one.past for one in work])
        self.again()

    @property
    def has_room(self) -> bool:
        """Whether the blocks that the rows had at `start` hold another token each."""
        return self._room > 0

    def again(self) -> None:
        """Begin another step of the same rows, whose blocks must have room for it."""
        self._steps += 1
        self._room -= 1
        self._replay()

    def tokens(self) -> list[int]:
        """The new token of each row; waits for the steps that were begun."""
        self._ferry.wait()
        found: list[int] = self._landed[: self._count].tolist()
        self._rows.moved_on(found, self._steps)
        self._steps = 0
        return found


class DecodeGraphs:
    """The graphs of one model over one memory, made as they are needed."""

    def __init__(
        self,
        decoder: Decoder,
        tier: Tier,
        capture: Capture,
        *,
        batches: Sequence[int] = BATCHES,
        contexts: Sequence[int] = CONTEXTS,
        kernels: Kernels | None = None,
    ) -> None:
        self._decoder = decoder
        self._tier = tier
        self._capture = capture
        self._batches = batches
        self._contexts = contexts
        self._kernels = kernels_for(decoder.device.type) if kernels is None else kernels
        self._graphs: dict[Bucket, DecodeGraph] = {}
        self._last: DecodeGraph | None = None

    @property
    def num_graphs(self) -> int:
        """How many have been recorded."""
        return len(self._graphs)

    def graph_for(self, batch: int, context: int) -> DecodeGraph | None:
        """The graph for so many rows of at most `context` tokens, recorded now if it was not; None
        beyond the largest bucket. It must not be called while a step is being recorded."""
        bucket = bucket_for(batch, context, self._batches, self._contexts)
        if bucket is None:
            return None
        graph = self._graphs.get(bucket)
        if graph is None:
            with torch.inference_mode():
                graph = DecodeGraph(self._decoder, self._tier, bucket, self._capture, self._kernels)
            self._graphs[bucket] = graph
        return graph

    def step(self, work: Sequence[Work]) -> list[int] | None:
        """The next token of every row, each of which has one new token; None beyond the largest
        bucket. K and V of the new tokens are in their blocks afterwards."""
        graph = self.graph_for(len(work), 1 + max([one.past for one in work]))
        self._last = graph
        if graph is None:
            return None
        with torch.inference_mode():
            graph.start(work)
            return graph.tokens()

    def again(self) -> list[int] | None:
        """The next token of the rows of the last `step`, each behind the one it was given; None if there
        was none or a row needs another block. No look is taken at who they are."""
        graph = self._last
        if graph is None or not graph.has_room:
            return None
        with torch.inference_mode():
            graph.again()
            return graph.tokens()

    def warm_up(self, batch: int, context: int) -> int:
        """Record every graph that steps of up to `batch` rows and `context` tokens can ask for, so
        that none is recorded while serving. Returns how many there are now."""
        for rows in _upto(self._batches, batch):
            for tokens in _upto(self._contexts, context):
                self.graph_for(rows, tokens)
        return self.num_graphs


def _upto(sizes: Sequence[int], largest: int) -> Sequence[int]:
    """The sizes that hold anything from 1 to `largest`, as far as there are any."""
    return sizes[: bisect_left(sizes, largest) + 1]


class CudaCapture:
    """Records CUDA graphs. All share one pool of memory, since only one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """See Capture. Errors of other threads' calls do not spoil it: swap workers may be busy."""
        current = torch.cuda.current_stream(self._device)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            run()
            run()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        self._pool = graph.pool()
        return graph.replay


def capture_for(device: torch.device) -> Capture | None:
    """How a device records graphs, if it can."""
    return CudaCapture(device) if device.type == "cuda" else None
