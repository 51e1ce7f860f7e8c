"""Conservation laws of the whole scheduler, as one method that raises.

The numbers of the laws are those of docs/architecture.md. `check_integrity` is called after every
step in test mode; `check_counts` is its cheap part, for long runs. An engine brings its own laws
(those of memory: `policy/engines/swap_laws.py`), the desk has its own.
"""

from __future__ import annotations

from policy.scheduler import Scheduler


def check_counts(scheduler: Scheduler) -> None:
    """What costs little. Raises InvariantError naming what is broken."""
    scheduler.engine.check(full=False)
    scheduler.desk.check_counts()


def check_integrity(scheduler: Scheduler) -> None:
    """Every law. Raises InvariantError naming what is broken."""
    scheduler.engine.check(full=True)
    scheduler.desk.check()
