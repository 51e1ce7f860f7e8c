"""The scenario: one YAML mapping that says everything a run depends on.

Safe loader, YAML 1.2 scalars, no aliases, no duplicate or unknown keys, at most 1 MiB and 32 levels
deep. `--set a.b=c` beats the file, the file beats the defaults.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from policy.choices.rates import Rates
from policy.engines.catalog import ENGINES
from policy.errors import ConfigError, did_you_mean
from policy.orders.catalog import ORDERS, OrderSettings
from policy.orders.traces import check_markov
from policy.orders.vtc import MAX_WEIGHT
from policy.systems import System, custom_system, named_system
from runs.fleet_spec import DEFAULT_ROUTER, ReplicaSpec, TelemetrySpec, check_fleet, groups_of
from traces.strict import MAX_BLOCK_SIZE, MAX_SECONDS, quoted, reason, shown, shown_path
from traces.workload import MAX_TOKENS
from traces.workload_spec import (
    OF_EITHER,
    Count,
    Positive,
    Section,
    WorkloadSpec,
    first_problem,
    is_generator_file,
)
from traces.yaml import MAX_BYTES, dump_yaml, parse_yaml

SCENARIOS = Path(__file__).resolve().parent.parent / "scenarios"

Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
#: Per step. Beyond these, times are beyond all clocks.
Frequency = Annotated[float, Field(ge=1e-9, le=1)]
Seconds = Annotated[float, Field(ge=1e-9, le=MAX_SECONDS)]


#: Most blocks of a pool: 268 million tokens at the usual 16 a block, more than any machine holds.
MAX_BLOCKS = 1 << 24


class PrioritySpec(Section):
    """A replayed priority pattern. `frequency`: updates per step; `period_s`: by the clock."""

    pattern: Literal["none", "random", "markov"] = "none"
    frequency: Frequency | None = None
    period_s: Seconds | None = None
    share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    stay: Annotated[float, Field(gt=0, lt=1)] = 0.9


class PoolSpec(Section):
    """Block pools. Sizes default to what the profile's memory holds, `watermark` to vLLM 0.3.3's 0.01, and
    to 0 where the engine is V1, as there; that offloads `offload_chunk_blocks` at a time."""

    device_blocks: Annotated[int, Field(ge=1, le=MAX_BLOCKS)] | None = None
    host_blocks: Annotated[int, Field(ge=0, le=MAX_BLOCKS)] | None = None
    block_size: Annotated[int, Field(ge=1, le=MAX_BLOCK_SIZE)] = 16
    watermark: Share | None = None
    offload_chunk_blocks: Positive = 1
    aging: Literal["none", "churn", "shuffle"] = "churn"


class LimitSpec(Section):
    """vLLM's limits. `max_model_len` defaults to the model's, `max_num_seqs` to 256 and
    `max_num_batched_tokens` to max(max_model_len, 2048) as in vLLM 0.3.3, or 2048 where the system's steps
    are chunked. Where the engine is V1 both are what that release takes for the machine's memory. The last
    three are V1's alone, under its names."""

    max_num_seqs: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_paddings: Count = 256
    max_model_len: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    scheduler_reserve_full_isl: bool = True
    long_prefill_token_threshold: Count = 0
    long_prefill_token_threshold_adaptive: bool = False


class GroupSpec(Section):
    """Dynamic block groups: blocks sought for a first prefill, for growth, beside a host copy."""

    initial_blocks: Positive = 60
    growth_blocks: Positive = 16
    host_increment_blocks: Count = 16


class HysteresisSpec(Section):
    """Who is not a victim yet (planner rule 10). `gap`: how much more urgent a waiting request must
    be, in the order's units, where a system displaces by gap."""

    gap: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    min_run_steps: Count = 0
    max_parkings: Positive = 3
    token_quantum: Positive = 16


