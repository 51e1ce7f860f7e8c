"""A store of tiny blocks, each told by one number, and a swap manager over it."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from policy.plan import Copy, Direction
from policy.pools.runs import Run
from realrun.config import PRESETS, ModelConfig
from realrun.kvstore import KVStore, Tier
from realrun.runtime import CpuRuntime
from realrun.swap import SwapManager, Transfer
from tests.helpers.fake_device import FakeDevice

OUT, IN = Direction.TO_HOST, Direction.TO_DEVICE
CPU = torch.device("cpu")
SUBMISSIONS = ("per_block", "merged", "batched", "gather")


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in the calling thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(layers: int = 2, kv_heads: int = 1, head_dim: int = 2) -> ModelConfig:
    """The shape of a model that nobody runs."""
    return replace(PRESETS["tiny"], layers=layers, kv_heads=kv_heads, head_dim=head_dim)


def make_store(
    layout: str = "layer_major",
    device_blocks: int = 8,
    host_blocks: int = 8,
    block_size: int = 2,
    config: ModelConfig | None = None,
    dtype: torch.dtype = torch.float64,
) -> KVStore:
    return KVStore(
        config or tiny(),
        layout=layout,
        device_blocks=device_blocks,
        host_blocks=host_blocks,
        block_size=block_size,
        dtype=dtype,
        device=CPU,
    )


class Ticks:
    """A clock that goes on by a microsecond when it is read."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns


def sides(tier: Tier, block: int) -> Iterator[torch.Tensor]:
    """K and V of a block, layer by layer."""
    for layer in range(len(tier._views)):
        yield tier.keys(layer)[block]
        yield tier.values(layer)[block]


class Desk:
    """Blocks by number: `fill` writes one in every place of a block, `value` reads it back."""

    def __init__(
        self,
        device: FakeDevice | None = None,
        *,
        threads: int = 0,
        submission: str = "merged",
        layout: str = "layer_major",
        timeout_s: float = 60.0,
        swap: type[SwapManager] = SwapManager,
        blocks: int = 8,
    ) -> None:
        self.store = make_store(layout, blocks, blocks)
        self.tiers = {"device": self.store.device, "host": self.store.host}
        self.clock = Ticks()
        self.device = device
        self.swap = swap(
            self.store,
            device or CpuRuntime(),
            submission=submission,
            threads=threads,
            clock=self.clock,
            timeout_s=timeout_s,
        )
        self._next_id = 0

    def fill(self, tier: str, block: int, number: float) -> None:
        for side in sides(self.tiers[tier], block):
            side.fill_(number)

    def value(self, tier: str, block: int) -> float:
        """The number in all places of a block; NaN if they differ."""
        found = {float(x) for side in sides(self.tiers[tier], block) for x in side.flatten()}
        return found.pop() if len(found) == 1 else math.nan

    def values(self, tier: str) -> list[float]:
        return [self.value(tier, block) for block in range(self.tiers[tier].num_blocks)]

    def copy(self, way: Direction, *runs: Run) -> Copy:
        self._next_id += 1
        blocks = sum(length for _, _, length in runs)
        return Copy(self._next_id, way, f"r{self._next_id}", runs, blocks)

    def start(self, way: Direction, *runs: Run) -> Transfer:
        """Submit a copy."""
        copy = self.copy(way, *runs)
        self.swap.submit(copy)
        return self.swap.in_flight[copy.copy_id]

    def close(self) -> None:
        """Let everything end."""
        if self.device is not None:
            self.device.goes_on_when_asked = True
            self.device.let_go()
        self.swap._timeout_s = 10.0
        self.swap.close()

    def wait(self, *transfers: Transfer) -> None:
        self.swap.wait([transfer.copy.copy_id for transfer in transfers])

    def settle(self) -> list[Transfer]:
        """Poll until nothing is in flight."""
        ended = []
        while self.swap.in_flight:
            ended += self.swap.poll()
            self.swap.wait_for_news(0.01)
        return ended


class Gate:
    """Holds threads where the test wants them: `passes` blocks until `open`."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._opened = threading.Event()

    def passes(self) -> None:
        self._reached.set()
        assert self._opened.wait(10), "nobody opened the gate"

    def wait_until_reached(self) -> None:
        assert self._reached.wait(10), "nobody came to the gate"

    def open(self) -> None:
        self._opened.set()


def on_first(what: str, act: Callable[[], Any], *, after: int = 0) -> Callable[[Any, str], None]:
    """For `FakeDevice.on_put`: `act` when `what` is put for the first time after so many."""
    left = [after]

    def look(_lane: Any, put: str) -> None:
        if put == what:
            left[0] -= 1
            if left[0] == -1:
                act()

    return look


def our_threads() -> list[str]:
    """Swap threads that are alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("swap-")]
