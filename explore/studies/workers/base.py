"""Where trials run. Workers take lines of JSON and give lines of JSON, in any order.

    here   this process, one trial after another, nobody watching
    local  worker processes of this machine
    dask   a Dask cluster (extra `dask`)
    ray    a Ray cluster (extra `ray`)

A trial on a cluster runs in a child process of the cluster's worker, watched as on this machine: so
limits and reasons are the same everywhere.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from explore.studies.workers.local import Local
from policy.errors import ConfigError
from runs.user_order import UserOrder

ENGINES = ("local", "dask", "ray")
_PACKAGES = {"dask": "distributed", "ray": "ray"}


class Workers(Protocol):
    """Runs trials; what they are is none of its business."""

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        """A reply (explore.studies.trial.run_trial) for every ask, in the order they come."""
        ...

    def close(self) -> None:
        """Give back what was taken."""
        ...


@dataclass(frozen=True)
class WorkerSettings:
    """`address`: an existing cluster. `starts_cluster`: one is started here, for this sweep alone.
    `workers` None: one per core. Raises ConfigError for what does not go together."""

    kind: Literal["here", "local", "dask", "ray"] = "local"
    workers: int | None = None
    address: str | None = None
    starts_cluster: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers: {self.workers} is less than 1")
        if self.kind not in (*ENGINES, "here"):
            raise ConfigError(f"engine: {self.kind!r} is not one of {', '.join(ENGINES)}")
        if self.kind in ("here", "local"):
            if self.address is not None or self.starts_cluster:
                raise ConfigError(f"engine {self.kind}: takes no cluster")
        elif (self.address is None) != self.starts_cluster:
            raise ConfigError(
                f"engine {self.kind}: give the address of a cluster (--address),"
                " or say that one may be started here (--start-cluster)"
            )


def make_workers(settings: WorkerSettings, order: UserOrder | None = None) -> Workers:
    """Workers; `order`: an object, which stays in this process. Raises ConfigError if a library is
    missing, FaultError if no cluster answers."""
    if settings.kind == "here" or (order is not None and order.text is None):
        return InThisProcess(order)
    workers = settings.workers or os.cpu_count() or 1
    if settings.kind == "local":
        return Local(workers)
    try:
        module = importlib.import_module(f"explore.studies.workers.{settings.kind}_cluster")
        cluster: Workers = module.connect(settings.address, workers)
    except ModuleNotFoundError as error:
        package = _PACKAGES[settings.kind]
        if error.name != package:
            raise
        raise ConfigError(
            f"engine {settings.kind}: {package} is not installed;"
            f" the extra [{settings.kind}] brings it"
        ) from None
    return cluster


class InThisProcess:
    """No workers at all. `order`: the user's own, if it lives in this process."""

    def __init__(self, order: UserOrder | None) -> None:
        self._order = None if order is None or order.text is not None else order

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        """Replies in the order asked."""
        run_trial = importlib.import_module("explore.studies.trial").run_trial
        for ask in asks:
            yield run_trial(ask, self._order)

    def close(self) -> None:
        """Nothing was taken."""


#: Children that wait for a trial, and the order they have imported; a cluster's worker may have
#: several threads.
_IDLE: queue.SimpleQueue[tuple[Local, str]] = queue.SimpleQueue()


def run_watched(ask: str) -> str:
    """What a cluster's worker does: one trial in a child process, which it keeps for the next one
    under the same order: a module is imported once, and a changed one must be imported again."""
    order = json.dumps(json.loads(ask).get("beside", {}).get("order"), sort_keys=True)
    child = None
    try:
        child, knows = _IDLE.get_nowait()
    except queue.Empty:
        knows = order
    if child is not None and knows != order:
        child.close()
        atexit.unregister(child.close)
        child = None
    if child is None:
        child = Local(1)
        atexit.register(child.close)
    try:
        (reply,) = child.run([ask])
    finally:
        _IDLE.put((child, order))
    return reply
