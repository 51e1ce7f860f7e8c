"""`sweep(...)`: run what is missing of a sweep, keep it, make its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from explore.studies import answers, precision, spec, sweep_tables
from explore.studies.engine import Engine, Grow, Limits, check_where
from explore.studies.estimates import Estimate, Ratio
from explore.studies.plan import Plan, refuse_unread
from explore.studies.store import Store, claimed
from explore.studies.sweep_tables import ESTIMATES, RATIOS, RESULTS
from explore.studies.workers.base import WorkerSettings
from policy.errors import ConfigError
from runs.user_order import OrderLike, UserOrder, user_order
from traces.strict import shown_path

if TYPE_CHECKING:
    import pandas as pd


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
    extend: bool = False,
    overwrite: bool = False,
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

    Results of the same sweep that the folder holds are kept. `extend`: of another one too, as far as
    both have them in common; `overwrite`: none are. `shard` (i, n): the i-th of n parts, 1 to n.
    `seconds` and `memory_mb` limit single trials; a trial that fails is a row with its reason.
    `order`: the user's own in place of the scenarios'; one given by name goes wherever trials run, an
    object (a class of a notebook's cell) stays in this process, and so do its trials. `until_precise`:
    points get more runs until their intervals are narrow (explore.studies.precision). Raises
    ConfigError, InputError or FaultError; what was finished by then is kept.
    """
    source = spec.load(sweep_file)
    own = None if order is None else user_order(order)
    plan, grow = planned(source, values, own, until_precise=until_precise)
    settings = WorkerSettings(engine, workers, address, start_cluster)
    return run(
        plan,
        Path(out),
        settings,
        Limits(seconds, memory_mb),
        extend=extend,
        overwrite=overwrite,
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
    plan, grow = precision.planned(source, values, order, until_precise=until_precise)
    refuse_unread(plan, source)
    return plan, grow


def run(
    plan: Plan,
    out: Path,
    settings: WorkerSettings,
    limits: Limits,
    *,
    extend: bool = False,
    overwrite: bool = False,
    shard: tuple[int, int] | None = None,
    progress: Callable[[], None] | None = None,
    grow: Grow | None = None,
    conclude: Callable[[Plan, Store], None] | None = None,
) -> Sweep:
    """As `sweep`, for a plan that was made already. `grow`: how it grows. `conclude`: what to write when
    all has run."""
    if grow is not None and shard is not None:
        raise ConfigError(
            "shard: what is to run depends on results of the other shards; leave it out"
        )
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ConfigError(f"shard: {shard[0]}/{shard[1]} is not in 1/N to N/N")
    check_where(plan.order, settings, limits)
    with claimed(out, overwrite=overwrite) as store:
        adopt(store, plan, extend=extend)
        with Engine(store, settings, limits, order=plan.order, progress=progress) as engine:
            if shard is None:
                plan = engine.run_all(plan, grow)
            else:
                engine.run(plan, plan.shard(*shard))
        made = sweep_tables.write(store, plan)
        if conclude is not None:
            conclude(plan, store)
    return Sweep(out, len(plan.trials), made.done, made.failed, made.digest, engine.notes)


def adopt(store: Store, plan: Plan, *, extend: bool = False) -> None:
    """Make the folder this plan's. Raises ConfigError if it holds what was not asked to be kept."""
    if store.has_plan:
        held = store.plan()
        if held.origin == plan.digest:
            return
        if not extend:
            assert store.folder is not None
            raise ConfigError(
                f"{shown_path(store.folder)}: holds {differs(held, plan)}; give another folder,\n"
                "--extend to change its study to this one and keep what both have in common,"
                " or --overwrite"
            )
    store.write_plan(plan)


def differs(held: Plan, plan: Plan) -> str:
    """What a folder holds instead, in words."""
    if held.semantics != plan.semantics:
        return f"results of semantics version {held.semantics}, this program's is {plan.semantics}"
    if held.name != plan.name:
        return f"another study, {held.name!r}, not {plan.name!r}"
    theirs, ours = (p.beside.get("order", {}).get("name", "its scenarios'") for p in (held, plan))
    if theirs != ours:
        return f"{held.name!r} under order {theirs}, not {ours}"
    if held.beside.get("order") != plan.beside.get("order"):
        return f"{held.name!r} under another text of order {ours}"
    for what in plan.purpose:
        if held.purpose.get(what) != plan.purpose[what] and what in held.purpose:
            return (
                f"{held.name!r} of another {what}, {held.purpose[what]}, not {plan.purpose[what]}"
            )
    return f"another version of {held.name!r}, of {len(held.trials)} trials"
