"""vLLM 0.3.3's own scheduler, loaded from its wheel without its dependencies.

The wheel is fetched by `make test-full` (or named by FASTSWITCH_VLLM_WHEEL) and never becomes part
of this repository. Only scheduler, block manager and sequence are imported; what they import beside
is replaced by empty stand-ins, since none of it decides anything.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

VERSION = "0.3.3"
_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "vllm"
_STAND_INS = (
    "torch",
    "transformers",
    "psutil",
    "vllm.transformers_utils",
    "vllm.transformers_utils.config",
)


def find_wheel() -> Path | None:
    """The wheel, from the environment or from where `make test-full` puts it."""
    named = os.environ.get("FASTSWITCH_VLLM_WHEEL")
    if named:
        return Path(named)
    found = sorted(_CACHE.glob(f"vllm-{VERSION}-*.whl"))
    return found[0] if found else None


class _Anything(types.ModuleType):
    """A module of which every attribute is a class, for annotations that are never used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def load(wheel: Path, folder: Path) -> types.SimpleNamespace:
    """Unpack what is needed under `folder` and import it as `vllm`."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(("vllm/core/", "vllm/lora/request")) or name in (
                "vllm/config.py",
                "vllm/sequence.py",
                "vllm/block.py",
                "vllm/prefix.py",
                "vllm/utils.py",
                "vllm/logger.py",
                "vllm/sampling_params.py",
            ):
                archive.extract(name, folder)
    real = {name: sys.modules[name] for name in _STAND_INS if name in sys.modules}
    for name in _STAND_INS:
        sys.modules[name] = _Anything(name)
    package = types.ModuleType("vllm")
    package.__path__ = [str(folder / "vllm")]
    sys.modules["vllm"] = package
    lora = types.ModuleType("vllm.lora")
    lora.__path__ = [str(folder / "vllm" / "lora")]
    sys.modules["vllm.lora"] = lora
    try:
        scheduler = importlib.import_module("vllm.core.scheduler")
        sequence = importlib.import_module("vllm.sequence")
        sampling = importlib.import_module("vllm.sampling_params")
    finally:
        for name in list(sys.modules):
            if name == "vllm" or name.startswith("vllm.") or name in _STAND_INS:
                del sys.modules[name]
        sys.modules.update(real)  # torch cannot be imported a second time
    scheduler.logger.disabled = True
    return types.SimpleNamespace(scheduler=scheduler, sequence=sequence, sampling=sampling)


class ReleaseDriver:
    """One scheduler of the release; `step` returns its decision in our words."""

    def __init__(self, vllm: types.SimpleNamespace, settings: Any, *, swap: bool) -> None:
        limits = types.SimpleNamespace(
            max_model_len=settings.max_model_len,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_num_seqs=settings.max_num_seqs,
            max_paddings=settings.max_paddings,
        )
        cache = types.SimpleNamespace(
            block_size=settings.block_size,
            num_gpu_blocks=settings.device_blocks,
            num_cpu_blocks=settings.host_blocks,
            sliding_window=None,
        )
        self.vllm = vllm
        self.block_size = settings.block_size
        self.scheduler = vllm.scheduler.Scheduler(limits, cache, None)
        manager = self.scheduler.block_manager
        manager.watermark = settings.watermark
        manager.watermark_blocks = int(settings.watermark * settings.device_blocks)
        mode = vllm.scheduler.PreemptionMode
        self._log: dict[str, list[str]] = {}
        original = self.scheduler._preempt
        self.scheduler._preempt = lambda group, blocks: original(
            group, blocks, mode.SWAP if swap else mode.RECOMPUTE
        )
        for method, key in (
            ("_preempt_by_swap", "swap_out"),
            ("_preempt_by_recompute", "recompute"),
            ("_swap_in", "swap_in"),
        ):
            self._wrap(method, key)
        self._count = 0

    def _wrap(self, method: str, key: str) -> None:
        original = getattr(self.scheduler, method)

        def logged(group: Any, *rest: Any) -> Any:
            self._log[key].append(group.request_id)
            return original(group, *rest)

        setattr(self.scheduler, method, logged)

    def add(self, request_id: str, arrival_ns: int, input_tokens: int) -> None:
        """A request arrives."""
        self._count += 1
        sequence = self.vllm.sequence.Sequence(self._count, "", [1] * input_tokens, self.block_size)
        self.scheduler.add_seq_group(
            self.vllm.sequence.SequenceGroup(
                request_id, [sequence], self.vllm.sampling.SamplingParams(), float(arrival_ns)
            )
        )

    def cancel(self, request_id: str) -> None:
        """The client went away."""
        self.scheduler.abort_seq_group(request_id)

    def schedule(self) -> dict[str, Any]:
        """One decision, as a line of decisions.jsonl without step and time. Raises RuntimeError
        where the release aborts."""
        self._log = {"swap_out": [], "recompute": [], "swap_in": []}
        _, outputs = self.scheduler.schedule()
        groups = list(outputs.scheduled_seq_groups)
        self.groups = groups
        line: dict[str, Any] = {"prefill": [], "decode": []}
        if outputs.prompt_run:
            line["prefill"] = [[g.request_id, g.get_seqs()[0].get_len()] for g in groups]
        else:
            line["decode"] = [g.request_id for g in groups]
        line.update(self._log)
        line["reject"] = [g.request_id for g in outputs.ignored_seq_groups]
        line["free_device_blocks"] = self.scheduler.block_manager.get_num_free_gpu_blocks()
        line["free_host_blocks"] = self.scheduler.block_manager.get_num_free_cpu_blocks()
        return line

    def finish_step(self, finished: tuple[str, ...]) -> None:
        """Every scheduled sequence got a token; `finished` are done."""
        for group in self.groups:
            sequence = group.get_seqs()[0]
            sequence.append_token_id(0, {0: 0.0})
            if group.request_id in finished:
                sequence.status = self.vllm.sequence.SequenceStatus.FINISHED_STOPPED
                self.scheduler.free_seq(sequence)
        self.scheduler.free_finished_seq_groups()
