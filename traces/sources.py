"""From a scenario's `workload` section to turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from policy.errors import ConfigError
from traces.generators.catalog import arrivals_of, make_generator, priorities_of, think_of
from traces.randomness import Streams
from traces.readers.catalog import read_workload
from traces.shaping.compose import begins, with_priorities, with_times
from traces.shaping.resample import resampled
from traces.strict import shown_path
from traces.workload import Turn, Workload
from traces.workload_spec import ArrivalSpec, WorkloadSpec


def open_workload(spec: WorkloadSpec, streams: Streams) -> Workload:
    """The turns a scenario serves. Raises ConfigError or InputError."""
    if spec.users is not None:
        return _of_users(spec, streams)
    if spec.file is None:
        return make_generator(spec).workload(streams)
    workload = read_workload(Path(spec.file), spec.format, spec.aids())
    _refuse_times_of_open(spec, workload)
    arrivals = think = None
    if spec.rate is not None:
        arrivals = arrivals_of(spec.arrivals or ArrivalSpec(), spec.rate)
    if spec.think is not None:
        think = think_of(spec.think, spec.think_mean_s)
    begins_itself = spec.concurrency is not None
    workload = with_times(workload, streams, arrivals, think, begins_itself=begins_itself)
    if spec.resample:
        workload = resampled(workload, streams)
    priorities = priorities_of(spec.priority)
    if priorities is not None:
        workload = with_priorities(workload, streams, priorities)
    if spec.priority_process is not None:
        header = replace(workload.header, priority_process=spec.priority_process)
        workload = Workload(header, workload.source)
    return workload


def _of_users(spec: WorkloadSpec, streams: Streams) -> Workload:
    """Sessions whose beginnings are left to their users. Raises ConfigError for a trace that is open."""
    given = {"users": None, "rate": 1.0 if spec.file is None else None, "concurrency": None}
    if spec.file is not None:
        given["concurrency"] = spec.users  # sessions need no arrival
    workload = open_workload(spec.model_copy(update=given), streams)
    if workload.header.timing == "open":
        raise ConfigError(
            f"workload.users: {shown_path(Path(str(spec.file)))} has arrivals of its own, which users"
            " would not keep to"
        )

    def turns() -> Iterator[Turn]:
        for turn in workload:
            yield replace(turn, arrival_ns=None) if begins(turn) else turn

    return Workload(workload.header, turns, workload.left_out)


def _refuse_times_of_open(spec: WorkloadSpec, workload: Workload) -> None:
    """Raise ConfigError for a law of times where every turn has an arrival of its own."""
    if workload.header.timing != "open":
        return
    for name in ("rate", "think"):
        if getattr(spec, name) is not None:
            raise ConfigError(
                f"workload.{name}: {shown_path(Path(str(spec.file)))} has arrivals of its own, which"
                " it would not change; take it out, or give others with fastswitch trace compose"
            )


def refuse_times(spec: WorkloadSpec) -> None:
    """Raise ConfigError for a law of arrivals or of think times where the workload's file lacks none:
    it would change nothing. Reads the file as far as the first row that lacks them."""
    if spec.file is None or (spec.rate is None and spec.think is None):
        return
    workload = read_workload(Path(spec.file), spec.format, spec.aids())
    _refuse_times_of_open(spec, workload)
    unused = {name for name in ("rate", "think") if getattr(spec, name) is not None}
    for turn in workload:
        if turn.arrival_ns is turn.think_ns is turn.gap_ns is None:
            unused.discard("rate" if begins(turn) else "think")
            if not unused:
                return
    raise ConfigError(
        f"workload.{min(unused)}: {shown_path(Path(spec.file))} lacks no such times, so it would change"
        " nothing; take it out, or give others with fastswitch trace compose"
    )
