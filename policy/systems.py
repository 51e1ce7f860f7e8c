"""Named systems: an engine, its options, and a transport; each a few lines of data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from policy.choices.host_eviction import HOST_EVICTIONS
from policy.errors import ConfigError, did_you_mean

RELEASE = "vllm-0.3.3"
V1 = "vllm-v1"
#: What run.json and keys of results call the engines that they have always known.
PLANNERS = {"ranked": "rules", RELEASE: "release"}


@dataclass(frozen=True, slots=True)
class SwapOptions:
    """What engines may do otherwise, each switch for itself; which of them an engine knows, and with
    what, is its refusals (below).

    `allocator`: block ids of both pools. `overlap`: does a step wait for copies. `reuse`: host copies
    outlive the load and only what is new is sent. `between_turns`: what becomes of a finished turn's
    KV. `preemption`: what becomes of a victim's. `displacement`: may a waiting request displace a
    running one; by the order, over a gap in priority, or never. `shape`: `prefill_only` steps as vLLM
    0.3.3, or `chunked` prompts beside decodes (policy/choices/shape.py). `movement`: `write_through`
    copies blocks to the host as they fill, `incremental` those of likely victims now and then;
    `proactive` parks before the device is full (policy/engines/ahead.py). `host_eviction` and
    `contamination`: which host copy goes first, as a whole or from its tail. `prefix_sharing`: prompts
    that begin alike hold the same device blocks. `offload` (vLLM V1 alone): its native connector stores
    full chunks of prompts on the host, or of replies too. `victim` (vLLM V1 alone): who is preempted for
    room; the engine's own choice, or see policy/choices/victim.py. `protects_leader`, `caps_parkings`:
    rules 9 and 10.
    """

    allocator: Literal["paged", "groups", "buddy"] = "paged"
    overlap: Literal["sync", "async", "adaptive"] = "sync"
    reuse: bool = False
    between_turns: Literal["drop", "keep_host", "keep_device"] = "keep_host"
    preemption: Literal["swap", "recompute", "cost"] = "swap"
    displacement: Literal["order", "gap", "never"] = "order"
    shape: Literal["prefill_only", "chunked"] = "prefill_only"
    movement: Literal["none", "write_through", "incremental", "proactive"] = "none"
    host_eviction: str = "priority"
    contamination: Literal["whole", "tail"] = "whole"
    prefix_sharing: bool = False
    offload: Literal["none", "prompt", "all"] = "none"
    victim: Literal["own", "least_computed", "least_cost"] = "own"
    protects_leader: bool = True
    caps_parkings: bool = True


@dataclass(frozen=True, slots=True)
class Transport:
    """How copies are made and when steps are planned: what machines read, and no engine.

    `layout`: what is contiguous inside a block. `submission`: one call per block, per merged run, one
    batched call per job with a descriptor per run, or gather into one piece. `dispatch`: who submits;
    `threads` per direction. `async_scheduling`: the next step is planned while one runs, so that a
    request that arrives meanwhile is in the one after it.
    """

    layout: Literal["layer_major", "block_major"] = "layer_major"
    submission: Literal["per_block", "merged", "batched", "gather"] = "per_block"
    dispatch: Literal["main_thread", "worker_threads"] = "main_thread"
    threads: int = 1
    async_scheduling: bool = False

    @property
    def workers(self) -> int | None:
        """Threads that submit for each direction; None: the engine's own does."""
        return None if self.dispatch == "main_thread" else self.threads


def _choices(kind: type) -> dict[str, Collection[object]]:
    """What the switches of a class may be, but for numbers and names of a catalog."""
    hints = get_type_hints(kind)
    return {
        name: (False, True) if hint is bool else get_args(hint)
        for name, hint in hints.items()
        if hint not in (int, str)
    }


#: Every switch and what it may be.
CHOICES: dict[str, Collection[object]] = {
    **_choices(SwapOptions),
    "host_eviction": HOST_EVICTIONS,
    **_choices(Transport),
}


