"""A composed workload from files, laws and changes, in one fixed order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from policy.errors import ConfigError
from traces.generators.catalog import arrivals_of, priorities_of, think_of
from traces.randomness import Streams
from traces.readers.base import Aids
from traces.readers.catalog import read_workload
from traces.shaping import compose, transform
from traces.workload import Workload
from traces.workload_spec import ArrivalSpec, PriorityShares, ThinkLaw, build_spec, parse_law

_THINKS: tuple[ThinkLaw, ...] = ("human", "agent", "exponential", "none")


@dataclass(frozen=True)
class Recipe:
    """What to compose; None or 0: not asked for. Done in the order of the fields.

    format, aids: of the file of lengths, as `read_workload` takes them.
    gaps: a file, or human, agent, none, exponential or `exponential,mean=25`.
    arrivals: a file, or a law like `gamma,cv=3` at `rate` sessions per second.
    merge: files of other tenants, named by their stems, as `lengths` is.
    """

    lengths: Path
    format: str | None = None
    aids: Aids | None = None
    sample: float | None = None
    gaps: str | None = None
    arrivals: str | None = None
    rate: float | None = None
    shuffle: bool = False
    scale_rate: float | None = None
    window: tuple[float, float] | None = None
    scale_tokens: float | None = None
    cap: int | None = None
    priority: PriorityShares | None = None
    priority_process: str | None = None
    merge: tuple[Path, ...] = ()

    def workload(self, streams: Streams) -> Workload:
        """The composed workload. Raises ConfigError or InputError."""
        made = read_workload(self.lengths, self.format, self.aids)
        if self.sample is not None:
            made = transform.sample(made, self.sample, streams)
        if self.gaps is not None:
            made = self._with_gaps(made, self.gaps, streams)
        if self.arrivals is not None or self.rate is not None:
            made = self._with_arrivals(made, self.arrivals or "poisson", streams)
        if self.shuffle:
            made = transform.shuffle(made, streams)
        if self.scale_rate is not None:
            made = transform.scale_rate(made, self.scale_rate)
        if self.window is not None:
            made = transform.cut_window(made, *self.window)
        if self.scale_tokens is not None:
            made = transform.scale_tokens(made, self.scale_tokens)
        if self.cap is not None:
            made = transform.cap_context(made, self.cap)
        priorities = priorities_of(self.priority)
        if priorities is not None:
            made = compose.with_priorities(made, streams, priorities)
        if self.merge:
            tenants = [made, *(read_workload(path) for path in self.merge)]
            made = transform.merge(tenants, [_stem(path) for path in (self.lengths, *self.merge)])
        if self.priority_process is not None:
            made = Workload(
                replace(made.header, priority_process=self.priority_process), made.source
            )
        return made

    @staticmethod
    def _with_gaps(made: Workload, gaps: str, streams: Streams) -> Workload:
        law = parse_law(gaps)
        name, mean = law.pop("law"), law.pop("mean", 10.0)
        for known in _THINKS:
            if name == known:
                if law or not isinstance(mean, (int, float)) or not 0 <= mean < 1e9:
                    raise ConfigError(f"--gaps: {gaps[:60]!r} must be like exponential,mean=25")
                return compose.with_gaps(made, streams, think_of(known, float(mean)))
        return compose.with_gaps_of(made, streams, read_workload(Path(gaps)))

    def _with_arrivals(self, made: Workload, arrivals: str, streams: Streams) -> Workload:
        if Path(arrivals).exists():
            if self.rate is not None:
                raise ConfigError("--rate: arrivals from a file have their own; use --scale-rate")
            return compose.with_arrivals_of(made, streams, read_workload(Path(arrivals)))
        if self.rate is None:
            raise ConfigError(
                f"--arrivals: {arrivals[:60]!r} is no file; a law needs --rate, sessions per second"
            )
        spec = build_spec(
            {"file": str(self.lengths), "rate": self.rate, "arrivals": parse_law(arrivals)}
        )
        return compose.with_arrivals(
            made, streams, arrivals_of(spec.arrivals or ArrivalSpec(), self.rate)
        )


def _stem(path: Path) -> str:
    """A tenant's name."""
    return path.name.partition(".")[0] or path.name
