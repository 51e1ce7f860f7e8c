"""`sweep(...)`: run what is missing of a sweep, keep it, make its tables."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from explore.studies import answers, journal, replication, spec, sweep_tables
from explore.studies.estimates import Estimate, Ratio
from explore.studies.journal import Journal
from explore.studies.plan import Plan, expand
from explore.studies.semantics import SEMANTICS, canonical
from explore.studies.store import PLAN, Corrupt, Store, claimed
from explore.studies.sweep_tables import ESTIMATES, RATIOS, RESULTS
from explore.studies.workers.base import Engine, EngineSettings, InThisProcess, make_engine
from policy.errors import ConfigError
from runs.provenance import commit
from runs.user_order import OrderLike, UserOrder, user_order
from traces.strict import shown_path

if TYPE_CHECKING:
    import pandas as pd


#: A growing plan is written again when it is so many times as long.
GROWN = 1.25
#: The plan to go on with when all of one has run, None at the end.
Grow = Callable[[Plan, Store], Plan | None]


@dataclass(frozen=True)
class Limits:
    """Of one trial: seconds after which its process is killed, and MiB of memory beyond what a
    worker takes before it. None: no limit."""

    seconds: float | None = None
    memory_mb: int | None = None


@dataclass
class Sweep:
    """A sweep's folder after a run."""

    folder: Path
    trials: int
    done: int
    failed: int
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Trials that nobody has run yet: another shard's, or interrupted."""
        return self.trials - self.done - self.failed

    @property
    def results(self) -> pd.DataFrame:
        """One row per trial: what was swept, status, reason, verdict, metrics."""
        return self._frame(RESULTS)

    @property
    def estimates(self) -> pd.DataFrame:
        """One row per point, system and metric: mean over runs and half of its 95 % interval."""
        return self._frame(ESTIMATES)

    @property
    def ratios(self) -> pd.DataFrame:
        """One row per point, system and metric: times better than the point's first system."""
        return self._frame(RATIOS)

    def estimate(
        self, system: str, metric: str, at: Mapping[str, Any] = MappingProxyType({})
    ) -> Estimate:
        """Mean over runs of a metric at one point, chosen by what was swept. This, `speedup` and
        `highest` raise ConfigError while trials are missing."""
        return answers.estimate(self._whole, system, metric, at)

    def speedup(
        self,
        system: str,
        baseline: str,
        metric: str,
        at: Mapping[str, Any] = MappingProxyType({}),
        baseline_at: Mapping[str, Any] | None = None,
    ) -> Ratio:
        """How many times better `system` is than `baseline`, paired by run, both `at` one point or
        the baseline at another."""
        other = at if baseline_at is None else baseline_at
        return answers.speedup(self._whole, system, baseline, metric, at, other)

    def highest(
        self, over: str, limits: Mapping[str, float], along: Sequence[str] = ()
    ) -> pd.DataFrame:
        """How high `over`, and what was swept `along` with it, may go within limits on metrics: a row
        per system, run and what else was swept. See `explore.studies.answers.highest`."""
        return answers.highest(self._whole, over, limits, along)

    @property
    def _whole(self) -> pd.DataFrame:
        if self.missing:
            raise ConfigError(
                f"{self.missing} of {self.trials} trials are missing: run the rest, or merge the shards"
            )
        return self.results

    def _frame(self, name: str) -> pd.DataFrame:
        from explore.studies.frames import of_csv  # noqa: PLC0415  pandas takes longer than a small sweep

        return of_csv(self.folder / name)


