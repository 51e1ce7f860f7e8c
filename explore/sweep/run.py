"""`sweep(...)`: run what is missing of a sweep, keep it, make its tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from explore.compare import Estimate, Ratio
from explore.sweep import answers, journal, spec, tables
from explore.sweep.engines import Engine, EngineSettings, make_engine
from explore.sweep.journal import Journal
from explore.sweep.semantics import SEMANTICS, canonical
from explore.sweep.store import PLAN, Corrupt, Store, claimed
from explore.sweep.tables import ESTIMATES, RATIOS, RESULTS
from explore.sweep.trials import Plan, expand
from policy.errors import ConfigError
from traces.provenance import commit
from traces.strict import shown_path

if TYPE_CHECKING:
    import pandas as pd


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
        """Mean over runs of a metric at one point, chosen by what was swept."""
        return answers.estimate(self.results, system, metric, at)

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
        return answers.speedup(self.results, system, baseline, metric, at, other)

    def highest(
        self, over: str, limits: Mapping[str, float], along: Sequence[str] = ()
    ) -> pd.DataFrame:
        """How high `over`, and what was swept `along` with it, may go within limits on metrics: a row
        per system, run and what else was swept. See `explore.sweep.answers.highest`."""
        return answers.highest(self.results, over, limits, along)

    def _frame(self, name: str) -> pd.DataFrame:
        from explore.frames import of_csv  # noqa: PLC0415  pandas takes longer than a small sweep

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
) -> Sweep:
    """Run a sweep (a file, a shipped name, or the same as a mapping) into the folder `out`.

    `resume`: the folder may hold results of this sweep, which are kept. `extend`: of another one
    too; what both have in common is kept. `shard` (i, n): the i-th of n parts, 1 to n. `seconds`
    and `memory_mb` limit single trials; a trial that fails is a row with its reason. Raises
    ConfigError, InputError or FaultError; what was finished by then is kept.
    """
    plan = expand(spec.load(sweep_file), values)
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
    )


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
) -> Sweep:
    """As `sweep`, for a plan that was made already."""
    keys = plan.keys if shard is None else plan.shard(*_checked(shard))
    with claimed(out) as store:
        adopt(store, plan, resume=resume, extend=extend)
        with closing(Journal(out)) as book:
            notes = _opened(book, out, plan)
            todo = _missing(store, keys, notes)
            if todo:
                with closing(make_engine(settings)) as engine:
                    _run(engine, store, book, _asks(plan, todo, limits), progress)
        made = tables.write(store, plan)
    return Sweep(out, len(plan.trials), made.done, made.failed, made.digest, notes)


def adopt(store: Store, plan: Plan, *, resume: bool, extend: bool) -> None:
    """Make the folder this plan's. Raises ConfigError if it holds what was not asked to be kept."""
    folder = shown_path(store.folder)
    if (store.folder / PLAN).exists():
        held = store.plan()
        if held.digest == plan.digest and (resume or extend):
            return
        if held.digest == plan.digest:
            raise ConfigError(f"{folder}: holds results of this sweep: go on with --resume")
        if not extend:
            raise ConfigError(
                f"{folder}: holds {_differs(held, plan)}; give another folder,\n"
                "or --extend to change its sweep to this one and keep what both have in common"
            )
    store.write_plan(plan)


def _differs(held: Plan, plan: Plan) -> str:
    if held.semantics != plan.semantics:
        return f"results of semantics version {held.semantics}, this program's is {plan.semantics}"
    if held.name != plan.name:
        return f"another sweep, {held.name!r}, not {plan.name!r}"
    return f"another version of sweep {held.name!r}, of {len(held.trials)} trials"


def _checked(shard: tuple[int, int]) -> tuple[int, int]:
    index, count = shard
    if not 1 <= index <= count:
        raise ConfigError(f"shard: {index}/{count} is not in 1/N to N/N")
    return shard


def _opened(book: Journal, folder: Path, plan: Plan) -> list[str]:
    """Begin a session in the journal; what there is to tell about it."""
    book.note("session", plan=plan.digest, semantics=SEMANTICS, commit=commit())
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
    for key in todo:
        ask = {"key": key, "scenario": scenarios[key]}
        yield canonical({**ask, "seconds": limits.seconds, "memory_mb": limits.memory_mb})


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
