"""Many simulations on the cores there are; results in the order asked for, whoever finishes first."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from explore.studies.measure import WHOLE_RUN, Measure
from explore.studies.series import series_of, waits_of
from policy.errors import FastSwitchError, FaultError
from runs.scenario import Scenario, build
from runs.user_order import UserOrder, user_order
from sim.simulate import simulate


@dataclass(frozen=True)
class Job:
    """One run: a scenario as plain data, and whether its series for figures are wanted.

    `order`: the user's own, checked by whoever asked; as text if it is to be found in another process.
    `with_waits`: in the series, what a warm-up is found from.
    """

    scenario: dict[str, Any]
    with_timeline: bool = False
    order: UserOrder | str | None = None
    measure: Measure = WHOLE_RUN
    with_waits: bool = False


def run_job(job: Job) -> dict[str, Any]:
    """Simulate; facts and metrics of the run, quantiles for figures, no recording."""
    own = None if job.order is None else user_order(job.order, is_checked=True)
    recording = simulate(build(job.scenario, "job"), order=own)
    result = dict(recording.summary)
    result["metrics"] = job.measure.metrics(recording)
    result["series"] = series_of(recording, with_timeline=job.with_timeline)
    if job.with_waits:
        result["series"]["waits"] = waits_of(recording)
    return result


def run_jobs(
    jobs: Sequence[Job], workers: int | None = None, progress: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """Results of all jobs, in order. A failed one raises its error; the others are given up.

    `workers` None: one per core. One worker runs in this process.
    """
    count = min(len(jobs), workers or os.cpu_count() or 1)
    if count <= 1:
        results = []
        for job in jobs:
            results.append(run_job(job))
            if progress is not None:
                progress()
        return results
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        futures = [pool.submit(run_job, job) for job in jobs]
        return _collect(pool, futures, progress)


#: Workers are new processes, and a new process reads the main script again.
_GUARD = "In a script, call it below `if __name__ == '__main__':`, or with workers=1."


def _collect(
    pool: ProcessPoolExecutor,
    futures: list[Future[dict[str, Any]]],
    progress: Callable[[], None] | None,
) -> list[dict[str, Any]]:
    try:
        for future in as_completed(futures):
            future.result()
            if progress is not None:
                progress()
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, (FastSwitchError, KeyboardInterrupt)):
            raise
        raise FaultError(f"a worker died: {error}\n{_GUARD}") from error
    return [future.result() for future in futures]


def job_for(
    scenario: Scenario,
    system: str,
    run: int,
    *,
    with_timeline: bool = False,
    order: UserOrder | None = None,
    measure: Measure = WHOLE_RUN,
    with_waits: bool = False,
) -> Job:
    """The scenario under another system and run number."""
    chosen = scenario.with_values({"system": system, "run": run})
    own = None if order is None else order.text or order
    data = chosen.model_dump(mode="json", exclude_unset=True)
    return Job(data, with_timeline, own, measure, with_waits)
