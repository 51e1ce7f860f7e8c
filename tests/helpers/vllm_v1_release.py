"""vLLM 0.33.0's own V1 scheduler, loaded from its wheel without torch, CUDA or its other needs.

The wheel is fetched by `make test-full` (or named by FASTSWITCH_VLLM_V1_WHEEL) and never becomes
part of this repository. Its scheduler, its block pool and the scheduler's side of its offloading
connector are imported as they are; whatever else they import (devices, models, metrics, wire
formats) is replaced by inert stand-ins, since none of it decides anything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from policy.settings import Settings

VERSION = "0.33.0"
_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "vllm"
#: What is imported from the wheel. Everything else is a stand-in.
_REAL = (
    "vllm.v1.core",
    "vllm.v1.request",
    "vllm.v1.kv_cache_interface",
    "vllm.v1.kv_cache_spec_registry",
    "vllm.v1.hisparse.block_pool",
    "vllm.utils.math_utils",
    "vllm.utils.hashing",
    "vllm.v1.kv_offload.base",
    "vllm.v1.kv_offload.config",
    "vllm.v1.kv_offload.cpu.manager",
    "vllm.v1.kv_offload.cpu.common",
    "vllm.v1.kv_offload.cpu.policies",
    "vllm.distributed.kv_transfer.kv_connector.v1.base",
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading.scheduler",
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading.common",
    "vllm.distributed.kv_transfer.kv_connector.v1.offloading.config",
)
_OFFLOADING = "vllm.distributed.kv_transfer.kv_connector.v1.offloading"
_ABSENT = ("torch", "xxhash", "cbor2")


def find_wheel() -> Path | None:
    """The wheel, from the environment or from where `make test-full` puts it."""
    named = os.environ.get("FASTSWITCH_VLLM_V1_WHEEL")
    if named:
        return Path(named)
    found = sorted(_CACHE.glob(f"vllm-{VERSION}-*.whl"))
    return found[0] if found else None


class _Inert(type):
    """A class of which every attribute is such a class again, and which any operator leaves alone."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert

    def __or__(cls, other: object) -> Any:
        return cls

    __ror__ = __or__

    def __getitem__(cls, key: object) -> Any:
        return cls

    def __iter__(cls) -> Iterator[Any]:
        return iter(())