class MovementSpec(Section):
    """Where a system has a `movement`. Backups: steps between rounds of `incremental` ones, blocks of all
    that are under way, share of the device that likely victims and free blocks make up. `proactive`:
    shares of the device, free, below which it parks and up to which it goes on."""

    every: Positive = 32
    blocks: Positive = 64
    depth: Annotated[float, Field(ge=0, le=1)] = 0.25
    low: Share = 0.02
    high: Share = 0.05


class VtcSpec(Section):
    """Virtual token counter: head start of a resident, weights of a token, steps between refreshes,
    and what single clients are entitled to (1 where none is given)."""

    head_start: Count = 60
    prompt_weight: Count = 1
    output_weight: Count = 2
    update_steps: Positive = 16
    weights: dict[str, Annotated[int, Field(ge=1, le=MAX_WEIGHT)]] = Field(default={})


class RateSpec(Section):
    """Start values of the rates that policies learn from outcomes; never taken from a profile."""

    step_ns: Positive = 30_000_000
    load_ns_per_block: Positive = 100_000
    store_ns_per_block: Positive = 100_000
    prefill_ns_per_token: Positive = 100_000

    def start(self) -> Rates:
        return Rates(
            step_ns=self.step_ns,
            load_ns_per_block=self.load_ns_per_block,
            store_ns_per_block=self.store_ns_per_block,
            prefill_ns_per_token=self.prefill_ns_per_token,
        )


