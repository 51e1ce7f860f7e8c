"""What both machines behind the door have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sized
from itertools import islice

from policy.request import RequestState
from policy.scheduler import Scheduler
from traces.workload import Header, Workload

#: Of the workload that a served session becomes.
HEADER = Header(source="clients of fastswitch serve", timing="open")
#: Turns whose replies give the law of lengths.
_LENGTHS = 1000


def lengths_of(workload: Workload) -> list[int]:
    """Lengths of the replies of a workload's first turns: the law of replies that nobody writes."""
    return [turn.output_tokens for turn in islice(workload, _LENGTHS) if turn.output_tokens]


def gauges(scheduler: Scheduler, in_flight: Sized) -> dict[str, float]:
    """The engine's state now, asked from another thread: the numbers may be of two steps."""
    states: Counter[RequestState] = Counter()
    for _ in range(3):
        try:
            states = Counter(request.state for request in list(scheduler.desk.live.values()))
            break
        except RuntimeError:  # changed while it was read
            continue
    settings = scheduler.settings
    device, host = scheduler.engine.levels()
    swapped, loading = states[RequestState.SWAPPED], states[RequestState.LOADING]
    waiting = states[RequestState.WAITING]
    return {
        "num_requests_running": states[RequestState.RUNNING],
        "num_requests_waiting": waiting + swapped + loading,
        "num_requests_swapped": swapped,
        "kv_cache_usage_perc": 1 - device / settings.device_blocks,
        "gpu_cache_usage_perc": 1 - device / settings.device_blocks,
        "cpu_cache_usage_perc": 1 - host / settings.host_blocks if settings.host_blocks else 0.0,
        "fastswitch:requests_swapped": swapped,
        "fastswitch:requests_loading": loading,
        "fastswitch:copies_in_flight": len(in_flight),
    }