class Inert(metaclass=_Inert):
    """Takes any arguments, has any attribute and does nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __init_subclass__(cls, **kwargs: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert()

    def __call__(self, *args: Any, **kwargs: object) -> Any:
        """As a decorator it gives back what it decorates."""
        return args[0] if len(args) == 1 and callable(args[0]) else Inert()


class _StandIn(types.ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = _Inert(name, (Inert,), {})
        setattr(self, name, found)
        return found


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of the wheel named in _REAL from `folder`, the rest of it as stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(self, name: str, path: object, target: object = None) -> Any:
        top = name.partition(".")[0]
        if top == "vllm" and any(name == real or name.startswith(f"{real}.") for real in _REAL):
            place = self.folder.joinpath(*name.split("."))
            if place.is_dir():
                return importlib.util.spec_from_file_location(
                    name, place / "__init__.py", submodule_search_locations=[str(place)]
                )
            return importlib.util.spec_from_file_location(name, place.with_suffix(".py"))
        if top == "vllm" or top in _ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in ("vllm", *_ABSENT)


@contextlib.contextmanager
def imported(wheel: Path, folder: Path) -> Iterator[SimpleNamespace]:
    """Unpack what is needed under `folder` and import it; afterwards nothing of it stays in
    sys.modules. Not left before the last use, since the release imports some things late."""
    wanted = tuple(name.replace(".", "/") for name in _REAL)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and name.startswith(wanted):
                archive.extract(name, folder)
    kept = {name: module for name, module in sys.modules.items() if _is_ours(name)}
    for name in kept:
        del sys.modules[name]
    finder = _Finder(folder)
    sys.meta_path.insert(0, finder)
    try:
        _dress_stand_ins()
        yield SimpleNamespace(
            scheduler=importlib.import_module("vllm.v1.core.sched.scheduler"),
            request=importlib.import_module("vllm.v1.request"),
            interface=importlib.import_module("vllm.v1.kv_cache_interface"),
            names=importlib.import_module("vllm.v1.core.kv_cache_utils"),
            offloading=importlib.import_module(f"{_OFFLOADING}.scheduler"),
            transfers=importlib.import_module(f"{_OFFLOADING}.common"),
            tier=importlib.import_module("vllm.v1.kv_offload.cpu.manager"),
            connectors=importlib.import_module("vllm.distributed.kv_transfer.kv_connector.factory"),
        )
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_ours(name)]:
            del sys.modules[name]
        sys.modules.update(kept)


def _dress_stand_ins() -> None:
    """The few things of the stand-ins that the real modules look at."""
    utils: Any = importlib.import_module("vllm.utils")
    utils.length_from_prompt_token_ids_or_embeds = lambda tokens, _embeds: len(tokens)
    utils = importlib.import_module("vllm.v1.utils")
    utils.ConstantList = lambda items: items
    utils.record_function_or_nullcontext = lambda _name: contextlib.nullcontext()
    structured: Any = importlib.import_module("vllm.v1.structured_output.request")
    structured.StructuredOutputRequest.from_sampling_params = staticmethod(lambda _params: None)
    config: Any = importlib.import_module("vllm.config")
    config.get_current_vllm_config_or_none = lambda: None
    connectors: Any = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.utils")
    connectors.yield_req_data = _scheduled_tables


def _scheduled_tables(output: Any) -> Iterator[tuple[str, Any, bool]]:
    """What a step tells the connector: whose table, its blocks, and whether these are all."""
    for data in output.scheduled_new_reqs:
        yield data.req_id, data.block_ids, True
    cached = output.scheduled_cached_reqs
    for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
        yield name, blocks, name in cached.resumed_req_ids


def hash_block(content: object) -> bytes:
    """The name of a block: of its tokens and the name before it."""
    return sha256(repr(content).encode()).digest()


class ReleaseDriver:
    """One V1 scheduler of the release; `schedule` returns its decision in our words."""

    def __init__(
        self, vllm: SimpleNamespace, settings: Settings, *, by_priority: bool, caches: bool
    ) -> None:
        self.vllm = vllm
        size = settings.block_size
        interface = vllm.interface
        spec = interface.FullAttentionSpec(
            block_size=size, num_kv_heads=1, head_size=1, dtype=Inert()
        )
        blocks = settings.device_blocks + 1  # the release never hands out its block 0
        cache = interface.KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[interface.KVCacheGroupSpec(["layer"], spec)],
        )
        self.scheduler = vllm.scheduler.Scheduler(
            self.config(settings, blocks, by_priority=by_priority, caches=caches),
            cache,
            SimpleNamespace(accept_tokens=lambda _request, _tokens: True),
            block_size=size,
            mm_registry=Inert(),
        )
        vllm.names.NONE_HASH = b"none"
        self.hasher = vllm.names.get_request_block_hasher(size, hash_block)
        self.transfers: Any = None
        self.lost: list[tuple[str, int]] = []
        original = self.scheduler._preempt_request

        def logged(request: Any, *rest: Any, **named: Any) -> None:
            self.lost.append((request.request_id, request.num_computed_tokens))
            original(request, *rest, **named)

        self.scheduler._preempt_request = logged

    def config(
        self, settings: Settings, blocks: int, *, by_priority: bool, caches: bool
    ) -> SimpleNamespace:
        """What the release would have made of its command line."""
        return SimpleNamespace(
            scheduler_config=SimpleNamespace(
                max_num_seqs=settings.max_num_seqs,
                max_num_active_seqs=None,
                max_num_scheduled_tokens=None,
                max_num_batched_tokens=settings.max_num_batched_tokens,
                long_prefill_token_threshold=settings.long_prefill_token_threshold,
                long_prefill_token_threshold_adaptive=settings.long_prefill_token_threshold_adaptive,
                policy="priority" if by_priority else "fcfs",
                watermark=settings.watermark,
                prefill_schedule_interval=1,
                scheduler_reserve_full_isl=settings.reserve_full_isl,
                enable_chunked_prefill=True,
            ),
            cache_config=SimpleNamespace(
                num_gpu_blocks=blocks,
                enable_prefix_caching=caches,
                enable_mamba_shared_prefix_checkpoint=False,
                mamba_cache_mode="none",
                block_size=settings.block_size,
            ),
            lora_config=None,
            model_config=SimpleNamespace(
                uses_mrope=False,
                is_encoder_decoder=False,
                max_model_len=settings.max_model_len,
                runner_type="generate",
                is_diffusion=False,
                supports_multimodal_inputs=False,
                return_sampling_mask=False,
            ),
            kv_events_config=None,
            parallel_config=SimpleNamespace(
                data_parallel_index=0,
                data_parallel_size=1,
                decode_context_parallel_size=1,
                prefill_context_parallel_size=1,
                pipeline_parallel_size=1,
            ),
            observability_config=SimpleNamespace(
                per_request_spec_decode_metrics="none",
                kv_cache_metrics=False,
                enable_logging_iteration_details=False,
                enable_mfu_metrics=False,
            ),
            is_mm_encoder_only=False,
            kv_transfer_config=None,
            ec_transfer_config=None,
            ec_manager_config=SimpleNamespace(get_encoder_cache_manager_obj=lambda: None),
            speculative_config=None,
            num_speculative_tokens=0,
            num_lookahead_tokens=0,
            num_prefill_lookahead_tokens=0,
            num_hash_lookahead_tokens=0,
            use_v2_model_runner=False,
            max_in_flight_tokens=settings.max_num_batched_tokens,
            max_concurrent_batches=1,
            aux_output_config=SimpleNamespace(enabled=False),
        )

    def add(
        self, request_id: str, arrival: int, priority: int, tokens: Sequence[int], output: int
    ) -> None:
        """A request arrives, which will end after `output` tokens."""
        sampling = SimpleNamespace(
            max_tokens=output,
            min_tokens=0,
            extra_args=None,
            eos_token_id=None,
            stop_token_ids=(),
            repetition_detection=None,
            skip_reading_prefix_cache=None,
            num_logprobs=None,
        )
        self.scheduler.add_request(
            self.vllm.request.Request(
                request_id,
                list(tokens),
                sampling,
                None,
                arrival_time=float(arrival),
                priority=priority,
                block_hasher=self.hasher,
            )
        )

    def cancel(self, request_id: str) -> None:
        """The client went away."""
        self.scheduler.finish_requests(request_id, self.vllm.request.RequestStatus.FINISHED_ABORTED)

    def schedule(self) -> dict[str, Any]:
        """One decision, and the state right behind it."""
        self.lost = []
        self.output = output = self.scheduler.schedule()
        new = {data.req_id: data.num_computed_tokens for data in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        scheduled = output.num_scheduled_tokens
        resumed = [name for name in scheduled if name in cached.resumed_req_ids]
        return {
            "tokens": list(scheduled.items()),
            "new": list(new),
            "resumed": resumed,
            "found": [
                (name, new[name] if name in new else computed[name])
                for name in scheduled
                if name in new or name in cached.resumed_req_ids
            ],
            "preempted": list(self.lost),
            "free": self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            "running": [request.request_id for request in self.scheduler.running],
            "waiting": [request.request_id for request in self.scheduler.waiting],
        }

    def finish_step(self, sampled: dict[str, int]) -> None:
        """The step has run; whoever was computed to its end got the token named."""
        names = list(self.output.num_scheduled_tokens)
        self.scheduler.update_from_output(
            self.output,
            SimpleNamespace(
                sampled_token_ids=[[sampled[name]] if name in sampled else [] for name in names],
                req_id_to_index={name: index for index, name in enumerate(names)},
                logprobs=None,
                prompt_logprobs_dict={},
                prompt_token_id_logprobs_dict={},
                pooler_output=None,
                num_nans_in_logits=None,
                kv_connector_output=self.transfers,
                ec_connector_output=None,
                cudagraph_stats=None,
                sampling_masks=None,
            ),
        )
