"""What a study asks of every run beyond the metrics of the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from runs.metrics.goodput import Slo
from runs.metrics.summary import summarise
from runs.recording import Recording

Keeps = Literal["metrics", "series", "waits"]


@dataclass(frozen=True)
class Measure:
    """`warm_up_s`: the steady state after so many seconds (`runs.metrics.summary.summarise`). `keeps`:
    also the facts of the run and its series for figures, or those that a warm-up is found from."""

    slo: Slo | None = None
    warm_up_s: float | None = None
    keeps: Keeps = "metrics"

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
        if self.keeps != "metrics":
            asked["keeps"] = self.keeps
        return asked


#: Nothing beyond the metrics of the whole run.
WHOLE_RUN = Measure()
_READ = TypeAdapter(Measure)


def measure_of(asked: Mapping[str, Any]) -> Measure:
    """What `as_json` gave, whatever else stands beside it."""
    return _READ.validate_python(dict(asked))