@dataclass(frozen=True, slots=True)
class System:
    """One way to build a serving engine: `engine` is a name of `policy.engines.catalog`, which serves
    with these options, over this transport. Raises ConfigError for what does not go together."""

    name: str
    engine: str = "ranked"
    options: SwapOptions = SwapOptions()
    transport: Transport = Transport()

    def __post_init__(self) -> None:
        for part in (self.options, self.transport):
            for field in fields(part):
                choices, value = CHOICES.get(field.name), getattr(part, field.name)
                if choices is not None and value not in choices:
                    raise ConfigError(
                        f"system {self.name}: {field.name} is {value!r},"
                        f" not one of {', '.join(map(str, choices))}"
                    )
        threads = self.transport.threads
        if not 1 <= threads <= 64:
            raise ConfigError(f"system {self.name}: threads is {threads}, not 1 to 64")
        for is_so, problem in _REFUSALS.get(self.engine, _RANKED):
            if is_so(self.options):
                movement = self.options.movement
                raise ConfigError(f"system {self.name}: {problem.format(movement=movement)}")

    def but(self, name: str | None = None, **switches: Any) -> System:
        """A system with some switches changed, whichever part they belong to."""
        engine = switches.pop("engine", self.engine)
        ways = {k: v for k, v in switches.items() if k in _WAYS}
        options = {k: v for k, v in switches.items() if k not in _WAYS}
        return System(
            self.name if name is None else name,
            engine,
            replace(self.options, **options),
            replace(self.transport, **ways),
        )

    @property
    def shares_prefixes(self) -> bool:
        """It reads what the blocks of prompts are called."""
        return self.options.prefix_sharing

    @property
    def finds_by_name(self) -> bool:
        """Its engine finds KV by the names of blocks, which requests must bring."""
        return self.engine == V1 and self.options.prefix_sharing

    @property
    def is_chunked(self) -> bool:
        """Its steps take chunks of prompts beside decodes."""
        return self.options.shape == "chunked"

    @property
    def rules_off(self) -> tuple[int, ...]:
        """Rules of the ranked engine that a system does not keep: those that it switches off, or those
        that vLLM 0.3.3 does not know.

        4: one victim at a time until the next slot fits. 6: admits without room for the next step.
        9: may preempt the last runner. 10: parks without bound. 12: may stall for ever. 13: aborts
        when the host is full.
        """
        if self.engine == RELEASE:
            return (4, 6, 9, 10, 12, 13)
        options = self.options
        return (*((9,) * (not options.protects_leader)), *((10,) * (not options.caps_parkings)))

    def switches(self) -> dict[str, Any]:
        """Every switch but the name, for provenance; the engine as what it does under FCFS. What keys of
        results have not always known is there where it is on."""
        found = self._values()
        for name, off in _NEWER.items():
            if found[name] == off:
                del found[name]
        return {**found, "fcfs_planner": PLANNERS.get(self.engine, self.engine)}

    def _values(self) -> dict[str, Any]:
        parts = (self.options, self.transport)
        return {f.name: getattr(part, f.name) for part in parts for f in fields(part)}


_WAYS = {field.name for field in fields(Transport)}
#: Switches that keys of results have not always known, and what they are where they say nothing.
_NEWER = {"async_scheduling": False, "victim": "own"}

Refusals = tuple[tuple[Callable[[SwapOptions], bool], str], ...]

