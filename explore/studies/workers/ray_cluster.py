"""Trials on a Ray cluster: an existing one by address, or one started here.

Ray reports usage to its makers and opens a dashboard unless told not to; both are off. A cluster
started here asks for a token, made for it alone, and yet Ray's ports are open on all addresses of
the machine. Ray reads its environment when it is imported, so `connect` imports it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

from explore.studies.trial import failed
from explore.studies.workers.base import run_watched
from policy.errors import FaultError
from traces.strict import reason

#: Trials handed out at once, per core of the cluster.
AHEAD = 3


class Ray:
    """Workers on the cluster that this process is connected to by the module `ray`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote = ray.remote(run_watched).options(num_cpus=1, max_retries=1)

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        """Replies in the order they come. Raises FaultError if the cluster is lost."""
        rest = iter(asks)
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        keys: dict[Any, str] = {}

        def submit(number: int) -> None:
            for ask in itertools.islice(rest, number):
                keys[self._remote.remote(ask)] = json.loads(ask)["key"]

        submit(AHEAD * cores)
        while keys:
            for reference in self._ray.wait(list(keys), num_returns=1)[0]:
                yield self._reply(reference, keys.pop(reference))
                submit(1)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends with it."""
        self._ray.shutdown()

    def _reply(self, reference: Any, key: str) -> str:
        try:
            return str(self._ray.get(reference))
        except self._ray.exceptions.RayTaskError as error:
            return failed(key, f"its worker failed: {reason(error)}")
        except self._ray.exceptions.WorkerCrashedError as error:
            return failed(key, f"its worker died: {reason(error)}")
        except self._ray.exceptions.RayError as error:
            raise FaultError(
                f"the Ray cluster is lost ({reason(error)}); what was finished is kept; the same command goes on"
            ) from None


def connect(address: str | None, workers: int) -> Ray:
    """The cluster at `address`; without one, one of `workers` cores, with a token and without
    dashboard. Raises FaultError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:  # an address that nobody answers is told within a minute, not within twelve
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    ray = importlib.import_module("ray")
    where = "none can be started here" if address is None else f"no cluster at {address}"
    options = {"include_dashboard": False, "num_cpus": workers} if address is None else {}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise FaultError(f"engine ray: {where}: {reason(error)}") from None
    return Ray(ray)
