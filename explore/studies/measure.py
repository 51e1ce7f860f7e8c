"""What a study asks of every run beyond the metrics of the whole of it: an SLO, a steady state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runs.metrics.goodput import Slo
from runs.metrics.summary import summarise
from runs.recording import Recording


@dataclass(frozen=True)
class Measure:
    """`warm_up_s`: the steady state after so many seconds (`runs.metrics.summary.summarise`)."""

    slo: Slo | None = None
    warm_up_s: float | None = None

    def metrics(self, recording: Recording) -> dict[str, Any]:
        """Metrics of a run; its own if nothing else is asked."""
        if self.slo is None and self.warm_up_s is None:
            found: dict[str, Any] = recording.summary["metrics"]
            return found
        return summarise(recording, self.slo, self.warm_up_s)

    def as_json(self) -> dict[str, Any]:
        """What is asked; nothing of what is not."""
        asked: dict[str, Any] = {}
        if self.slo is not None:
            asked["slo"] = self.slo.model_dump(mode="json", exclude_none=True)
        if self.warm_up_s is not None:
            asked["warm_up_s"] = float(self.warm_up_s)
        return asked


#: Nothing beyond the metrics of the whole run.
WHOLE_RUN = Measure()


def measure_of(asked: Mapping[str, Any]) -> Measure:
    """What `as_json` gave."""
    slo = asked.get("slo")
    return Measure(None if slo is None else Slo(**slo), asked.get("warm_up_s"))
