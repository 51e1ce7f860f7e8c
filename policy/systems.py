"""Named systems: each a few lines of data over orthogonal switches (design.md section 3)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from policy.errors import ConfigError

#: Every switch and what it may be.
CHOICES: dict[str, tuple[object, ...]] = {
    "allocator": ("paged", "groups", "buddy"),
    "layout": ("layer_major", "block_major"),
    "submission": ("per_block", "merged", "batched", "gather"),
    "dispatch": ("main_thread", "worker_threads"),
    "overlap": ("sync", "async", "adaptive"),
    "reuse": (False, True),
    "between_turns": ("drop", "keep_host", "keep_device"),
    "preemption": ("swap", "recompute", "cost"),
    "displacement": ("order", "gap", "never"),
    "shape": ("prefill_only", "chunked"),
    "movement": ("none", "write_through", "incremental", "proactive"),
    "host_eviction": ("priority", "lru", "arc", "isolated_lru"),
    "contamination": ("whole", "tail"),
    "fcfs_planner": ("rules", "release"),
    "prefix_sharing": (False, True),
    "protects_leader": (True, False),
    "caps_parkings": (True, False),
}


@dataclass(frozen=True, slots=True)
class System:
    """One way to build a serving engine's memory management.

    `allocator`: block ids of both pools. `layout`: what is contiguous inside a block.
    `submission`: one call per block, per merged run, one batched call per job with a descriptor per
    run, or gather into one piece. `dispatch`: who submits; `threads` per direction. `overlap`: does
    a step wait for copies. `reuse`: host copies outlive the load and only what is new is sent.
    `between_turns`: what becomes of a finished turn's KV. `preemption`: what becomes of a victim's.
    `displacement`: may a waiting request displace a running one; by the order, over a gap in
    priority, or never. `shape`: `prefill_only` steps as vLLM 0.3.3, or `chunked` prompts beside
    decodes (policy/choices/shape.py). `movement`: `write_through` copies blocks to the host as they fill,
    `incremental` those of likely victims now and then; `proactive` parks before the device is full
    (policy/engines/ahead.py). `host_eviction` and `contamination`: which host
    copy goes first, as a whole or from its tail. `fcfs_planner`: under FCFS, the thirteen rules or
    vLLM 0.3.3's own decisions, which switch off the rules in `rules_off`. `prefix_sharing`: prompts
    that begin alike hold the same device blocks. `protects_leader`, `caps_parkings`: planner rules 9
    and 10, which other orders than FCFS keep under the release's system too.
    """

    name: str
    allocator: str = "paged"
    layout: str = "layer_major"
    submission: str = "per_block"
    dispatch: str = "main_thread"
    threads: int = 1
    overlap: str = "sync"
    reuse: bool = False
    between_turns: str = "keep_host"
    preemption: str = "swap"
    displacement: str = "order"
    shape: str = "prefill_only"
    movement: str = "none"
    host_eviction: str = "priority"
    contamination: str = "whole"
    fcfs_planner: str = "rules"
    prefix_sharing: bool = False
    protects_leader: bool = True
    caps_parkings: bool = True

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"system {self.name}: {name} is {getattr(self, name)!r},"
                    f" not one of {', '.join(map(str, choices))}"
                )
        if not 1 <= self.threads <= 64:
            raise ConfigError(f"system {self.name}: threads is {self.threads}, not 1 to 64")
        if self.fcfs_planner == "release" and (self.allocator, self.overlap) != ("paged", "sync"):
            raise ConfigError(f"system {self.name}: the release knows paged, sync memory only")
        if self.fcfs_planner == "release" and self.between_turns == "keep_device":
            raise ConfigError(f"system {self.name}: the release keeps nothing on the device")
        if self.movement != "none":
            self._check_movement()
        if self.fcfs_planner == "release" and self.shape != "prefill_only":
            raise ConfigError(f"system {self.name}: the release prefills and decodes in turns")
        if self.fcfs_planner == "release" and self.preemption == "cost":
            raise ConfigError(f"system {self.name}: the release weighs no costs of preemption")
        if self.fcfs_planner == "release" and self.displacement != "order":
            raise ConfigError(f"system {self.name}: the release knows no rule of displacement")
        if self.prefix_sharing and self.fcfs_planner == "release":
            raise ConfigError(f"system {self.name}: the release shares no prefixes")
        if self.prefix_sharing and self.between_turns == "keep_device":
            raise ConfigError(
                f"system {self.name}: prefix_sharing and keep_device both keep idle KV on the device;"
                " choose one"
            )

    def _check_movement(self) -> None:
        if self.movement == "proactive":
            if self.overlap == "sync" or self.preemption != "swap":
                raise ConfigError(
                    f"system {self.name}: movement proactive needs swap, and overlap async or adaptive:"
                    " copies that no step waits for"
                )
        elif not self.reuse or self.preemption != "swap":
            raise ConfigError(
                f"system {self.name}: movement {self.movement} needs reuse and swap, or its copies"
                " would be thrown away"
            )
        if self.prefix_sharing or self.fcfs_planner == "release":
            raise ConfigError(
                f"system {self.name}: movement {self.movement} goes with neither prefix_sharing nor"
                " the release"
            )

    @property
    def rules_off(self) -> tuple[int, ...]:
        """Planner rules that a system does not keep (policies.md 3.4): those that it switches off,
        or, under FCFS, those that vLLM 0.3.3's own planner does not know.

        4: one victim at a time until the next slot fits. 6: admits without room for the next step.
        9: may preempt the last runner. 10: parks without bound. 12: may stall for ever. 13: aborts
        when the host is full.
        """
        if self.fcfs_planner == "release":
            return (4, 6, 9, 10, 12, 13)
        return (*((9,) * (not self.protects_leader)), *((10,) * (not self.caps_parkings)))

    def switches(self) -> dict[str, Any]:
        """Every switch but the name, for provenance."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}


