"""Real runs of others beside their prediction: what was served is simulated on a profile, once each.

The system is fixed beforehand: `vllm-v1` with asynchronous scheduling, that engine's default, and prefixes
shared where the workload names its blocks; limits are those recorded, then the scenario's, then --set.
Nothing is fitted to a run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibrate import profile as profiles
from calibrate.profile import Profile, TokenCost
from explore.validation.others import Measured, RealRun
from policy.errors import ConfigError, InputError
from runs import scenario as scenarios
from runs.metrics.columns import columns_of
from runs.scenario import Scenario
from sim.simulate import simulate
from traces.readers import native
from traces.workload import Header, Turn, Workload

Floats = npt.NDArray[np.float64]
METRICS = ("ttft", "tpot", "e2e")
PERCENTILES = (50, 90, 99)
#: A run holds if mean TPOT and E2E are within this, and mean TTFT within twice it.
HOLDS = 0.05
#: Below this share of the highest throughput measured in a set of runs the load is called light.
LOADED = 0.9
SYSTEM: Mapping[str, Any] = {"name": "vllm-v1", "base": "vllm-v1", "async_scheduling": True}


class Line(NamedTuple):
    """One figure: seconds measured and predicted."""

    metric: str
    figure: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1 if self.measured else math.nan


@dataclass(frozen=True)
class Beside:
    """One run. `per_request`: percentiles of |E2E error| of each request. `offered`, `measured_rate`,
    `predicted_rate`: requests a second. `load`: offered over the highest rate measured in its set."""

    run: RealRun
    profile: Profile
    lines: tuple[Line, ...]
    per_request: dict[int, float]
    offered: float
    measured_rate: float
    predicted_rate: float
    preempted: int
    unknown: tuple[str, ...]
    load: float = 0.0

    def of(self, metric: str, figure: str = "mean") -> Line:
        """One of the lines."""
        return next(x for x in self.lines if (x.metric, x.figure) == (metric, figure))

    @property
    def holds(self) -> bool:
        """Whether means are within the bars."""
        errors = {metric: abs(self.of(metric).error) for metric in METRICS}
        return errors["tpot"] <= HOLDS and errors["e2e"] <= HOLDS and errors["ttft"] <= 2 * HOLDS


def lay(
    runs: Sequence[RealRun], profile_name: str, scenario: Path | None, values: Mapping[str, Any]
) -> list[Beside]:
    """Each run predicted, lightest load first. Raises ConfigError, InputError."""
    profile = profiles.load(profile_name)
    found = [_one(run, profile, profile_name, scenario, values) for run in runs]
    highest = max(one.measured_rate for one in found)
    found.sort(key=lambda one: (one.offered, one.run.name))
    return [
        Beside(**{**vars(one), "load": one.offered / highest if highest else 0.0}) for one in found
    ]


def _one(
    run: RealRun,
    profile: Profile,
    profile_name: str,
    scenario: Path | None,
    values: Mapping[str, Any],
) -> Beside:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "served.jsonl"
        native.write(Workload.of(_turns(run), Header(source=run.tool, timing="open")), path)
        asked = _scenario(run, profile, profile_name, scenario, values, path)
        recorded = simulate(asked, profile=None)
    requests = columns_of(recorded, "requests")
    rows = {name: index for index, name in enumerate(requests["request_id"])}
    lacking = [one.name for one in run.requests if one.name not in rows]
    if lacking:
        raise InputError(
            f"{run.name}: request {lacking[0]} is not in the scenario's workload; its ids must be the"
            " run's own"
        )
    order = [rows[one.name] for one in run.requests]
    status = [requests["status"][index] for index in order]
    if set(status) != {"finished"}:
        raise InputError(
            f"{run.name}: {sum(one != 'finished' for one in status)} of {len(status)} requests do not"
            " finish in the simulation; are limits and pools the run's own?"
        )
    arrival = requests["arrival_ns"][order] / 1e9
    predicted = {
        "ttft": requests["first_token_ns"][order] / 1e9 - arrival,
        "e2e": requests["finish_ns"][order] / 1e9 - arrival,
    }
    return _compared(run, profile, predicted, arrival, recorded.summary)


def _compared(
    run: RealRun,
    profile: Profile,
    predicted: dict[str, Floats],
    arrival: Floats,
    summary: dict[str, Any],
) -> Beside:
    outputs = np.array([one.output_tokens for one in run.requests])
    several = outputs > 1
    real = {
        "ttft": np.array([one.ttft_s for one in run.requests]),
        "e2e": np.array([one.e2e_s for one in run.requests]),
    }
    for times in (real, predicted):
        gaps = (times["e2e"] - times["ttft"])[several]
        times["tpot"] = gaps / (outputs[several] - 1)
    lines = []
    for metric in METRICS:
        one, two = real[metric], predicted[metric]
        if one.size:
            lines.append(Line(metric, "mean", float(one.mean()), float(two.mean())))
            lines += [
                Line(metric, f"P{p}", float(np.percentile(one, p)), float(np.percentile(two, p)))
                for p in PERCENTILES
            ]
    off = np.abs(predicted["e2e"] / np.maximum(real["e2e"], 1e-9) - 1)
    sent = np.array([one.arrival_s for one in run.requests])
    count = len(run.requests)
    span = float(np.ptp(sent))
    return Beside(
        run,
        profile,
        tuple(lines),
        {p: float(np.percentile(off, p)) for p in PERCENTILES},
        (count - 1) / span if span else math.inf,
        count / max(1e-9, float((sent + real["e2e"]).max())),
        count / max(1e-9, float((arrival + predicted["e2e"]).max() - arrival.min())),
        int(summary["metrics"].get("preemptions", 0) or 0),
        _unknown(run, profile),
    )


def _unknown(run: RealRun, profile: Profile) -> tuple[str, ...]:
    """What a reader should know that nobody knows."""
    found = list(run.unknown)
    if "pool.device_blocks" not in run.limits:
        found.append("the engine's KV blocks were not recorded: the profile's own count")
    if "limits.max_num_batched_tokens" not in run.limits:
        found.append(
            "the engine's limits were not recorded: those of the scenario, or vLLM's defaults"
        )
    if run.failed:
        found.append(
            f"{run.failed} requests failed and are left out; the engine did serve part of them"
        )
    found += profile.warnings()
    assumed = [name for name in profile.assumptions() if name.startswith("step.")]
    if assumed:
        found.append(f"assumed of the machine: {', '.join(assumed)}")
    return tuple(found)


def _turns(run: RealRun) -> list[Turn]:
    """Every request as a session of one turn, open loop."""
    return [
        Turn(
            request_id=one.name,
            session_id=one.name,
            turn=1,
            input_tokens=one.input_tokens,
            output_tokens=one.output_tokens,
            arrival_ns=round(one.arrival_s * 1e9),
        )
        for one in run.requests
    ]


def _scenario(
    run: RealRun,
    profile: Profile,
    profile_name: str,
    given: Path | None,
    values: Mapping[str, Any],
    served: Path,
) -> Scenario:
    """Recorded limits, under what the scenario and the command say."""
    data: dict[str, Any] = {"name": run.name, "workload": {}, "system": dict(SYSTEM)}
    data = scenarios.merge(data, {"pool.aging": "none", **run.limits})
    if given is not None:
        own, _ = scenarios.read_mapping(given)
        scenarios.find_beside(own, given)
        data = _over(data, own)
    data["profile"] = profile_name
    data = scenarios.merge(data, dict(values))
    workload = data["workload"]
    if not workload.get("file"):
        workload["file"] = str(served)
        if run.concurrency is not None:
            workload.setdefault("concurrency", run.concurrency)
    if isinstance(profile.step, TokenCost) and run.inside:
        data.setdefault("profile_values", {}).setdefault("step.first_token", 0.0)
    data["limits"] = {"max_model_len": profile.model.max_model_len, **data.get("limits", {})}
    if "generator" in workload:
        raise ConfigError(f"{given}: workload.generator: a real run has a workload of its own")
    return scenarios.build(data, str(given or run.name))


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A mapping put over another, section by section."""
    found = dict(below)
    for name, value in above.items():
        old = found.get(name)
        both = isinstance(old, dict) and isinstance(value, dict) and name != "system"
        found[name] = _over(old, value) if both else value  # type: ignore[arg-type]
    return found


