"""What a GPU check measures with: one model, one memory for each layout, made once and used by all parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from calibrate.grid import Limits
from realrun.kvstore import KVStore
from realrun.model import LoadedModel, load_model
from realrun.runner import Runner, Work
from realrun.runtime import Runtime, runtime_for

BLOCK = 16


class Sizes(NamedTuple):
    """How much of everything. `job`: blocks of a swap; `copy_bytes`: of plain copies."""

    model: str
    dtype: torch.dtype
    batches: tuple[int, ...]
    context: int
    steps: int
    prompts: tuple[int, ...]
    device_blocks: int
    host_blocks: int
    job: int
    copy_bytes: int
    limits: Limits
    samples: int
    serve_s: float
    serve_context: int
    min_preemptions: int


SIZES = {
    "cuda": Sizes(
        model="random:llama-3-8b",
        dtype=torch.bfloat16,
        batches=(1, 8, 64),
        context=2048,
        steps=32,
        # lengths that nothing else of the check runs, so that each first one is a first
        prompts=(131, 521, 1031, 2039),
        device_blocks=8448,
        host_blocks=4096,
        job=64,
        copy_bytes=512 << 20,
        limits=Limits(
            max_batch=64, max_context=2048, max_tokens=65536, max_prefill=2048, copy_blocks=128
        ),
        samples=8,
        serve_s=25.0,
        serve_context=2048,
        min_preemptions=50,
    ),
    "cpu": Sizes(
        model="random:tiny",
        dtype=torch.float32,
        batches=(1, 3),
        context=48,
        steps=3,
        prompts=(13, 21),
        device_blocks=96,
        host_blocks=96,
        job=8,
        copy_bytes=1 << 20,
        limits=Limits(max_batch=2, max_context=32, max_tokens=64, max_prefill=16, copy_blocks=4),
        samples=2,
        serve_s=1.5,
        serve_context=128,
        min_preemptions=3,
    ),
}


@dataclass
class Bench:
    """A device and what is on it. Everything is made when it is first asked for; what cannot be made raises
    for every part that needs it. `out` holds results, `work` what need not come back."""

    device: torch.device
    sizes: Sizes
    out: Path
    work: Path
    runtime: Runtime
    load: Callable[..., LoadedModel] = load_model
    make_store: Callable[..., KVStore] = KVStore
    _model: LoadedModel | None = None
    _stores: dict[str, KVStore] = field(default_factory=dict)
    _runners: dict[str, Runner] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: str, out: Path, work: Path) -> Bench:
        """Of this machine's GPU, or tiny sizes on its CPU."""
        device = torch.device("cuda", torch.cuda.current_device()) if kind == "cuda" else None
        device = device or torch.device("cpu")
        return cls(device, SIZES[kind], out, work, runtime_for(device))

    @property
    def on_gpu(self) -> bool:
        """Whether there is a GPU under it."""
        return self.device.type == "cuda"

    def model(self) -> LoadedModel:
        """Random weights, made on the device."""
        if self._model is None:
            self._model = self.load(self.sizes.model, self.sizes.dtype, self.device)
        return self._model

    def store(self, layout: str) -> KVStore:
        """Both pools."""
        if layout not in self._stores:
            self._stores[layout] = self.make_store(
                self.model().config,
                layout=layout,
                device_blocks=self.sizes.device_blocks,
                host_blocks=self.sizes.host_blocks,
                block_size=BLOCK,
                dtype=self.sizes.dtype,
                device=self.device,
            )
        return self._stores[layout]

    def runner(self, layout: str) -> Runner:
        """The model over a layout's memory, with the graphs recorded so far."""
        if layout not in self._runners:
            self._runners[layout] = Runner(self.model().decoder, self.store(layout).device)
        return self._runners[layout]

    def close(self) -> None:
        """Give page-locked memory back."""
        for store in self._stores.values():
            store.close()

    # ------------------------------------------------------------------ time

    def wait(self) -> None:
        """Until the device has nothing left to do."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def once(self, run: Callable[[], object]) -> float:
        """Seconds from an idle device to an idle device, by the host's clock."""
        self.wait()
        begin = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - begin

    def median(self, run: Callable[[], object], repeats: int = 5) -> float:
        """Of several, after one that does not count."""
        return statistics.median([self.once(run) for _ in range(repeats + 1)][1:])

    # ------------------------------------------------------------------ steps

    def decoding(self, batch: int, context: int) -> list[Work]:
        """Rows whose new token is the last of `context`, on blocks of their own."""
        width = -(-context // BLOCK)
        return [
            Work([1 + row], context - 1, list(range(row * width, (row + 1) * width)))
            for row in range(batch)
        ]

    def prompt(self, tokens: int, past: int = 0) -> Work:
        """New tokens behind `past`."""
        return Work([1] * tokens, past, list(range(-(-(past + tokens) // BLOCK))))
