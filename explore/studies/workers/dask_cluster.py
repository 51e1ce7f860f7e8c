"""Trials on a Dask cluster: an existing one by address, or one of this machine's processes."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from distributed import Client, LocalCluster, as_completed

from explore.studies.trial import failed
from explore.studies.workers.base import run_watched
from policy.errors import FaultError
from traces.strict import reason

#: Trials handed out at once, per thread of the cluster.
AHEAD = 3
_SECONDS_TO_CONNECT = 20


class Dask:
    """Workers on a Dask client."""

    def __init__(self, client: Any, cluster: Any) -> None:
        self._client = client
        self._cluster = cluster

    def run(self, asks: Iterable[str]) -> Iterator[str]:
        """Replies in the order they come. Raises FaultError if the cluster is lost."""
        rest = iter(asks)
        threads = sum(self._client.nthreads().values()) or 1
        keys: dict[str, str] = {}

        def submit(ask: str) -> Any:
            future = self._client.submit(run_watched, ask, pure=False)
            keys[future.key] = json.loads(ask)["key"]
            return future

        under_way = as_completed([submit(a) for a in itertools.islice(rest, AHEAD * threads)])
        for future in under_way:
            key = keys.pop(future.key)
            if future.status == "finished":
                yield str(future.result())
            elif future.status == "cancelled" or self._client.status != "running":
                raise FaultError(
                    "the Dask cluster is lost; what was finished is kept; the same command goes on"
                )
            else:
                yield failed(key, f"its worker died: {reason(future.exception())}")
            for ask in itertools.islice(rest, 1):
                under_way.add(submit(ask))

    def close(self) -> None:
        """Leave the cluster; end it if it was started here."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def connect(address: str | None, workers: int) -> Dask:
    """The cluster at `address`; without one, `workers` processes behind a port of this machine
    alone, without dashboard. Raises FaultError."""
    cluster = None
    try:
        if address is None:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
        return Dask(Client(cluster or address, timeout=_SECONDS_TO_CONNECT), cluster)
    except (OSError, ValueError, TimeoutError) as error:
        where = "none can be started here" if address is None else f"no cluster at {address}"
        raise FaultError(f"engine dask: {where}: {reason(error)}") from None
