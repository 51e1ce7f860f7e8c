"""`search(...)`: try the points of a space, keep what they gave, and say which serves best."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from explore.search import answer
from explore.search.answer import Answer
from explore.search.points import points_of
from explore.search.recipes import limits_of
from explore.search.spec import Search, load
from explore.studies.engine import Grow, Limits
from explore.studies.plan import Plan, expand, refuse_unread
from explore.studies.semantics import canonical, digest
from explore.studies.store import Store
from explore.studies.sweep import Sweep
from explore.studies.sweep import run as run_sweep
from explore.studies.workers.base import WorkerSettings
from policy.errors import ConfigError
from policy.systems import System
from runs.user_order import OrderLike, UserOrder, user_order

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Found:
    """A search's folder after a run, and its answer."""

    answer: Answer
    sweep: Sweep

    @property
    def folder(self) -> Path:
        """Where everything is."""
        return self.sweep.folder

    @property
    def points(self) -> pd.DataFrame:
        """One row per point: values, objectives with half of their intervals, whether it may be an
        answer, and its place."""
        from explore.studies.frames import of_csv  # noqa: PLC0415  pandas is slow to import

        return of_csv(self.folder / answer.POINTS)


def search(
    search_file: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    values: dict[str, Any] | None = None,
    extend: bool = False,
    overwrite: bool = False,
    engine: Literal["local", "dask", "ray"] = "local",
    workers: int | None = None,
    address: str | None = None,
    start_cluster: bool = False,
    seconds: float | None = None,
    memory_mb: int | None = None,
    progress: Callable[[], None] | None = None,
    order: OrderLike | None = None,
) -> Found:
    """Search a space (a file, a shipped name, or the same as a mapping); everything goes to the
    folder `out`, and the other arguments are those of `sweep`. The answer does not depend on
    workers, engine or crashes. Raises ConfigError, InputError or FaultError; what was finished by
    then is kept.
    """
    found = load(search_file)
    own = None if order is None else user_order(order)
    study = Study(found, values, own)
    settings = WorkerSettings(engine, workers, address, start_cluster)
    limits = Limits(seconds, memory_mb)
    return study.run(
        Path(out), settings, limits, extend=extend, overwrite=overwrite, progress=progress
    )


class Study:
    """A search about to run. Raises ConfigError or InputError for what cannot be run."""

    def __init__(
        self, search: Search, values: dict[str, Any] | None, order: UserOrder | None
    ) -> None:
        self.search = search
        self._values = values
        self._order = order
        self._limits = limits_of(search.spec)
        self._purpose = {"search": digest(canonical(search.spec.model_dump(mode="json")))[:12]}
        self._asker: Any = self._made_asker() if search.spec.how == "optuna" else None
        self._told = 0  # points of which Optuna knows what they gave
        self._systems: dict[str, System] = {}  # of all its points
        self.plan = self._first()

    def run(
        self,
        out: Path,
        settings: WorkerSettings,
        limits: Limits,
        *,
        extend: bool = False,
        overwrite: bool = False,
        progress: Callable[[], None] | None = None,
    ) -> Found:
        """Run what is missing, and answer."""
        answers: list[Answer] = []

        def conclude(plan: Plan, store: Store) -> None:
            answers.append(answer.answer(self.search, self._points(plan, store), self._limits))
            answer.write(answers[0], store)

        grow: Grow | None = self._grow if self._asker is not None else None
        swept = run_sweep(
            self.plan,
            out,
            settings,
            limits,
            extend=extend,
            overwrite=overwrite,
            progress=progress,
            grow=grow,
            conclude=conclude,
        )
        return Found(answers[0], swept)

    def _made_asker(self) -> Any:
        spec = self.search.spec
        try:
            asking = importlib.import_module("explore.search.asking")
        except ModuleNotFoundError as error:
            if error.name != "optuna":
                raise
            raise ConfigError(
                "method optuna: optuna is not installed; the extra [search] brings it"
            ) from None
        # other versions may ask for other points
        self._purpose["optuna"] = asking.VERSION
        return asking.Asker(spec.space, self.search.objectives, spec.budget, spec.seed)

    def _first(self) -> Plan:
        source = self.search.sweep() if self._asker is None else self.search.choices()
        if source is not None:
            plan = expand(source, self._values, self._order)
            refuse_unread(plan, source)
            if self._asker is None:
                return replace(plan, purpose=self._purpose)
        return self._more(None)

    def _grow(self, plan: Plan, store: Store) -> Plan | None:
        """Tell what the last batch gave and ask for the next."""
        known = len({trial.point for trial in plan.trials})
        last = tuple(trial for trial in plan.trials if trial.point >= self._told)
        self._asker.tell(self._points(replace(plan, trials=last), store))
        self._told = known
        return self._more(plan) if known < self.search.spec.budget else None

    def _more(self, plan: Plan | None) -> Plan:
        """The plan with a batch of new points; its points stay as they are."""
        spec = self.search.spec
        known = 0 if plan is None else len({trial.point for trial in plan.trials})
        self._told = known
        asked = self._asker.ask(min(spec.batch, spec.budget - known))
        sweep = self.search.sweep(asked)
        new = expand(sweep, self._values, self._order, known=self._systems)
        trials = tuple(replace(trial, point=known + trial.point) for trial in new.trials)
        old = () if plan is None else plan.trials
        return replace(new, trials=old + trials, purpose=self._purpose)

    def _points(self, plan: Plan, store: Store) -> list[Any]:
        search = self.search
        return points_of(plan, store, search.objectives, self._limits, tuple(search.spec.space))
