"""Where the steady state begins: MSER-5 on the mean over replications, one cut for all systems.

MSER-5 (White 1997; Spratt 1998) makes means of five observations and cuts where the standard error of
what is left is smallest. The observations are times to first token in order of arrival. They are
averaged over replications first (Welch): the noise of a single run sends the cut anywhere. The cut is
a time of arrival, the latest that any system asks for, and holds for every system and run. It is
refused in the second half, where too little is left to judge by.

Whole numbers throughout, so that the cut is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policy.errors import ConfigError

BATCH = 5
#: Batch means that are always left, so that the smallest error is not that of one number.
LEFT = 5
#: Replications that the cut is found from.
PILOTS = 10
#: Fewest batch means in which a warm-up is looked for.
MIN_BATCHES = 4 * LEFT
NS = 1_000_000_000


@dataclass(frozen=True)
class Cut:
    """Batches cut off, of how many; `errors`: the statistic for every cut that was looked at."""

    batches: int
    of: int
    errors: tuple[float, ...]

    @property
    def is_trusted(self) -> bool:
        """Whether it is in the first half."""
        return 2 * self.batches < self.of


def mser5(values: Sequence[int]) -> Cut:
    """The cut of a series of whole numbers. Raises ValueError if it is too short."""
    count = len(values) // BATCH
    if count < MIN_BATCHES:
        raise ValueError(f"{len(values)} observations, at least {MIN_BATCHES * BATCH} are needed")
    sums = [sum(values[i * BATCH : (i + 1) * BATCH]) for i in range(count)]
    total, squares = sum(sums), sum(one * one for one in sums)
    errors = []
    for cut in range(count - LEFT + 1):
        left = count - cut
        errors.append((left * squares - total * total) / left**3)
        total -= sums[cut]
        squares -= sums[cut] * sums[cut]
    return Cut(errors.index(min(errors)), count, tuple(errors))


@dataclass(frozen=True)
class Waits:
    """Of one run, in order of arrival: when each finished turn came and how long it waited for its
    first token, in nanoseconds."""

    arrival_ns: Sequence[int]
    ttft_ns: Sequence[int]


@dataclass(frozen=True)
class Trace:
    """What was cut, for a figure: batch means over all runs, in seconds."""

    arrival_s: tuple[float, ...]
    ttft_s: tuple[float, ...]
    cut: Cut
    cut_s: float


@dataclass(frozen=True)
class WarmUp:
    """The cut that holds for all, and what each system asked for."""

    cut_s: float
    traces: dict[str, Trace]
    runs: int


def find(waits: Mapping[str, Sequence[Waits]]) -> WarmUp:
    """The warm-up of systems, from runs of each. Raises ConfigError where no steady state is seen."""
    traces = {system: _trace(system, runs) for system, runs in waits.items()}
    runs = min(map(len, waits.values()))
    return WarmUp(max(trace.cut_s for trace in traces.values()), traces, runs)


def _trace(system: str, runs: Sequence[Waits]) -> Trace:
    length = min(len(run.ttft_ns) for run in runs)
    sums = [sum(row) for row in zip(*(run.ttft_ns[:length] for run in runs), strict=True)]
    came = [sum(row) for row in zip(*(run.arrival_ns[:length] for run in runs), strict=True)]
    try:
        cut = mser5(sums)
    except ValueError as error:
        raise ConfigError(f"steady state: {system}: {error}; longer runs have more turns") from None
    if not cut.is_trusted:
        raise ConfigError(
            f"steady state: {system}: MSER-5 would cut {cut.batches} of {cut.of} batches of {BATCH}"
            " turns, so none is seen.\nMake the runs longer, lower the load, or ask for a"
            " terminating study."
        )
    # the first run in which so many turns have come last decides
    after = 0 if not cut.batches else max(r.arrival_ns[cut.batches * BATCH - 1] for r in runs)
    return Trace(_means(came, len(runs)), _means(sums, len(runs)), cut, _seconds_above(after))


def _means(sums: Sequence[int], runs: int) -> tuple[float, ...]:
    scale = BATCH * runs * NS
    return tuple(
        round(sum(sums[i : i + BATCH]) / scale, 6)
        for i in range(0, len(sums) - len(sums) % BATCH, BATCH)
    )


def _seconds_above(time_ns: int) -> float:
    """Rounded up to a millisecond: what came by then is cut."""
    return -(-time_ns // 1_000_000) / 1000
