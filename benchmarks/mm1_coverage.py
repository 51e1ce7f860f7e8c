"""Do nominal 95 % intervals hold the truth? The M/M/1 queue, whose mean wait is known, says how often.

    python -m benchmarks.mm1_coverage [--studies 1000] [--customers 20000]

A study is what `compare` does: replications from an empty queue, a warm-up found by MSER-5 on their
mean, one cut for all, a t interval over the means of the replications. Warm-up, interval and the rule
that adds replications are the product's own (explore.studies, runs.metrics.stats). Many independent
studies are made; coverage is the share of them whose interval holds rho / (mu - lambda). The last two
rows are what is *not* done: no warm-up, and an interval from the waits of one run as if each were
independent of the one before. Prints a table and a line of JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click
import numpy as np
import numpy.typing as npt

from cli.progress import progress
from explore.studies import precision, warm_up
from policy.errors import ConfigError
from runs.metrics.stats import mean_and_half_width

Ints = npt.NDArray[np.int64]
NS = 1_000_000_000


@dataclass(frozen=True)
class Queue:
    """M/M/1 with a service rate of one a second. `customers` of every run, from an empty queue."""

    rho: float
    customers: int

    @property
    def mean_wait_s(self) -> float:
        """Before service, in the steady state."""
        return self.rho / (1 - self.rho)

    def runs(self, number: int, seed: tuple[int, ...]) -> tuple[Ints, Ints]:
        """Arrivals and waits in nanoseconds, a row for each run (Lindley's recursion)."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
        gaps = rng.exponential(1 / self.rho, (self.customers, number))
        services = rng.exponential(1.0, (self.customers, number))
        waits = np.zeros_like(gaps)
        for i in range(1, self.customers):
            np.maximum(waits[i - 1] + services[i - 1] - gaps[i], 0, out=waits[i])
        arrivals = np.cumsum(gaps, axis=0)
        return (
            np.round(arrivals * NS).astype(np.int64).T.copy(),
            np.round(waits * NS).astype(np.int64).T.copy(),
        )


def cut_of(arrivals: Ints, waits: Ints) -> float:
    """Seconds of warm-up, from the first runs as `compare` finds it. Raises ConfigError."""
    pilots = zip(arrivals[: warm_up.PILOTS].tolist(), waits[: warm_up.PILOTS].tolist(), strict=True)
    return warm_up.find({"mm1": [warm_up.Waits(a, w) for a, w in pilots]}).cut_s


def means(arrivals: Ints, waits: Ints, cut_s: float) -> list[float]:
    """Mean wait of every run after the cut, in seconds."""
    kept = arrivals > round(cut_s * NS)
    return [float(w[k].mean()) / NS for w, k in zip(waits, kept, strict=True)]


@dataclass
class Row:
    """What a way of making intervals came to. `refused`: studies in which no steady state was seen."""

    way: str
    studies: int
    covered: int
    refused: int
    half: float
    bias: float
    runs: float

    @property
    def coverage(self) -> float:
        """Share of the intervals that hold the truth."""
        return self.covered / self.studies if self.studies else math.nan


class Tally:
    """Intervals of one way, as they come."""

    def __init__(self, way: str, truth: float) -> None:
        self.way, self.truth = way, truth
        self.means: list[float] = []
        self.halves: list[float] = []
        self.counts: list[int] = []
        self.refused = 0

    def add(self, values: list[float]) -> None:
        """A study's replications; none: no steady state was seen."""
        if not values:
            self.refused += 1
            return
        mean, half = mean_and_half_width(values)
        assert half is not None
        self.interval(mean, half, len(values))

    def interval(self, mean: float, half: float, count: int) -> None:
        self.means.append(mean)
        self.halves.append(half)
        self.counts.append(count)

    def row(self) -> Row:
        """All of them together; half widths and bias beside the truth."""
        studies = len(self.means)
        covered = sum(
            abs(mean - self.truth) <= half
            for mean, half in zip(self.means, self.halves, strict=True)
        )
        return Row(
            self.way,
            studies,
            covered,
            self.refused,
            math.fsum(self.halves) / studies / self.truth,
            math.fsum(self.means) / studies / self.truth - 1,
            sum(self.counts) / studies,
        )


def fixed(queue: Queue, counts: tuple[int, ...], studies: int, seed: int) -> Iterator[Row]:
    """Studies of so many replications each, and of the same runs without what makes them right."""
    tallies = {count: Tally(f"{count} replications", queue.mean_wait_s) for count in counts}
    cold = Tally(f"{max(counts)} replications, no warm-up", queue.mean_wait_s)
    naive = Tally("one run, every wait on its own", queue.mean_wait_s)
    with progress(studies, "studies") as advance:
        for study in range(studies):
            arrivals, waits = queue.runs(max(*counts, warm_up.PILOTS), (seed, study))
            cold.add(means(arrivals, waits, -1.0)[: max(counts)])
            one = waits[0] / NS
            half = 1.96 * float(one.std()) / math.sqrt(one.size)
            naive.interval(float(one.mean()), half, 1)
            try:
                found = means(arrivals, waits, cut_of(arrivals, waits))
            except ConfigError:
                found = []
            for count, tally in tallies.items():
                tally.add(found[:count])
            advance()
    for tally in (*tallies.values(), cold, naive):
        yield tally.row()


def until_precise(queue: Queue, studies: int, seed: int) -> Row:
    """Studies to which replications are added until the half width is 5 % of the mean."""
    tally = Tally("until precise (5 %)", queue.mean_wait_s)
    with progress(studies, "studies") as advance:
        for study in range(studies):
            arrivals, waits = queue.runs(precision.MOST, (seed, study))
            try:
                tally.add(_precise(means(arrivals, waits, cut_of(arrivals, waits))))
            except ConfigError:
                tally.add([])
            advance()
    return tally.row()


def _precise(values: list[float]) -> list[float]:
    """As many of these replications as the product's rule makes."""
    count, wanted = 0, precision.FIRST
    while wanted > count:
        count = wanted
        # a mean, so that its target is 5 %
        runs = [{"metrics": {"throughput_tok_s": value}} for value in values[:count]]
        wanted = precision.next_runs({"mm1": runs})
    return values[:count]


@click.command()
@click.option("--rho", default=0.8, show_default=True)
@click.option("--customers", default=20_000, show_default=True)
@click.option("--studies", default=1000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(*, rho: float, customers: int, studies: int, seed: int) -> None:
    queue = Queue(rho, customers)
    rows = [*fixed(queue, (3, 5, 10, 20), studies, seed), until_precise(queue, studies, seed + 1)]
    print(f"M/M/1, rho {rho:g}, mean wait {queue.mean_wait_s:g} s, {customers} customers a run")
    print(
        f"{'intervals from':<36} {'coverage':>8} {'half width':>10} {'bias':>7} {'runs':>5} {'refused':>7}"
    )
    for row in rows:
        print(
            f"{row.way:<36} {row.coverage:>8.3f} {row.half:>10.1%} {row.bias:>+7.2%}"
            f" {row.runs:>5.1f} {row.refused:>7}"
        )
    told = [{**asdict(row), "coverage": round(row.coverage, 4)} for row in rows]
    print(
        json.dumps({"benchmark": "mm1_coverage", "rho": rho, "customers": customers, "rows": told})
    )


if __name__ == "__main__":
    main()
