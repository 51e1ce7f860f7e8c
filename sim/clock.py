"""SimPy's environment on an integer clock: one unit is one nanosecond."""

from __future__ import annotations

import simpy


class Clock(simpy.Environment):
    """Time is whole nanoseconds; every delay given to it must be an int."""

    @property
    def now(self) -> int:
        """Nanoseconds since the run began."""
        return self._now  # type: ignore[return-value]
