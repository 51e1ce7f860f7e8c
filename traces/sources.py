"""From a scenario's `workload` section to turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from traces.generators.catalog import arrivals_of, make_generator, priorities_of, think_of
from traces.randomness import Streams
from traces.readers.catalog import read_workload
from traces.shaping.compose import with_priorities, with_times
from traces.workload import Workload
from traces.workload_spec import ArrivalSpec, WorkloadSpec


def open_workload(spec: WorkloadSpec, streams: Streams) -> Workload:
    """The turns a scenario serves. Raises ConfigError or InputError."""
    if spec.file is None:
        return make_generator(spec).workload(streams)
    workload = read_workload(Path(spec.file), spec.format, spec.aids())
    arrivals = think = None
    if spec.rate is not None:
        arrivals = arrivals_of(spec.arrivals or ArrivalSpec(), spec.rate)
    if spec.think is not None:
        think = think_of(spec.think, spec.think_mean_s)
    workload = with_times(workload, streams, arrivals, think)
    priorities = priorities_of(spec.priority)
    if priorities is not None:
        workload = with_priorities(workload, streams, priorities)
    if spec.priority_process is not None:
        header = replace(workload.header, priority_process=spec.priority_process)
        workload = Workload(header, workload.source)
    return workload
