"""From a scenario's `workload` section to turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from policy.errors import ConfigError
from traces.compose import with_times
from traces.draw import Streams
from traces.generators.chat import Chat
from traces.readers.catalog import read_workload
from traces.scenario import WorkloadSpec
from traces.workload import Workload


def open_workload(spec: WorkloadSpec, streams: Streams) -> Workload:
    """The turns a scenario serves. Raises ConfigError or InputError."""
    if spec.file is not None:
        if spec.think == "exponential" or spec.conversations or spec.context_cap:
            raise ConfigError(
                "workload: a file takes rate and think (human, none);"
                " conversations, context_cap and exponential think are the generator's"
            )
        return with_times(
            read_workload(Path(spec.file), spec.format), streams, spec.rate, spec.think
        )
    assert spec.conversations is not None and spec.rate is not None
    chat = Chat(conversations=spec.conversations, rate=spec.rate, think_mean_s=spec.think_mean_s)
    if spec.think is not None:
        chat = replace(chat, think=spec.think)
    if spec.context_cap is not None:
        chat = replace(chat, context_cap=spec.context_cap)
    return chat.workload(streams)
