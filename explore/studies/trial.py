"""One trial, JSON in and JSON out: what every engine runs, in whichever process."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from explore.studies.measure import measure_of
from explore.studies.semantics import Inputs, canonical, key_of
from policy.errors import FastSwitchError
from runs.scenario import build
from runs.user_order import UserOrder, user_order
from sim.simulate import simulate
from traces.strict import shown

#: What a result keeps of a run's summary: nothing that depends on when, where or by whom it ran.
KEPT = ("system", "order", "planner", "verdict", "warnings", "metrics", "rejected_because")
_MB = 1 << 20


def run_trial(ask: str, order: UserOrder | None = None) -> str:
    """Simulate a trial. The reply has its result, or the reason why there is none.

    `ask`: {"key", "scenario", "memory_mb"}, and if they are asked for `beside` (of `key_of`) and
    `order` (what finds it, and where); the reply: {"key", "result"} or {"key", "failed"}. `order`:
    an object that lives in this process.
    """
    asked = json.loads(ask)
    try:
        return canonical({"key": asked["key"], "result": _result(asked, order)})
    except FastSwitchError as error:
        why = f"{type(error).__name__}: {error}"
    except MemoryError:
        why = f"memory limit of {asked['memory_mb']} MiB" if asked["memory_mb"] else "out of memory"
    except Exception as error:  # noqa: BLE001  a bug costs one trial and is told in its row
        why = f"{type(error).__name__}: {error}"
    return failed(asked["key"], why)


def failed(key: str, why: str) -> str:
    """The reply of a trial without a result."""
    return canonical({"key": key, "failed": shown(why, 500)})


def _result(asked: dict[str, Any], order: UserOrder | None) -> dict[str, Any]:
    scenario = build(asked["scenario"], "trial")
    beside = dict(asked.get("beside", {}))
    if "order" in asked:
        named = asked["order"]
        order = user_order(named["text"], is_checked=True, folder=named["folder"])
    if order is not None:
        beside["order"] = order.sources()
    if key_of(scenario, Inputs(), beside) != asked["key"]:
        raise FastSwitchError(
            "profile, workload file, order or program differ here from those of the plan"
        )
    with _memory_limit(asked["memory_mb"]):
        recording = simulate(scenario, order=order)
        summary = {**recording.summary, "metrics": measure_of(beside).metrics(recording)}
    drawn = {"drawn": summary["workload"]["drawn"]}  # between runs: what intervals may say
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
