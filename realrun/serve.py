"""`serve(scenario, ...) -> Recording`: the one entry point of the real machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from policy.errors import ConfigError
from policy.scheduler import Scheduler
from realrun.conversation import MAX_TOKENS, read_conversation
from realrun.engine import Clock, Engine, Live, Parts, Sampler
from realrun.journal import Journal
from realrun.kvstore import KVStore
from realrun.model import LoadedModel, load_model
from realrun.prompts import Prompts, RandomPrompts, TextPrompts
from realrun.runner import Runner
from realrun.runtime import Runtime, runtime_for
from realrun.sampling import SamplingParams, draws, greedy, sample
from realrun.swap import TIMEOUT_S, SwapManager
from runs import recording
from runs.loop import facts_of
from runs.metrics.served import rejected_because
from runs.metrics.summary import summarise
from runs.provenance import provenance
from runs.recorder import Recorder
from runs.recording import Recording
from runs.scenario import Scenario
from runs.serving import (
    Serving,
    aging_lengths,
    assumptions,
    checker,
    make_driver,
    make_scheduler,
    settings_for,
    v1_limits,
)
from runs.user_order import OrderLike, UserOrder, user_order
from traces.prefixes import with_prefix_block
from traces.randomness import Streams
from traces.sources import open_workload
from traces.strict import shown_path
from traces.workload import Workload

#: The interpreter's default lets a thread hold the lock for a whole decode step.
SWITCH_INTERVAL_S = 2e-4
#: Share of the device memory that is free after the weights which KV may take.
KV_SHARE = 0.85
#: Bytes of the copy that measures the link when a run begins.
PROBE_BYTES = 64 << 20


@dataclass(frozen=True)
class Options:
    """What a scenario does not say about a real run.

    `conversation`: a file of text to serve in place of the scenario's workload (`realrun.conversation`);
    replies then end where the model ends them. `sampling` None: as the model's generation_config says where
    text is served, greedy else. `timeout_s`: how long a copy may take.
    """

    device: str = "cpu"
    model: str = "smollm2"
    dtype: str | None = None
    deterministic: bool = False
    sampling: SamplingParams | None = None
    conversation: Path | None = None
    timeout_s: float = TIMEOUT_S


@dataclass
class Machine:
    """A loaded model with its memory, its swap manager and a scheduler: ready to serve once."""

    serving: Serving
    model: LoadedModel
    store: KVStore
    scheduler: Scheduler
    runtime: Runtime
    options: Options
    device: torch.device
    prompts: Prompts
    eos: frozenset[int]
    has_copies_left: bool = False
    owns_store: bool = True

    def close(self) -> None:
        """Give page-locked memory back, unless it is another's or a copy that hangs may still use it."""
        if self.owns_store and not self.has_copies_left:
            self.store.close()


@dataclass(frozen=True)
class Warm:
    """What a run may take over instead of making it anew: memory of its layout with at least its pools'
    blocks, and the runner over it, whose graphs are kept."""

    store: KVStore
    runner: Runner


def prepare(
    scenario: Scenario,
    options: Options,
    *,
    order: UserOrder | None = None,
    model: LoadedModel | None = None,
    store: KVStore | None = None,
) -> Machine:
    """Load the model and lay out memory (unless they are given), make the scheduler.

    Raises ConfigError or InputError.
    """
    device, kind = device_and_dtype(options.device, options.dtype)
    if model is None:
        model = load_model(options.model, kind, device, seed=scenario.seed)
    system = scenario.resolve_system()
    if system.transport.async_scheduling:
        raise ConfigError(
            f"system {system.name}: async_scheduling: the real machine plans step by step"
        )
    token_bytes = model.config.token_elements * kind.itemsize
    settings = settings_for(
        scenario,
        device_blocks=_room(device, token_bytes * scenario.pool.block_size, scenario),
        host_blocks=_host_blocks(scenario),
        max_model_len=model.config.max_model_len,
        v1=_v1_limits(device),
    )
    streams = Streams(scenario.seed, scenario.run)
    workload, prompts, eos = _to_serve(scenario, options, streams, model)
    settings = with_prefix_block(settings, system, workload.header)
    serving = Serving(scenario, system, settings, streams, workload)
    scheduler = make_scheduler(serving, None if order is None else order.make(streams))
    given = store
    store = given or KVStore(
        model.config,
        layout=system.transport.layout,
        device_blocks=settings.device_blocks,
        host_blocks=settings.host_blocks,
        block_size=settings.block_size,
        dtype=kind,
        device=device,
    )
    return Machine(
        serving,
        model,
        store,
        scheduler,
        runtime_for(device),
        options,
        device,
        prompts,
        eos,
        owns_store=given is None,
    )