def sweep(
    sweep_file: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    values: dict[str, Any] | None = None,
    resume: bool = False,
    extend: bool = False,
    shard: tuple[int, int] | None = None,
    engine: Literal["local", "dask", "ray"] = "local",
    workers: int | None = None,
    address: str | None = None,
    start_cluster: bool = False,
    seconds: float | None = None,
    memory_mb: int | None = None,
    progress: Callable[[], None] | None = None,
    order: OrderLike | None = None,
    until_precise: bool = False,
) -> Sweep:
    """Run a sweep (a file, a shipped name, or the same as a mapping) into the folder `out`.

    `resume`: the folder may hold results of this sweep, which are kept. `extend`: of another one
    too; what both have in common is kept. `shard` (i, n): the i-th of n parts, 1 to n. `seconds`
    and `memory_mb` limit single trials; a trial that fails is a row with its reason. `order`: the
    user's own in place of the scenarios'; one given by name goes wherever trials run, an object (a
    class of a notebook's cell) stays in this process, and so do its trials. `until_precise`: points
    get more runs until their intervals are narrow (explore.studies.precision). Raises
    ConfigError, InputError or FaultError; what was finished by then is kept.
    """
    source = spec.load(sweep_file)
    own = None if order is None else user_order(order)
    plan, grow = planned(source, values, own, until_precise=until_precise)
    settings = EngineSettings(engine, workers, address, start_cluster)
    return run(
        plan,
        Path(out),
        settings,
        Limits(seconds, memory_mb),
        resume=resume,
        extend=extend,
        shard=shard,
        progress=progress,
        grow=grow,
    )


def planned(
    source: spec.Source,
    values: dict[str, Any] | None,
    order: UserOrder | None,
    *,
    until_precise: bool = False,
) -> tuple[Plan, Grow | None]:
    """The plan of a sweep, and how it grows. Raises ConfigError or InputError."""
    if not until_precise:
        return expand(source, values, order), None
    return replication.first(source, values, order), replication.grower(source, values, order)


def run(
    plan: Plan,
    out: Path,
    settings: EngineSettings,
    limits: Limits,
    *,
    resume: bool = False,
    extend: bool = False,
    shard: tuple[int, int] | None = None,
    progress: Callable[[], None] | None = None,
    grow: Grow | None = None,
    conclude: Callable[[Plan, Store], None] | None = None,
) -> Sweep:
    """As `sweep`, for a plan that was made already. `grow`: when all of a plan has run, the plan to
    go on with, or None; it must depend on results alone. `conclude`: what to write when all has run.
    """
    if grow is not None and shard is not None:
        raise ConfigError(
            "shard: what is to run depends on results of the other shards; leave it out"
        )
    _check_where(plan, settings, limits)
    shards = None if shard is None else plan.shard(*_checked(shard))
    with claimed(out) as store:
        adopt(store, plan, resume=resume, extend=extend)
        with closing(Journal(out)) as book, closing(_Lazy(plan, settings)) as engine:
            notes = _opened(book, out, plan)
            num_written = len(store.plan().trials)
            seen: set[str] = set()
            while True:
                keys = tuple(k for k in (plan.keys if shards is None else shards) if k not in seen)
                todo = _missing(store, keys, notes)
                if todo:
                    _run(engine.get(), store, book, _asks(plan, todo, limits), progress)
                seen.update(keys)
                larger = grow(plan, store) if grow is not None else None
                if larger is None:
                    break
                plan = replace(larger, grown_from=plan.origin)
                if len(plan.trials) > GROWN * num_written:  # so that all writes together are few
                    store.write_plan(plan)
                    num_written = len(plan.trials)
        if store.plan().digest != plan.digest:
            store.write_plan(plan)
        made = sweep_tables.write(store, plan)
        if conclude is not None:
            conclude(plan, store)
    return Sweep(out, len(plan.trials), made.done, made.failed, made.digest, notes)


class _Lazy:
    """An engine that is made when there is something to run."""

    def __init__(self, plan: Plan, settings: EngineSettings) -> None:
        self._plan = plan
        self._settings = settings
        self._engine: Engine | None = None

    def get(self) -> Engine:
        """The engine. Raises ConfigError or FaultError where it cannot be had."""
        if self._engine is None:
            order = self._plan.order
            if order is not None and order.text is None:
                self._engine = InThisProcess(order)
            else:
                self._engine = make_engine(self._settings)
        return self._engine

    def close(self) -> None:
        """Give back what was taken."""
        if self._engine is not None:
            self._engine.close()


