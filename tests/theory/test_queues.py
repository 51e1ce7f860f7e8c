"""The whole simulator, driven as queues whose answers are known.

One seat, one turn a conversation, first come first served, and a profile in which a microsecond is
one token: the engine is then a single server, and its prompts (or replies) are service times. Means
come from independent replications (`run`), never from pinned digits.

Intervals are Student's t at 99.9 %, since at 95 % one test in twenty would miss; waits of one run
are autocorrelated and the first tenth of each run, begun empty, is left out. Seeds are fixed, so a
test that passes once passes always. That the intervals are narrow enough to mean something is shown
by queues with a tenth more load, which fall outside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from runs.metrics.stats import Ints, percentile
from runs.recording import Recording
from runs.scenario import Scenario, build
from sim.simulate import simulate
from traces.randomness import Streams
from traces.readers.native import write
from traces.workload import Header, Turn, Workload

MEAN_TOKENS = 1000
TOKEN_NS = 1000
SERVICE_NS = MEAN_TOKENS * TOKEN_NS

#: Student's t, two-sided 99.9 %, by degrees of freedom, from standard tables.
T999 = {11: 4.437, 15: 4.073, 19: 3.883}

NO_COST = {
    "step.base": 0.0,
    "step.per_kv_token": 0.0,
    "step.per_sequence": 0.0,
    "step.per_sequence_beyond": 0.0,
    "step.per_prefill_token": 0.0,
    "step.per_prefill_square": 0.0,
    "transfer.per_job": 0.0,
    "transfer.per_call": 0.0,
    "transfer.piece_setup": 0.0,
    "transfer.to_host": 1e15,
    "transfer.to_host_duplex": 1e15,
    "transfer.interference_to_device": 0.0,
    "transfer.interference_to_host": 0.0,
}
BY_PROMPT = {**NO_COST, "step.per_prefill_token": float(TOKEN_NS)}
BY_REPLY = {**NO_COST, "step.per_sequence": float(TOKEN_NS)}


class Queue(NamedTuple):
    """Poisson arrivals at `load` per mean service time, `D` constant or `M` random lengths."""

    law: str
    load: float
    jobs: int
    runs: int
    system: str = "vllm-0.3.3"
    by: str = "prompt"

    def turns(self, run: int) -> list[Turn]:
        """Its jobs, from the streams of this run."""
        streams = Streams(17, run)
        turns, clock = [], 0.0
        for k in range(self.jobs):
            clock += streams.exponential("arrival", "", k) * SERVICE_NS / self.load
            name = f"job{k:06}"
            tokens = self._tokens(streams, k)
            # The first token comes with the prefill, which costs nothing where replies count.
            prompt, reply = (tokens, 1) if self.by == "prompt" else (1, tokens + 1)
            turns.append(Turn(name, name, 1, prompt, reply, arrival_ns=round(clock)))
        return turns

    def _tokens(self, streams: Streams, k: int) -> int:
        """A service time in tokens. Random ones are exponential, rounded up: geometric on whole
        microseconds, with mean 1,000.5 instead of 1,000 and the variance of an exponential of that
        mean less one part in 2,000."""
        if self.law == "D":
            return MEAN_TOKENS
        return math.ceil(MEAN_TOKENS * streams.exponential("length", "", k))

    def scenario(self, path: Path, run: int) -> Scenario:
        return build(
            {
                "workload": {"file": str(path)},
                "system": self.system,
                "order": "fcfs",
                "profile": "a10-llama-3-8b",
                "profile_values": BY_PROMPT if self.by == "prompt" else BY_REPLY,
                "pool": {
                    "device_blocks": 1000,
                    "host_blocks": 1000,
                    "block_size": 1024,
                    "aging": "none",
                },
                "limits": {"max_num_seqs": 1, "max_model_len": 1 << 17},
                "run": run,
            },
            "queue",
        )


class Served(NamedTuple):
    """One replication, in arrival order, all in nanoseconds."""

    arrivals: Ints
    services: Ints
    waits: Ints

    @property
    def settled(self) -> Ints:
        """Waits after the first tenth."""
        return self.waits[self.waits.size // 10 :]


class Interval(NamedTuple):
    """Mean of replications and half the width of its 99.9 % t interval, in mean service times."""

    mean: float
    half: float

    def holds(self, value: float) -> bool:
        return abs(value - self.mean) <= self.half


def interval(values: list[float]) -> Interval:
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(
        float(np.mean(values)) / SERVICE_NS, T999[len(values) - 1] * spread / SERVICE_NS
    )


def played(recording: Recording, turns: list[Turn]) -> Served:
    """What the recording says of each job; its service time is what the workload asked for."""
    table = recording.table("requests", ["request_id", "arrival_ns", "finish_ns"]).to_pydict()
    ends = dict(zip(table["request_id"], table["finish_ns"], strict=True))
    arrivals = np.array([turn.arrival_ns for turn in turns], dtype=np.int64)
    tokens = [max(turn.input_tokens, turn.output_tokens - 1) for turn in turns]
    services = np.array(tokens, dtype=np.int64) * TOKEN_NS
    finishes = np.array([ends[turn.request_id] for turn in turns], dtype=np.int64)
    return Served(arrivals, services, finishes - arrivals - services)


Play = Callable[[Queue], list[Served]]


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """All replications of a queue; each queue is simulated once for all tests."""
    folder = tmp_path_factory.mktemp("queues")
    known: dict[Queue, list[Served]] = {}

    def replications(queue: Queue) -> list[Served]:
        if queue not in known:
            known[queue] = [one(queue, run) for run in range(queue.runs)]
        return known[queue]

    def one(queue: Queue, run: int) -> Served:
        turns = queue.turns(run)
        path = folder / "queue.jsonl"
        write(Workload.of(turns, Header(timing="open")), path)
        return played(simulate(queue.scenario(path, run), check="off"), turns)

    yield replications
    known.clear()


def mean_wait(runs: list[Served]) -> Interval:
    return interval([float(run.settled.mean()) for run in runs])


def mean_time_in_system(runs: list[Served]) -> Interval:
    cut = runs[0].waits.size // 10
    return interval([float((run.waits + run.services)[cut:].mean()) for run in runs])


def p99_wait(runs: list[Served]) -> Interval:
    return interval([percentile(run.settled, 99.0) or 0.0 for run in runs])


# ---------------------------------------------------------------------- exact, job by job


def lindley(arrivals: Ints, services: Ints) -> Ints:
    """Waits of a single first-come-first-served server: W' = max(0, W + S - A)."""
    waits = np.zeros_like(arrivals)
    for k in range(1, arrivals.size):
        left = waits[k - 1] + services[k - 1] - (arrivals[k] - arrivals[k - 1])
        waits[k] = max(0, left)
    return waits


