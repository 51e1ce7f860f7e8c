"""Trials on a Ray cluster: an existing one by address, or one started here.

Ray reports usage to its makers and opens a dashboard unless told not to; both are off. A cluster
started here asks for a token, and yet Ray's ports are open on all addresses of the machine.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

import ray

from explore.sweep.engines import run_watched
from explore.sweep.trial import failed
from policy.errors import FaultError
from traces.strict import reason

#: Trials handed out at once, per core of the cluster.
AHEAD = 3


class Ray:
    """An engine on the cluster that this process is connected to."""

    def __init__(self) -> None:
        self._remote = ray.remote(run_watched).options(num_cpus=1, max_retries=1)

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        """Replies in the order they come. Raises FaultError if the cluster is lost."""
        rest = iter(asks)
        cores = int(ray.cluster_resources().get("CPU", 1))
        keys: dict[Any, str] = {}

        def submit(number: int) -> None:
            for ask in itertools.islice(rest, number):
                keys[self._remote.remote(ask)] = json.loads(ask)["key"]

        submit(AHEAD * cores)
        while keys:
            for reference in ray.wait(list(keys), num_returns=1)[0]:
                yield _reply(reference, keys.pop(reference))
                submit(1)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends with it."""
        ray.shutdown()


def _reply(reference: Any, key: str) -> str:
    try:
        return str(ray.get(reference))
    except ray.exceptions.RayTaskError as error:
        return failed(key, f"its worker failed: {reason(error)}")
    except ray.exceptions.WorkerCrashedError as error:
        return failed(key, f"its worker died: {reason(error)}")
    except ray.exceptions.RayError as error:
        raise FaultError(
            f"the Ray cluster is lost ({reason(error)}); what was finished is kept (--resume)"
        ) from None


def connect(address: str | None, workers: int) -> Ray:
    """The cluster at `address`; without one, one of `workers` cores, with a token and without
    dashboard. Raises FaultError."""
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        else:
            ray.init(address=address, log_to_driver=False)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise FaultError(f"engine ray: no cluster at {address}: {reason(error)}") from None
    return Ray()