#: Options that do not go together, the first that applies being said.
_RANKED: Refusals = (
    (lambda o: o.offload != "none", "offload is vLLM V1's"),
    (lambda o: o.victim != "own", "a choice of victim is vLLM V1's"),
    (
        lambda o: o.movement == "proactive" and (o.overlap == "sync" or o.preemption != "swap"),
        "movement proactive needs swap, and overlap async or adaptive: copies that no step waits for",
    ),
    (
        lambda o: (
            o.movement not in ("none", "proactive") and (not o.reuse or o.preemption != "swap")
        ),
        "movement {movement} needs reuse and swap, or its copies would be thrown away",
    ),
    (
        lambda o: o.movement != "none" and o.prefix_sharing,
        "movement {movement} goes with neither prefix_sharing nor the release",
    ),
    (
        lambda o: o.prefix_sharing and o.between_turns == "keep_device",
        "prefix_sharing and keep_device both keep idle KV on the device; choose one",
    ),
)
#: Those that vLLM 0.3.3 does not know.
_RELEASE: Refusals = (
    (
        lambda o: (o.allocator, o.overlap) != ("paged", "sync"),
        "the release knows paged, sync memory only",
    ),
    (lambda o: o.between_turns == "keep_device", "the release keeps nothing on the device"),
    *_RANKED[:4],
    (
        lambda o: o.movement != "none",
        "movement {movement} goes with neither prefix_sharing nor the release",
    ),
    (lambda o: o.shape != "prefill_only", "the release prefills and decodes in turns"),
    (lambda o: o.preemption == "cost", "the release weighs no costs of preemption"),
    (lambda o: o.displacement != "order", "the release knows no rule of displacement"),
    (lambda o: o.prefix_sharing, "the release shares no prefixes"),
)
#: V1 has its own queues and memory.
_V1_OPTIONS: Refusals = (
    (
        lambda o: (o.between_turns, o.shape) != ("drop", "chunked") or o.preemption == "cost",
        "vLLM V1 drops what turns leave and runs chunks beside decodes; it recomputes, or swaps every"
        " victim",
    ),
    (
        lambda o: o.offload != "none" and (o.preemption == "swap" or o.displacement != "never"),
        "offload with preemption by swap, or with displacement, is not built",
    ),
    (
        lambda o: o.allocator == "buddy" or (o.reuse, o.contamination) != (False, "whole"),
        "vLLM V1 keeps pages by name, one by one or in groups; its host copies end with the load",
    ),
    (
        lambda o: o.offload == "none" and o.preemption != "swap" and o.overlap != "sync",
        "vLLM V1 copies nothing without offload",
    ),
    (
        lambda o: (
            o.offload != "none" and (o.overlap != "async" or o.host_eviction not in ("lru", "arc"))
        ),
        "vLLM V1's offloading is async, and evicts by lru or arc",
    ),
    (
        lambda o: (
            o.overlap == "adaptive" or (o.offload == "none" and o.host_eviction != "priority")
        ),
        "under vLLM V1 steps wait for copies or never do, and nothing that was swapped out is evicted",
    ),
    (
        lambda o: (
            o.movement != "none"
            and (o.movement, o.preemption, o.overlap) != ("proactive", "swap", "async")
        ),
        "under vLLM V1 the only movement is proactive, with swap and overlap async",
    ),
    (
        lambda o: o.victim == "least_cost" and o.preemption == "swap",
        "victim least_cost weighs what is computed again, and with swap nothing is",
    ),
    (
        lambda o: not (o.protects_leader and o.caps_parkings),
        "vLLM V1 knows no rules 9 and 10 that could be switched off",
    ),
)
_REFUSALS = {RELEASE: _RELEASE, V1: _V1_OPTIONS}


_PAGED_KEEP = System("paged-keep")
_V1 = System(
    V1,
    V1,
    SwapOptions(
        between_turns="drop",
        preemption="recompute",
        displacement="never",
        shape="chunked",
        prefix_sharing=True,
    ),
)
_V1_SWAP = _V1.but(
    "vllm-v1+swap", preemption="swap", submission="batched", dispatch="worker_threads"
)
_V1_ASYNC = _V1_SWAP.but("vllm-v1+swap-async", overlap="async")
_V1_GROUPS = _V1_SWAP.but("vllm-v1+groups", allocator="groups")
_V1_OFFLOAD = _V1.but(
    "vllm-v1-offload",
    offload="prompt",
    overlap="async",
    host_eviction="lru",
    submission="batched",
    dispatch="worker_threads",
)
_GROUPS = _PAGED_KEEP.but("+groups", allocator="groups", submission="merged")
_REUSE = _GROUPS.but("+reuse", reuse=True)
_ASYNC = _GROUPS.but("+async", dispatch="worker_threads", overlap="adaptive")
_FASTSWITCH = _ASYNC.but("fastswitch", reuse=True)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(RELEASE, RELEASE).but(between_turns="drop"),
        System("vllm-0.3.3-keep", RELEASE),
        System("vllm-0.3.3-recompute", RELEASE).but(between_turns="drop", preemption="recompute"),
        _V1,
        _V1_SWAP,
        _V1_SWAP.but("vllm-v1+swap-block-major", layout="block_major"),
        _V1_ASYNC,
        _V1_ASYNC.but("vllm-v1+park", movement="proactive"),
        _V1.but("vllm-v1+least-computed", victim="least_computed"),
        _V1.but("vllm-v1+victim-cost", victim="least_cost"),
        _V1.but("vllm-v1+displace", displacement="order"),
        _V1_GROUPS,
        _V1_GROUPS.but("vllm-v1+groups-block-major", layout="block_major"),
        _V1_OFFLOAD,
        _V1_OFFLOAD.but("vllm-v1-offload-all", offload="all"),
        _PAGED_KEEP.but("+batched", submission="batched"),
        _PAGED_KEEP.but("+block-major", layout="block_major"),
        _GROUPS,
        _REUSE,
        _ASYNC,
        _FASTSWITCH,
        _FASTSWITCH.but("fastswitch-no-groups", allocator="paged"),
        _FASTSWITCH.but("fastswitch-no-reuse", reuse=False),
        _REUSE.but("fastswitch-no-async"),
        _FASTSWITCH.but("fastswitch-block-major", layout="block_major"),
        _GROUPS.but("+groups-block-major", layout="block_major"),
        _GROUPS.but("+cost", preemption="cost"),
        _FASTSWITCH.but("fastswitch-cost", preemption="cost"),
        _FASTSWITCH.but("fastswitch-gap", displacement="gap"),
        _FASTSWITCH.but("fastswitch-never", displacement="never"),
        _FASTSWITCH.but("fastswitch-lru", host_eviction="lru"),
        _FASTSWITCH.but("fastswitch-arc", host_eviction="arc"),
        _FASTSWITCH.but("fastswitch-isolated-lru", host_eviction="isolated_lru"),
        _FASTSWITCH.but("fastswitch-no-leader", protects_leader=False),
        _FASTSWITCH.but("fastswitch-no-cap", caps_parkings=False),
        _PAGED_KEEP.but("+prefix", prefix_sharing=True),
        _FASTSWITCH.but("fastswitch-prefix", prefix_sharing=True),
        _PAGED_KEEP.but("+chunked", shape="chunked"),
        _FASTSWITCH.but("fastswitch-chunked", shape="chunked"),
        _REUSE.but("+write-through", movement="write_through"),
        _FASTSWITCH.but("fastswitch-write-through", movement="write_through"),
        _REUSE.but("+incremental", movement="incremental"),
        _FASTSWITCH.but("fastswitch-incremental", movement="incremental"),
        _ASYNC.but("+proactive", movement="proactive"),
        _FASTSWITCH.but("fastswitch-proactive", movement="proactive"),
        _PAGED_KEEP.but("paged", between_turns="drop"),
        _PAGED_KEEP,
        _PAGED_KEEP.but("paged-recompute", between_turns="drop", preemption="recompute"),
    )
}