def serve(
    scenario: Scenario,
    options: Options,
    *,
    out: Path,
    decisions: bool = False,
    check: str = "counts",
    order: OrderLike | None = None,
    model: LoadedModel | None = None,
    warm: Warm | None = None,
    progress: Callable[[int], None] | None = None,
    interruptible: Callable[[Callable[[], None]], None] | None = None,
) -> Recording:
    """Run a scenario on the real machine and record it to the folder `out`.

    `out` must not exist or be empty: a real run cannot be written beside and swapped in, since what
    had ended must survive a kill. `model`: instead of loading the one that `options` names; `warm`:
    memory and graphs to use again.
    `order`: the user's own in place of the scenario's (`runs.user_order`). `interruptible` is handed a
    function that stops the run early.
    """
    _refuse_a_folder_in_use(out)
    own = None if order is None else user_order(order)
    store, runner = (None, None) if warm is None else (warm.store, warm.runner)
    machine = prepare(scenario, options, order=own, model=model, store=store)
    try:
        recording.begin(out, scenario)
        with computing():
            return _serve(machine, own, out, decisions, check, progress, interruptible, runner)
    finally:
        machine.close()


def _serve(
    machine: Machine,
    own: UserOrder | None,
    out: Path,
    decisions: bool,  # noqa: FBT001
    check: str,
    progress: Callable[[int], None] | None,
    interruptible: Callable[[Callable[[], None]], None] | None,
    runner: Runner | None,
) -> Recording:
    rates = link_rates(machine.device)
    journal = Journal(
        out, None if machine.model.tokenizer is None else machine.model.tokenizer.decode
    )
    aging = aging_lengths(machine.serving) if decisions else []
    header = machine.serving.workload.header
    with Recorder(out, decisions=decisions, aging=aging, header=header) as recorder:
        engine = make_engine(machine, recorder, journal, check, progress, runner)
        if interruptible is not None:
            interruptible(engine.stop)
        try:
            engine.run()
        finally:
            engine.swap.close()
            machine.has_copies_left = bool(engine.swap.in_flight)
            journal.close()
        recorded = recorder.close(facts(machine, engine, rates))
    sum_up(machine, recorded, own)
    recording.write_summary(out, recorded.summary)
    return recorded


def sum_up(machine: Machine, recorded: Recording, own: UserOrder | None) -> None:
    """Metrics and provenance of a run, into its summary."""
    recorded.summary["metrics"] = summarise(recorded)
    recorded.summary["rejected_because"] = rejected_because(recorded)
    recorded.summary["provenance"] = {
        **provenance(machine.serving.scenario, None, own),
        "torch": torch.__version__,
        "accelerator": _accelerator(machine.device),
        "threads": torch.get_num_threads(),
    }


def make_engine(
    machine: Machine,
    recorder: Recorder,
    journal: Journal,
    check: str = "counts",
    progress: Callable[[int], None] | None = None,
    runner: Runner | None = None,
    live: Live | None = None,
    clock: Callable[[], int] | None = None,
) -> Engine:
    """The engine of a machine, ready to run. `runner`, `clock`: in place of its own; `live`: clients in
    place of the workload's turns."""
    serving, options, model = machine.serving, machine.options, machine.model
    system = serving.system
    if runner is None:
        runner = Runner(model.decoder, machine.store.device, deterministic=options.deterministic)
    if runner.graphs is not None:  # captured before anything is timed, and before workers run
        runner.graphs.warm_up(serving.settings.max_num_seqs, serving.settings.max_model_len)
    clock = clock or Clock()
    swap = SwapManager(
        machine.store,
        machine.runtime,
        submission=system.transport.submission,
        threads=system.transport.workers or 0,
        clock=clock,
        timeout_s=options.timeout_s,
    )
    parts = Parts(
        machine.scheduler,
        make_driver(serving) if live is None else live.driver,
        runner,
        swap,
        machine.prompts if live is None else live.prompts,
        _sampler(_sampling(machine)) if live is None else live.sample,
        recorder,
        journal,
        clock,
        live,
    )
    return Engine(
        parts,
        last_turn_known=serving.scenario.last_turn_known,
        eos=machine.eos,
        check=checker(check),
        progress=progress,
    )


def link_rates(device: torch.device) -> dict[str, float]:
    """Bytes per second of the best of five plain copies each way, page-locked on a GPU: what I/O
    utilisation is a share of."""
    host = torch.zeros(PROBE_BYTES, dtype=torch.uint8, pin_memory=device.type == "cuda")
    there = torch.zeros(PROBE_BYTES, dtype=torch.uint8, device=device)
    found = {}
    for way, target, source in (("h2d", there, host), ("d2h", host, there)):
        best = min(_timed_copy(target, source, device) for _ in range(5))
        found[way] = PROBE_BYTES / best
    return found


