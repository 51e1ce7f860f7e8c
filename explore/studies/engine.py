"""Runs what a store lacks of a plan: the one engine under comparisons, sweeps, searches and reproduction.

A study is straight-line code that asks for plans and reads what the store then holds. Whatever is cut
off, the same code asks for the same plans and only what is missing runs.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from explore.studies.plan import Plan
from explore.studies.semantics import SEMANTICS, canonical
from explore.studies.store import Corrupt, Store
from explore.studies.trial import error_of
from explore.studies.workers.base import Workers, WorkerSettings, make_workers
from policy.errors import ConfigError, FaultError
from runs.provenance import commit
from runs.user_order import UserOrder


@dataclass(frozen=True)
class Limits:
    """Of one trial: seconds after which its process is killed, and MiB of memory beyond what a
    worker takes before it. None: no limit."""

    seconds: float | None = None
    memory_mb: int | None = None


NO_LIMITS = Limits()
#: A growing plan is written again when it is so many times as long.
GROWN = 1.25
#: The plan to go on with when all of one has run, None at the end; it depends on results alone.
Grow = Callable[[Plan, Store], Plan | None]


class Engine:
    """Workers that are made when there is something to run, and a session of the store while it is open.

    `stops`: the first trial that fails ends the study, with its own error; else it is a failure beside
    the results, and the others go on.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerSettings,
        limits: Limits = NO_LIMITS,
        *,
        order: UserOrder | None = None,
        progress: Callable[[], None] | None = None,
        stops: bool = False,
    ) -> None:
        check_where(order, settings, limits)
        self.store = store
        self.notes: list[str] = []
        self._settings = settings
        self._limits = limits
        self._order = order
        self._progress = progress
        self._stops = stops
        self._workers: Workers | None = None
        self._seen: set[str] = set()
        self._begin = time.monotonic(), _cpu_seconds()

    def __enter__(self) -> Engine:
        self.store.begin_session(
            semantics=SEMANTICS,
            commit=commit(),
            command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            process=os.getpid(),
            workers=self._settings.workers,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._workers is not None:
            self._workers.close()
        seconds, cpu = (now - begin for now, begin in zip(_now(), self._begin, strict=True))
        try:
            self.store.end_session(seconds=round(seconds, 1), cpu_seconds=round(cpu, 1))
        except FaultError:
            if kind is None:  # else a disk that is full has been told already
                raise

    def run(self, plan: Plan, keys: Sequence[str] | None = None) -> None:
        """Make the results of a plan, or of some of its keys, that the store lacks. Raises FaultError,
        and where it `stops` what a trial raised."""
        todo = self._missing(plan.keys if keys is None else keys)
        if not todo:
            return
        if self._workers is None:
            self._workers = make_workers(self._settings, self._order)
        for text in self._workers.run(self._asks(plan, todo)):
            self._take(json.loads(text))

    def run_all(self, plan: Plan, grow: Grow | None = None) -> Plan:
        """Run a plan, and what it grows to as results come in; the last of them, which is kept."""
        num_written = len(plan.trials)
        self.run(plan)
        while grow is not None and (larger := grow(plan, self.store)) is not None:
            plan = replace(larger, grown_from=plan.origin)
            if len(plan.trials) > GROWN * num_written:  # so that all writes together are few
                self.store.write_plan(plan)
                num_written = len(plan.trials)
            self.run(plan)
        if self.store.plan().digest != plan.digest:
            self.store.write_plan(plan)
        return plan

    def _take(self, reply: dict[str, Any]) -> None:
        if "result" in reply:
            self.store.keep(reply["key"], reply["result"])
        elif self._stops:
            raise error_of(reply)
        else:
            self.store.note_failure(reply["key"], reply["failed"])
        if self._progress is not None:
            self._progress()

    def _missing(self, keys: Sequence[str]) -> list[str]:
        """Keys without a sound result that this session has not tried; a corrupt one is set aside, and a note says so."""
        missing = []
        for key in keys:
            if key in self._seen:
                continue
            self._seen.add(key)
            try:
                if self.store.result(key) is not None:
                    continue
            except Corrupt as error:
                self.store.set_aside(key)
                self.notes.append(
                    f"result {key[:12]} was corrupt ({error}): set aside, its trial runs again"
                )
            missing.append(key)
        return missing

    def _asks(self, plan: Plan, todo: list[str]) -> Iterator[str]:
        scenarios = {trial.key: trial.scenario for trial in plan.trials}
        common: dict[str, Any] = {
            "seconds": self._limits.seconds,
            "memory_mb": self._limits.memory_mb,
        }
        if plan.beside:
            common["beside"] = dict(plan.beside)
        if self._order is not None and self._order.text is not None:
            common["order"] = {"text": self._order.text, "folder": self._order.folder}
        for key in todo:
            yield canonical({"key": key, "scenario": scenarios[key], **common})


def check_where(order: UserOrder | None, settings: WorkerSettings, limits: Limits) -> None:
    """An order that is an object stays in this process, where nobody watches a trial. Raises
    ConfigError."""
    if order is None or order.text is not None:
        return
    name = "name it as module:MyOrder or file.py:MyOrder"
    if settings.kind not in ("here", "local") or (settings.workers or 1) > 1:
        raise ConfigError(f"order {order.name}: an object cannot go to other processes; {name}")
    if limits != NO_LIMITS:
        raise ConfigError(
            f"order {order.name}: an object's trials run in this process, without limits; {name}"
        )


def _now() -> tuple[float, float]:
    return time.monotonic(), _cpu_seconds()


def _cpu_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