#: The two baselines that speed-ups are given against: vLLM 0.3.3's memory under the engine of the others.
BASELINES = ("paged", "paged-keep")
#: Every name under which they may have been run, the better one last.
BASELINE_NAMES = ("vllm-0.3.3", "paged", "vllm-0.3.3-keep", "paged-keep")
#: The release's systems, and what their memory is called where another order than its own FCFS rules.
ALIASES = {
    "vllm-0.3.3": "paged",
    "vllm-0.3.3-keep": "paged-keep",
    "vllm-0.3.3-recompute": "paged-recompute",
}


def named_system(name: str) -> System:
    """The system called `name`; a leading `-` means `vllm-0.3.3-...`, as people write it."""
    full = f"vllm-0.3.3{name}" if name.startswith("-") else name
    if full not in SYSTEMS:
        raise ConfigError(
            f"system: {name!r} is not one of those that `fastswitch systems` lists"
            + did_you_mean(name, SYSTEMS)
        )
    return SYSTEMS[full]


def served_under(system: System, *, is_fcfs: bool) -> System:
    """The system that serves where this one is asked for. vLLM 0.3.3 knows no order but FCFS; under any
    other its memory is served by the ranked engine, and has that name."""
    if is_fcfs or system.engine != RELEASE:
        return system
    return system.but(ALIASES.get(system.name, system.name), engine="ranked")


def aliases(names: Iterable[str], *, is_fcfs: bool) -> dict[str, str]:
    """Those of the names that are another system's under the order; and that system's name."""
    served = {name: served_under(named_system(name), is_fcfs=is_fcfs).name for name in names}
    return {name: found for name, found in served.items() if found != named_system(name).name}


def custom_system(switches: dict[str, Any]) -> System:
    """A system from a mapping of switches, starting from `base` (default: `paged-keep`).

    Keys are those of SwapOptions and Transport, `engine`, `name`, and `base`, a named system whose
    switches are the start. Raises ConfigError for an unknown key or value.
    """
    given = dict(switches)
    base = given.pop("base", None)
    known = ["name", *(f.name for kind in (SwapOptions, Transport) for f in fields(kind)), "engine"]
    planner = given.pop("fcfs_planner", None)  # as scenarios of earlier versions say it
    if planner is not None:
        given["engine"] = {kind: name for name, kind in PLANNERS.items()}.get(planner, planner)
    for key in given:
        if key not in known:
            raise ConfigError(f"system.{key}: unknown; switches are {', '.join(known)}")
    name = str(given.pop("name", f"{base or 'custom'}+" + "+".join(sorted(map(str, given)))))
    start = named_system(str(base)) if base is not None else System(name)
    defaults = {**start._values(), "engine": start.engine}
    for key, value in given.items():
        wanted = type(defaults[key])
        if type(value) is not wanted:
            raise ConfigError(f"system.{key}: {value!r} is not of type {wanted.__name__}")
    return start.but(name, **given)
