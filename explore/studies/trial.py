"""One trial, JSON in and JSON out: what every engine runs, in whichever process."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from explore.studies.measure import Measure, measure_of
from explore.studies.semantics import Inputs, canonical, key_of
from explore.studies.series import series_of
from policy import errors
from policy.errors import ConfigError, FastSwitchError, FaultError
from runs.metrics.fleet import summarise_fleet
from runs.scenario import Scenario, build
from runs.serving import Kept
from runs.user_order import UserOrder, user_order
from sim.fleet.simulate import simulate_fleet
from sim.simulate import simulate
from traces.strict import shown

#: What a result keeps of a run's summary where metrics are asked: nothing that depends on when, where
#: or by whom it ran.
KEPT = ("system", "order", "planner", "verdict", "warnings", "metrics", "rejected_because")
_MB = 1 << 20
#: Of all trials of this process.
POOLS = Kept()


def run_trial(ask: str, order: UserOrder | None = None) -> str:
    """Simulate what is asked and reply; never raises for a trial that fails.

    The ask: {"key", "scenario", "memory_mb"}, and if they are asked for `beside` (of `key_of`) and
    `order` (what finds it, and where); the reply: {"key", "result"} or {"key", "failed"}, with
    `error`, its kind and words, if the trial raised one of ours. `order`: an object that lives in
    this process.
    """
    asked = json.loads(ask)
    key = asked["key"]
    try:
        return json.dumps({"key": key, "result": _result(asked, order)}, allow_nan=False)
    except FastSwitchError as error:
        return failed(key, f"{type(error).__name__}: {error}", error)
    except MemoryError:
        why = f"memory limit of {asked['memory_mb']} MiB" if asked["memory_mb"] else "out of memory"
    except Exception as error:  # noqa: BLE001  a bug costs one trial and is told in its row
        why = f"{type(error).__name__}: {error}"
    return failed(key, why)


def failed(key: str, why: str, error: FastSwitchError | None = None) -> str:
    """The reply of a trial without a result."""
    reply: dict[str, Any] = {"key": key, "failed": shown(why, 500)}
    if error is not None:
        reply["error"] = [type(error).__name__, str(error)]
    return canonical(reply)


def error_of(reply: dict[str, Any]) -> FastSwitchError:
    """What to raise for a reply without a result: the trial's own error, if it was one of ours."""
    name, words = reply.get("error", ("FaultError", f"a trial failed: {reply['failed']}"))
    kind = getattr(errors, name, FaultError)
    found: FastSwitchError = kind(words)
    return found


def _result(asked: dict[str, Any], order: UserOrder | None) -> dict[str, Any]:
    scenario = build(asked["scenario"], "trial")
    beside = dict(asked.get("beside", {}))
    if "order" in asked:
        named = asked["order"]
        order = user_order(named["text"], is_checked=True, folder=named["folder"])
        beside["order"] = order.sources()
    if key_of(scenario, Inputs(), beside) != asked["key"]:
        raise FaultError(
            "profile, workload file, order or program differ here from those of the plan"
        )
    measure = measure_of(beside)
    with _memory_limit(asked["memory_mb"]):
        if scenario.replicas:
            return _of_fleet(scenario, order, measure)
        recording = simulate(scenario, order=order, kept=POOLS)
        summary = {**recording.summary, "metrics": measure.metrics(recording)}
        if measure.keeps == "metrics":
            drawn = {"drawn": summary["workload"]["drawn"]}  # between runs: what intervals may say
            return {**{name: summary[name] for name in KEPT}, "workload": drawn}
        del summary["provenance"]
        return {**summary, "series": series_of(recording, measure.keeps)}


def _of_fleet(scenario: Scenario, order: UserOrder | None, measure: Measure) -> dict[str, Any]:
    """The result of a fleet. Raises ConfigError where series are asked for, which only an engine has."""
    if measure.keeps != "metrics":
        raise ConfigError("replicas: a fleet has no series to compare; sweep it, over router say")
    fleet = simulate_fleet(scenario, order=order, kept=POOLS)
    summary = fleet.summary
    if measure.slo is not None or measure.warm_up_s is not None:
        summary = {**summary, "metrics": summarise_fleet(fleet, measure.slo, measure.warm_up_s)}
    drawn = {"drawn": summary["workload"]["drawn"]}
    return {**{name: summary[name] for name in KEPT}, "workload": drawn}


@contextmanager
def _memory_limit(megabytes: int | None) -> Iterator[None]:
    """Address space beyond what this process had before its first trial."""
    if megabytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _AT_START + megabytes * _MB
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    """Bytes mapped by this process; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


#: Imported is by now everything that a trial needs.
_AT_START = _address_space()