class Scenario(Section):
    """Everything a run depends on.

    `profile_draw`: a machine within the profile's ranges (`Profile.drawn`), 0 the profile itself.
    `last_turn_known`: the engine is told with its last turn that a conversation ends, and keeps
    nothing of it. A server is not told, so the default is false.
    `replicas`: with them this is a fleet behind `router` (docs/fleet.md). `replica`: which one of a fleet
    this engine was, whose random streams it draws from.
    """

    name: str = "unnamed"
    description: str = ""
    workload: WorkloadSpec
    system: str | dict[str, Any] = "fastswitch"
    systems: tuple[str | dict[str, Any], ...] = ()
    order: str | None = None
    priority: PrioritySpec = PrioritySpec()
    profile: str
    profile_values: dict[str, float] = Field(default={})
    profile_draw: Count = 0
    pool: PoolSpec = PoolSpec()
    limits: LimitSpec = LimitSpec()
    groups: GroupSpec = GroupSpec()
    hysteresis: HysteresisSpec = HysteresisSpec()
    movement: MovementSpec = MovementSpec()
    vtc: VtcSpec = VtcSpec()
    rates: RateSpec = RateSpec()
    last_turn_known: bool = False
    replicas: Annotated[tuple[ReplicaSpec, ...], Field(strict=False)] = ()
    router: str = DEFAULT_ROUTER
    telemetry: TelemetrySpec = TelemetrySpec()
    replica: Count = 0
    seed: Count = 0
    run: Count = 0

    @field_validator("replicas", mode="before")
    @classmethod
    def _count_alone(cls, value: Any) -> Any:
        return groups_of(value)

    @field_validator("workload", mode="before")
    @classmethod
    def _file_alone(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @property
    def order_name(self) -> str:
        """The order: as named, else the priority pattern, else FCFS."""
        if self.order is not None:
            return self.order
        return "fcfs" if self.priority.pattern == "none" else self.priority.pattern

    @property
    def drawn(self) -> str:
        """What differs between runs: `workload` (a generator's), `sessions` (a trace's, drawn anew),
        `times` and priorities of a trace by a law, `priorities` by a pattern, or `nothing`: then all
        runs are the same but for which pool blocks are handed out."""
        workload = self.workload
        if workload.generator is not None:
            return "workload"
        if workload.resample:
            return "sessions"
        if (workload.rate, workload.think, workload.priority) != (None, None, None):
            return "times"
        return "priorities" if self.order_name in ("random", "markov") else "nothing"

    def resolve_system(self) -> System:
        """The system that is asked for (`served_under` says which one serves). Raises ConfigError."""
        return system_of(self.system)

    def order_settings(self) -> OrderSettings:
        return OrderSettings(
            markov_share=self.priority.share,
            markov_stay=self.priority.stay,
            vtc_head_start=self.vtc.head_start,
            vtc_prompt_weight=self.vtc.prompt_weight,
            vtc_output_weight=self.vtc.output_weight,
            vtc_weights=tuple(sorted(self.vtc.weights.items())),
        )

    def update_period(self) -> tuple[int | Fraction | None, int | None]:
        """(steps, nanoseconds) between priority updates; one of them or neither. Steps may be a
        fraction: a frequency of 0.4 is two updates in five steps.

        Raises ConfigError if a pattern that needs one gives none, or both.
        """
        if self.order_name == "vtc":
            return self.vtc.update_steps, None
        spec = self.priority
        if spec.frequency is not None and spec.period_s is not None:
            raise ConfigError("priority: give frequency or period_s, not both")
        if spec.period_s is not None:
            return None, round(spec.period_s * 1_000_000_000)
        if spec.frequency is not None:
            return 1 / Fraction(repr(spec.frequency)), None
        if self.order_name in ("random", "markov"):
            raise ConfigError(
                f"priority.frequency: order {self.order_name} needs it (updates per step)"
            )
        return 1, None

    def with_values(self, values: dict[str, Any]) -> Scenario:
        """A copy with dotted paths replaced: `{"pool.aging": "none"}`."""
        data = self.model_dump(mode="json", exclude_unset=True)
        return build(merge(data, values), "--set")

    def as_yaml(self) -> str:
        """The resolved scenario, every default written out."""
        return dump_yaml(self.model_dump(mode="json"))


def system_of(given: str | dict[str, Any]) -> System:
    """A system by its name, or by its switches. Raises ConfigError."""
    if isinstance(given, str):
        return named_system(given)
    system = custom_system(given)
    if system.engine not in ENGINES:
        raise ConfigError(f"system.engine: {system.engine!r} is not one of {', '.join(ENGINES)}")
    return system


# ---------------------------------------------------------------------- loading


def find(name_or_path: str) -> Path:
    """A scenario that ships, by name, or a path. Raises ConfigError listing the names."""
    shipped = SCENARIOS / f"{name_or_path}.yaml"
    # os.path knows of names that no file can have, where Path.exists raises
    if os.path.isfile(shipped):
        return shipped
    if os.path.isfile(name_or_path):
        return Path(name_or_path)
    names = list(shipped_names())
    raise ConfigError(
        f"scenario: {shown(name_or_path, 300)!r} is neither a file nor one of {', '.join(names)}"
        + did_you_mean(name_or_path, names)
    )


def shipped_names() -> dict[str, Path]:
    """Scenarios that ship: their names and files."""
    return {path.stem: path for path in sorted(SCENARIOS.glob("*.yaml"), key=lambda p: p.stem)}


def read_mapping(path: Path) -> tuple[dict[str, Any], str]:
    """A YAML file as a mapping, named after the file unless it names itself; and its text. Raises
    ConfigError naming file and line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        # parse_yaml refuses what is too long; it may end within a character here
        text = raw.decode(errors="strict" if len(raw) <= MAX_BYTES else "replace")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown_path(path)}: cannot be read: {reason(error)}") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{shown_path(path)}: not a mapping")
    data.setdefault("name", path.stem)
    return data, text


def load(name_or_path: str, values: dict[str, Any] | None = None) -> Scenario:
    """A scenario, with dotted `values` put over it. A workload file is found beside the scenario.

    Raises ConfigError naming file, line and field.
    """
    path = find(name_or_path)
    data, _ = read_mapping(path)
    find_beside(data, path)
    return build(merge(data, values or {}), str(path), values or {})


def find_beside(data: dict[str, Any], path: Path) -> None:
    """Make a workload file that is not here the one of that name beside `path`, in place."""
    if isinstance(data.get("workload"), str):
        data["workload"] = {"file": data["workload"]}
    spec = data.get("workload")
    if not isinstance(spec, dict):
        return
    if isinstance(spec.get("file"), str):
        spec["file"] = _beside(spec["file"], path)
    if is_generator_file(spec.get("generator")):
        spec["generator"] = _beside(spec["generator"], path)
    if isinstance(spec.get("companions"), list):
        spec["companions"] = [
            _beside(name, path) if isinstance(name, str) else name for name in spec["companions"]
        ]


def _beside(name: str, path: Path) -> str:
    """A file by its name here, or else beside `path`."""
    if os.path.isabs(name) or os.path.exists(name) or not os.path.exists(path.parent / name):
        return name
    return str(path.parent / name)


def merge(data: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """`data` with dotted paths set; mappings on the way are made. Raises ConfigError."""
    merged: dict[str, Any] = copy.deepcopy(data)
    for source in ("file", "generator"):
        if values.get(f"workload.{source}") is not None and isinstance(
            merged.get("workload"), dict
        ):
            _make_way(merged["workload"], source)
    for path, value in values.items():
        node = merged
        *parents, last = (
            path.split(".", 1) if path.startswith("profile_values.") else path.split(".")
        )
        for name in parents:
            child = node.setdefault(name, {})
            if name == "workload" and isinstance(child, str):
                child = node[name] = {"file": child}
            if not isinstance(child, dict):
                raise ConfigError(f"--set {shown(path)}: {shown(name)} is not a mapping")
            node = child
        node[last] = value
    return merged


def _make_way(workload: dict[str, Any], source: str) -> None:
    """A file in place of a generator, or the other way round: what described the other goes too."""
    other = {"file": "generator", "generator": "file"}[source]
    if workload.get(other) is not None:
        for name in set(workload) - OF_EITHER:
            del workload[name]


def build(
    data: dict[str, Any], where: str, values: Mapping[str, Any] = MappingProxyType({})
) -> Scenario:
    """Validate a mapping. Raises ConfigError naming the first bad field and its limit: in `where`, or
    in what `--set` put there (`values`)."""
    where = shown(where, 1000)
    try:
        scenario = Scenario.model_validate_json(json.dumps(data))
    except ValidationError as error:
        problem = first_problem(error, Scenario)
        field = problem.partition(":")[0]
        if any(f"{field}.".startswith(f"{p}.") or p.startswith(f"{field}.") for p in values):
            where = "--set"
        raise ConfigError(f"{where}: {problem}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {reason(error)}") from None
    _check(scenario, where)
    return scenario


def _check(scenario: Scenario, where: str) -> None:
    problem = scenario.workload.problem()
    if problem is not None:
        raise ConfigError(f"{where}: workload: {shown(problem, 300)}")
    if scenario.order_name not in ORDERS:
        raise ConfigError(
            f"{where}: order: {quoted(scenario.order_name)} is not one of {', '.join(ORDERS)}"
            + did_you_mean(scenario.order_name, ORDERS)
        )
    low, high = scenario.movement.low, scenario.movement.high
    if low >= high:
        raise ConfigError(f"{where}: movement.low: {low} is not below movement.high {high}")
    try:
        check_fleet(scenario.replicas, scenario.order_name, scenario.router, scenario.telemetry)
        for group in scenario.replicas:
            if group.system is not None:
                system_of(group.system)
        if scenario.order_name == "markov":
            check_markov(scenario.priority.share, scenario.priority.stay)
        scenario.resolve_system()
        scenario.update_period()
        for asked in scenario.systems:
            _ = named_system(asked) if isinstance(asked, str) else custom_system(asked)
    except ConfigError as error:  # quotes what the file says, however long
        raise ConfigError(shown(str(error), 500)) from None


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`--set a.b=c` pairs; values are YAML. Raises ConfigError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        path, equals, text = pair.partition("=")
        if not equals or not path:
            raise ConfigError(
                f"--set {shown(pair, 200)!r}: must be name=value, like pool.aging=none"
            )
        values[path] = parse_yaml(text, f"--set {shown(path, 200)}")
    return values


def schema() -> dict[str, Any]:
    """JSON Schema of a scenario, for editors."""
    return Scenario.model_json_schema()
