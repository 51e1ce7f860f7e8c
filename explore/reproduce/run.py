"""`reproduce(...)`: run what is missing of a study, judge the claims, write what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explore.reproduce import data
from explore.reproduce.judge import Verdict, judge_all
from explore.reproduce.overhead import Overhead, measure
from explore.reproduce.study import Found, Study, found_in, study_of
from explore.studies import sweep as sweeps
from explore.studies.engine import NO_LIMITS
from explore.studies.semantics import SEMANTICS
from explore.studies.store import Store
from explore.studies.workers.base import WorkerSettings
from policy.errors import FaultError, InputError
from runs.provenance import commit
from traces.atomic import whole

TRIALS, OVERHEAD = "trials", "overhead.json"


@dataclass(frozen=True)
class Session:
    """A stretch of running: wall-clock seconds, trials made, worker processes (None: one per core), and
    CPU seconds of these."""

    seconds: float
    trials: int
    workers: int | None
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class Reproduction:
    """Everything that tables and figures are made of."""

    full: bool
    parts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    found: Found
    overhead: Overhead | None
    sessions: tuple[Session, ...]
    provenance: dict[str, Any]


def plan(parts: Sequence[str], *, full: bool, values: dict[str, Any] | None = None) -> Study:
    """What there is to run."""
    return study_of(data.points(full=full), parts, values)


def missing(study: Study, out: Path) -> int:
    """How many trials `out` lacks."""
    store = Store(out / TRIALS)
    return sum(not store.has(key) for key in study.plan.keys)


def reproduce(
    study: Study,
    parts: Sequence[str],
    out: Path,
    *,
    full: bool,
    workers: int | None = None,
    progress: Callable[[], None] | None = None,
) -> Reproduction:
    """Run what `out` lacks of a study, and judge the claims of `parts` by all of it.

    A folder of an earlier run is gone on with: what both have in common is kept. Raises ConfigError or
    FaultError; what was finished by then stays.
    """
    made = sweeps.run(
        study.plan,
        out / TRIALS,
        WorkerSettings("local", workers),
        NO_LIMITS,
        extend=True,
        progress=progress,
    )
    store = Store(out / TRIALS)
    if made.failed:
        raise FaultError(_failure(store, study))
    overhead = _overhead(out) if any(c.kind == "overhead" for c in _claims(parts)) else None
    found = found_in(store, study)
    return Reproduction(
        full,
        tuple(parts),
        tuple(judge_all(_claims(parts), found, overhead)),
        found,
        overhead,
        _sessions(store),
        {"commit": commit(), "semantics": SEMANTICS, "trials": len(study.plan.keys)},
    )


def _claims(parts: Sequence[str]) -> list[data.Claim]:
    return [claim for claim in data.claims() if claim.part in parts]


def _failure(store: Store, study: Study) -> str:
    reasons = [why for key in study.plan.keys if (why := store.failure(key)) is not None]
    return (
        f"{len(reasons)} trials failed: {reasons[0]}\n"
        "What was finished is kept; the same command tries the others again."
    )


def _sessions(store: Store) -> tuple[Session, ...]:
    """Those that made something and ended."""
    return tuple(
        Session(one["seconds"], one["trials"], one["workers"], one["cpu_seconds"])
        for one in store.sessions()
        if one["trials"] and "seconds" in one
    )


def _overhead(out: Path) -> Overhead:
    """Measured once for a folder, since time of a machine is not the same twice."""
    held = _held(out / OVERHEAD)
    if held is not None:
        return Overhead(**held)
    found = measure(data.points(full=False))
    with whole(out / OVERHEAD) as part:
        part.write_text(json.dumps(vars(found), indent=1) + "\n", encoding="utf-8")
    return found


def _held(path: Path) -> Any:
    """JSON of an earlier run, None if there is none. Raises InputError for anything else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