@pytest.mark.parametrize("system", ["vllm-0.3.3", "fastswitch"])
@pytest.mark.parametrize("law", ["D", "M"])
@pytest.mark.parametrize(("by", "jobs"), [("prompt", 1000), ("reply", 40)])
def test_every_wait_is_lindleys_recursion_to_the_nanosecond(
    play: Play, system: str, law: str, by: str, jobs: int
) -> None:
    (served,) = play(Queue(law, 0.9, jobs, 1, system, by))
    assert served.waits.max() > SERVICE_NS  # somebody queued behind two others
    assert served.waits.tolist() == lindley(served.arrivals, served.services).tolist()


def test_runs_are_independent_and_a_run_is_the_same_every_time(play: Play) -> None:
    first, second = play(Queue("M", 0.5, 50, 2))
    again, _ = play(Queue("M", 0.5, 50, 2, by="prompt"))
    assert again.waits.tolist() == first.waits.tolist()
    assert not set(first.arrivals.tolist()) & set(second.arrivals.tolist())


# ---------------------------------------------------------------------- M/D/1

MD1 = {0.5: Queue("D", 0.5, 2000, 12), 0.8: Queue("D", 0.8, 2500, 16)}


def md1_wait(load: float) -> float:
    """Pollaczek and Khinchin: rho / (2 mu (1 - rho)), in service times."""
    return load / (2 * (1 - load))


@pytest.mark.parametrize("load", [0.5, pytest.param(0.8, marks=pytest.mark.full)])
def test_the_mean_wait_of_constant_services_is_that_of_m_d_1(play: Play, load: float) -> None:
    assert mean_wait(play(MD1[load])).holds(md1_wait(load))


def test_fastswitch_is_the_same_m_d_1_queue_though_it_copies_every_context_out(play: Play) -> None:
    assert mean_wait(play(Queue("D", 0.5, 1000, 12, "fastswitch"))).holds(md1_wait(0.5))


@pytest.mark.parametrize("load", [0.5, pytest.param(0.8, marks=pytest.mark.full)])
def test_constant_services_under_a_tenth_more_load_are_told_apart(play: Play, load: float) -> None:
    busier = MD1[load]._replace(load=load * 1.1)
    assert not mean_wait(play(busier)).holds(md1_wait(load))
    assert not mean_wait(play(MD1[load])).holds(md1_wait(load * 1.1))


# ---------------------------------------------------------------------- M/M/1

MM1 = {0.5: Queue("M", 0.5, 1500, 12), 0.8: Queue("M", 0.8, 4000, 20)}
GEOMETRIC_MEAN = 1 / (1 - math.exp(-1 / MEAN_TOKENS)) / MEAN_TOKENS


def mm1(load: float) -> tuple[float, float]:
    """Mean time in system 1 / (mu - lambda) and P99 wait, in nominal service times: a wait is
    longer than t with probability rho exp(-(mu - lambda) t)."""
    gap = 1 / GEOMETRIC_MEAN - load
    return 1 / gap, math.log(100 * load * GEOMETRIC_MEAN) / gap


@pytest.mark.parametrize("load", [0.5, pytest.param(0.8, marks=pytest.mark.full)])
def test_the_mean_time_in_system_of_random_services_is_that_of_m_m_1(
    play: Play, load: float
) -> None:
    assert mean_time_in_system(play(MM1[load])).holds(mm1(load)[0])


@pytest.mark.full
def test_the_p99_wait_of_random_services_is_that_of_m_m_1(play: Play) -> None:
    assert p99_wait(play(MM1[0.8])).holds(mm1(0.8)[1])


@pytest.mark.full
def test_random_services_under_a_tenth_more_load_are_told_apart(play: Play) -> None:
    busier = play(MM1[0.8]._replace(load=0.88))
    mean, p99 = mm1(0.8)
    assert not mean_time_in_system(busier).holds(mean)
    assert not p99_wait(busier).holds(p99)


def test_random_services_wait_twice_as_long_as_constant_ones(play: Play) -> None:
    """The one difference between the laws is their variance."""
    random, constant = mean_wait(play(MM1[0.5])), mean_wait(play(MD1[0.5]))
    assert random.holds(2 * md1_wait(0.5))
    assert not constant.holds(random.mean)
    assert not random.holds(constant.mean)
