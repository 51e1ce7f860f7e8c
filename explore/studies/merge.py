"""Shards become one folder, and a folder says how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from explore.studies import sweep_tables
from explore.studies.plan import Plan
from explore.studies.semantics import SEMANTICS
from explore.studies.store import Corrupt, Store, claimed, is_claimed
from explore.studies.sweep import Sweep, adopt
from policy.errors import ConfigError, InvariantError
from traces.strict import shown_path


def merge(sources: Sequence[Path], out: Path) -> Sweep:
    """Put the results of `sources`, folders of one and the same sweep, together in `out`.

    Sources are only read. Raises InputError for a folder without a plan, ConfigError for another
    sweep's, InvariantError where two folders have different results of one trial.
    """
    plan = _common_plan(sources)
    notes: list[str] = []
    with claimed(out) as store:
        adopt(store, plan)
        with store.transaction():
            for source in sources:
                _take(Store(source), store, plan, notes)
        made = sweep_tables.write(store, plan)
    return Sweep(out, len(plan.trials), made.done, made.failed, made.digest, notes)


def _common_plan(sources: Sequence[Path]) -> Plan:
    plans = [Store(source).plan() for source in sources]
    for source, plan in zip(sources, plans, strict=True):
        if plan.digest != plans[0].digest:
            raise ConfigError(
                f"{shown_path(source)}: holds another sweep ({plan.name!r},"
                f" {len(plan.trials)} trials) than {shown_path(sources[0])}"
            )
    return plans[0]


def _take(source: Store, store: Store, plan: Plan, notes: list[str]) -> None:
    for key in plan.keys:
        held = _sound(store, key, notes)
        found = _sound(source, key, notes)
        if found is None:
            why = source.failure(key)
            if held is None and why is not None:
                store.note_failure(key, why)
        elif held is None:
            store.keep(key, found)
        elif held != found:
            raise InvariantError(
                f"{source.shown}: another result of trial {key[:12]} than in"
                f" {store.shown}: the same trial must give the same numbers"
            )


def _sound(store: Store, key: str, notes: list[str]) -> dict[str, Any] | None:
    try:
        return store.result(key)
    except Corrupt as error:
        note = f"{store.shown}: result {key[:12]} is corrupt ({error}), not taken"
        if note not in notes:
            notes.append(note)
        return None


def status(folder: Path) -> dict[str, Any]:
    """How far a study is. Raises InputError if the folder holds none."""
    store = Store(folder)
    plan = store.plan()
    found = sweep_tables.read(store, plan)
    done, failed, corrupt = map(len, (found.results, found.failures, found.corrupt))
    sessions = store.sessions()
    return {
        "name": plan.name,
        "plan": plan.digest,
        "semantics": plan.semantics,
        "is_current": plan.semantics == SEMANTICS,
        "rows": len(plan.trials),
        "trials": len(plan.keys),
        "done": done,
        "failed": failed,
        "corrupt": corrupt,
        "missing": len(plan.keys) - done - failed - corrupt,
        "is_running": is_claimed(folder),
        "sessions": len(sessions),
        "last": sessions[-1]["last"] if sessions else None,
        "digest": sweep_tables.made(plan, found).digest,
    }