def _check_where(plan: Plan, settings: EngineSettings, limits: Limits) -> None:
    """An order that is an object stays in this process, where nobody watches a trial."""
    if plan.order is None or plan.order.text is not None:
        return
    name = "name it as module:MyOrder or file.py:MyOrder"
    if settings.kind != "local" or (settings.workers or 1) > 1:
        raise ConfigError(
            f"order {plan.order.name}: an object cannot go to other processes; {name}"
        )
    if limits.seconds is not None or limits.memory_mb is not None:
        raise ConfigError(
            f"order {plan.order.name}: an object's trials run in this process, without limits; {name}"
        )


def adopt(store: Store, plan: Plan, *, resume: bool, extend: bool) -> None:
    """Make the folder this plan's. Raises ConfigError if it holds what was not asked to be kept."""
    folder = shown_path(store.folder)
    if (store.folder / PLAN).exists():
        held = store.plan()
        if held.origin == plan.digest and (resume or extend):
            return
        if held.origin == plan.digest:
            raise ConfigError(f"{folder}: holds results of this sweep: go on with --resume")
        if not extend:
            raise ConfigError(
                f"{folder}: holds {_differs(held, plan)}; give another folder,\n"
                "or --extend to change its sweep to this one and keep what both have in common"
            )
    store.write_plan(plan)


def _differs(held: Plan, plan: Plan) -> str:
    """What the folder holds instead, in words."""
    if held.semantics != plan.semantics:
        return f"results of semantics version {held.semantics}, this program's is {plan.semantics}"
    if held.name != plan.name:
        return f"another sweep, {held.name!r}, not {plan.name!r}"
    theirs, ours = (p.beside.get("order", {}).get("name", "its scenarios'") for p in (held, plan))
    if theirs != ours:
        return f"sweep {held.name!r} under order {theirs}, not {ours}"
    if held.beside.get("order") != plan.beside.get("order"):
        return f"sweep {held.name!r} under another text of order {ours}"
    for what in plan.purpose:
        if held.purpose.get(what) != plan.purpose[what] and what in held.purpose:
            return (
                f"{held.name!r} of another {what}, {held.purpose[what]}, not {plan.purpose[what]}"
            )
    return f"another version of sweep {held.name!r}, of {len(held.trials)} trials"


def _checked(shard: tuple[int, int]) -> tuple[int, int]:
    index, count = shard
    if not 1 <= index <= count:
        raise ConfigError(f"shard: {index}/{count} is not in 1/N to N/N")
    return shard


def _opened(book: Journal, folder: Path, plan: Plan) -> list[str]:
    """Begin a session in the journal; what there is to tell about it."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    book.note("session", plan=plan.digest, semantics=SEMANTICS, commit=commit(), command=command)
    if not book.was_torn:
        return []
    return [
        f"{shown_path(folder / journal.NAME)}: its last line was torn by a crash;"
        " no result depends on it"
    ]


def _missing(store: Store, keys: tuple[str, ...], notes: list[str]) -> list[str]:
    """Keys without a sound result; a corrupt one is set aside, and a note says so."""
    missing = []
    for key in keys:
        try:
            if store.result(key) is not None:
                continue
        except Corrupt as error:
            away = store.set_aside(key)
            notes.append(
                f"result {key[:12]} was corrupt ({error}): moved to {shown_path(away)},"
                " its trial runs again"
            )
        missing.append(key)
    return missing


def _asks(plan: Plan, todo: list[str], limits: Limits) -> Iterator[str]:
    scenarios = {trial.key: trial.scenario for trial in plan.trials}
    common: dict[str, Any] = {"seconds": limits.seconds, "memory_mb": limits.memory_mb}
    if plan.beside:
        common["beside"] = dict(plan.beside)
    if plan.order is not None and plan.order.text is not None:
        common["order"] = {"text": plan.order.text, "folder": plan.order.folder}
    for key in todo:
        yield canonical({"key": key, "scenario": scenarios[key], **common})


def _run(
    engine: Engine,
    store: Store,
    book: Journal,
    asks: Iterator[str],
    progress: Callable[[], None] | None,
) -> None:
    for text in engine.run(asks):
        reply = json.loads(text)
        if "result" in reply:
            store.keep(reply["key"], reply["result"])
            book.note("done", key=reply["key"])
        else:
            store.note_failure(reply["key"], reply["failed"])
            book.note("failed", key=reply["key"], reason=reply["failed"])
        if progress is not None:
            progress()