def _timed_copy(target: torch.Tensor, source: torch.Tensor, device: torch.device) -> float:
    begin = time.perf_counter()
    target.copy_(source, non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


# ---------------------------------------------------------------------- pieces


def _refuse_a_folder_in_use(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{shown_path(out)}: is not empty; a real run needs a folder of its own")


def device_and_dtype(name: str, dtype: str | None) -> tuple[torch.device, torch.dtype]:
    """A device by name and what it computes in; without a `dtype` bf16 on a GPU, fp32 on a CPU.

    Raises ConfigError if either cannot be had.
    """
    device = _device(name)
    dtype = dtype or ("bfloat16" if device.type == "cuda" else "float32")
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in kinds:
        raise ConfigError(f"--dtype: {dtype!r} is not one of {', '.join(kinds)}")
    return device, kinds[dtype]


def _device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    if name != "cuda":
        raise ConfigError(f"--device: {name!r} is not cuda or cpu")
    if not torch.cuda.is_available():
        raise ConfigError("--device: no CUDA device can be used here; try --device cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _room(device: torch.device, block_bytes: int, scenario: Scenario) -> int:
    """Device blocks where the scenario gives none."""
    if scenario.pool.device_blocks is not None:
        return scenario.pool.device_blocks
    if device.type != "cuda":
        raise ConfigError(
            "pool.device_blocks: a CPU has no device memory of its own; give a number"
        )
    return room_for_kv(device, block_bytes)


def room_for_kv(device: torch.device, block_bytes: int) -> int:
    """Blocks that fit into what is free on a GPU now, the weights being there already."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * KV_SHARE // block_bytes)


def _v1_limits(device: torch.device) -> tuple[int, int]:
    """What vLLM 0.33.0's server takes for this GPU, or for a small one."""
    if device.type != "cuda":
        return v1_limits(0, "")
    return v1_limits(
        torch.cuda.get_device_properties(device).total_memory, torch.cuda.get_device_name(device)
    )


def _host_blocks(scenario: Scenario) -> int:
    if scenario.pool.host_blocks is None:
        raise ConfigError("pool.host_blocks: a real run needs a number")
    return scenario.pool.host_blocks


def _to_serve(
    scenario: Scenario, options: Options, streams: Streams, model: LoadedModel
) -> tuple[Workload, Prompts, frozenset[int]]:
    """Turns, their tokens, and what ends a reply: nothing where the workload's lengths rule."""
    if options.conversation is None:
        workload = open_workload(scenario.workload, streams)
        prompts = RandomPrompts(streams, model.config.vocab, workload.header)
        return workload, prompts, frozenset()
    if model.tokenizer is None:
        raise ConfigError(f"--conversation: {options.model} has no tokenizer.json")
    if model.chat is None:
        raise ConfigError(f"--conversation: {options.model} has no chat template")
    most = model.generation.max_new_tokens or MAX_TOKENS
    workload, texts = read_conversation(options.conversation, model.tokenizer, most)
    eos = frozenset(model.config.eos_ids)
    return workload, TextPrompts(texts, model.tokenizer, model.chat, eos), eos


def _sampling(machine: Machine) -> SamplingParams:
    options, own = machine.options, machine.model.generation
    if options.sampling is not None:
        return options.sampling
    if options.conversation is None:
        return SamplingParams()
    seed = machine.serving.scenario.seed
    return SamplingParams(own.temperature, own.top_p, own.top_k, seed)


def _sampler(params: SamplingParams) -> Sampler | None:
    if params.is_greedy:
        return None
    return sampler_of(lambda name, at: (params, name, at))


def sampler_of(row: Callable[[str, int], tuple[SamplingParams, str, int]]) -> Sampler:
    """A sampler. `row(request_id, position)`: parameters, and what the draw hangs on, as `draws` takes them."""

    def choose(
        logits_NV: torch.Tensor, names: Sequence[str], positions: Sequence[int]
    ) -> list[int]:
        rows = [row(name, at) for name, at in zip(names, positions, strict=True)]
        if all(params.is_greedy for params, _, _ in rows):
            return [int(token) for token in greedy(logits_NV).tolist()]
        return [int(token) for token in sample(logits_NV, draws(rows, logits_NV.device)).tolist()]

    return choose


@contextmanager
def computing() -> Iterator[None]:
    """Without gradients, and with threads that hand the interpreter over quickly."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        with torch.inference_mode():
            yield
    finally:
        sys.setswitchinterval(before)


def _accelerator(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _warnings(machine: Machine, engine: Engine) -> list[str]:
    """What was not done as asked for."""
    why = engine.swap.fallback
    found = [] if why is None else [f"submission: copies went one by one: {why}"]
    if machine.options.conversation is not None:
        found += machine.model.generation.unheeded
    return found


def facts(machine: Machine, engine: Engine, rates: dict[str, float]) -> dict[str, Any]:
    """What the tables do not say about a run."""
    serving, options = machine.serving, machine.options
    return {
        "format": recording.FORMAT,
        "machine": "real",
        **facts_of(serving, engine, drawn="machine"),
        "model": options.model,
        "device": _accelerator(machine.device),
        "deterministic": options.deterministic,
        "profile": None,
        "profile_kind": None,
        "assumptions": [],
        "link_bytes_per_s": rates,
        "largest": {"batch": engine.largest_batch, "prefill_tokens": engine.largest_prefill},
        "warnings": [
            *_warnings(machine, engine),
            *assumptions(serving.workload, engine.driver),
        ],
        "was_stopped": engine.was_stopped,
    }