# ---------------------------------------------------------------------- words


def as_text(found: Sequence[Beside]) -> str:
    """Prediction beside measurement, lightest load first, and up to which load it holds."""
    lines = []
    for one in found:
        run = one.run
        lines += [
            f"{run.name} ({run.tool}, {len(run.requests)} requests) on {one.profile.name}",
            f"  {'':<10} {'measured':>11} {'predicted':>11} {'error':>8}",
        ]
        lines += [
            f"  {x.metric + ' ' + x.figure:<10} {_ms(x.measured)} {_ms(x.predicted)} {100 * x.error:+7.1f} %"
            for x in one.lines
        ]
        rates = f"{one.measured_rate:.3g} measured, {one.predicted_rate:.3g} predicted"
        lines.append(f"  requests a second: {one.offered:.3g} offered, {rates}")
        errors = ", ".join(f"P{p} {100 * off:.1f} %" for p, off in one.per_request.items())
        lines.append(f"  |error| of each request's E2E: {errors}")
        lines += [f"  not known: {text}" for text in one.unknown]
    return "\n".join([*lines, *_range(found)])


def _range(found: Sequence[Beside]) -> list[str]:
    """Over a set of runs: up to which offered load predictions hold."""
    if len(found) < 2:
        return []
    bars = f"mean TPOT and E2E within {100 * HOLDS:g} %, TTFT within {200 * HOLDS:g} %"
    failing = [one for one in found if not one.holds]
    if not failing:
        return [f"holds at every load measured ({bars})"]
    first = min(failing, key=lambda one: one.offered)
    below = [one for one in found if one.holds and one.offered < first.offered]
    upto = f"up to {below[-1].offered:.3g} requests a second" if below else "at no load measured"
    return [f"holds {upto} ({bars}); first fails at {first.offered:.3g}, {first.run.name}"]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:>8.1f} ms"


def as_json(found: Sequence[Beside]) -> list[dict[str, Any]]:
    """The same for machines."""
    return [
        {
            "run": one.run.name,
            "tool": one.run.tool,
            "profile": one.profile.name,
            "requests": len(one.run.requests),
            "failed": one.run.failed,
            "offered_per_s": one.offered if math.isfinite(one.offered) else None,
            "load": one.load if math.isfinite(one.load) else None,
            "measured_per_s": one.measured_rate,
            "predicted_per_s": one.predicted_rate,
            "holds": one.holds,
            "lines": [{**x._asdict(), "error": x.error} for x in one.lines],
            "per_request_e2e": {f"p{p}": off for p, off in one.per_request.items()},
            "unknown": list(one.unknown),
        }
        for one in found
    ]


__all__ = ["Beside", "Measured", "as_json", "as_text", "lay"]