_DROP = System("vllm-0.3.3", between_turns="drop", fcfs_planner="release")
_KEEP = replace(_DROP, name="vllm-0.3.3-keep", between_turns="keep_host")
_GROUPS = System("+groups", allocator="groups", submission="merged")
_REUSE = replace(_GROUPS, name="+reuse", reuse=True)
_ASYNC = replace(_GROUPS, name="+async", dispatch="worker_threads", overlap="adaptive")
_FASTSWITCH = replace(_ASYNC, name="fastswitch", reuse=True)

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        _DROP,
        _KEEP,
        replace(_DROP, name="vllm-0.3.3-recompute", preemption="recompute"),
        System("+batched", submission="batched"),
        System("+block-major", layout="block_major"),
        _GROUPS,
        _REUSE,
        _ASYNC,
        _FASTSWITCH,
        replace(_FASTSWITCH, name="fastswitch-no-groups", allocator="paged"),
        replace(_FASTSWITCH, name="fastswitch-no-reuse", reuse=False),
        replace(_REUSE, name="fastswitch-no-async"),
        replace(_FASTSWITCH, name="fastswitch-block-major", layout="block_major"),
        replace(_GROUPS, name="+groups-block-major", layout="block_major"),
        replace(_GROUPS, name="+cost", preemption="cost"),
        replace(_FASTSWITCH, name="fastswitch-cost", preemption="cost"),
        replace(_FASTSWITCH, name="fastswitch-gap", displacement="gap"),
        replace(_FASTSWITCH, name="fastswitch-never", displacement="never"),
        replace(_FASTSWITCH, name="fastswitch-lru", host_eviction="lru"),
        replace(_FASTSWITCH, name="fastswitch-arc", host_eviction="arc"),
        replace(_FASTSWITCH, name="fastswitch-isolated-lru", host_eviction="isolated_lru"),
        replace(_FASTSWITCH, name="fastswitch-no-leader", protects_leader=False),
        replace(_FASTSWITCH, name="fastswitch-no-cap", caps_parkings=False),
        System("+prefix", prefix_sharing=True),
        replace(_FASTSWITCH, name="fastswitch-prefix", prefix_sharing=True),
        System("+chunked", shape="chunked"),
        replace(_FASTSWITCH, name="fastswitch-chunked", shape="chunked"),
        replace(_REUSE, name="+write-through", movement="write_through"),
        replace(_FASTSWITCH, name="fastswitch-write-through", movement="write_through"),
        replace(_REUSE, name="+incremental", movement="incremental"),
        replace(_FASTSWITCH, name="fastswitch-incremental", movement="incremental"),
        replace(_ASYNC, name="+proactive", movement="proactive"),
        replace(_FASTSWITCH, name="fastswitch-proactive", movement="proactive"),
    )
}

#: The two baselines that speed-ups are given against.
BASELINES = ("vllm-0.3.3", "vllm-0.3.3-keep")


def named_system(name: str) -> System:
    """The system called `name`; a leading `-` means `vllm-0.3.3-...`, as people write it."""
    full = f"vllm-0.3.3{name}" if name.startswith("-") else name
    if full not in SYSTEMS:
        raise ConfigError(f"system: {name!r} is not one of {', '.join(SYSTEMS)}")
    return SYSTEMS[full]


def custom_system(switches: dict[str, Any]) -> System:
    """A system from a mapping of switches, starting from `base` (default: `+groups`' siblings).

    Keys are System's fields plus `base`, a named system whose switches are the start. Raises
    ConfigError for an unknown key or value.
    """
    given = dict(switches)
    base = given.pop("base", None)
    known = {f.name: f.type for f in fields(System)}
    for key in given:
        if key not in known:
            raise ConfigError(f"system.{key}: unknown; switches are {', '.join(known)}")
    name = str(given.pop("name", f"{base or 'custom'}+" + "+".join(sorted(map(str, given)))))
    start = named_system(str(base)) if base is not None else System(name)
    for key, value in given.items():
        wanted = type(getattr(start, key))
        if type(value) is not wanted:
            raise ConfigError(f"system.{key}: {value!r} is not of type {wanted.__name__}")
    return replace(start, name=name, **given)
