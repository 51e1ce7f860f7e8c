"""A router asked again: fed what it was told, it must choose what it chose."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from policy.errors import InputError
from policy.routing.base import Router
from policy.routing.view import ReplicaView, RoutedView
from runs.fleet_lines import routed_line, view_of
from sim.replay import Difference, Replayed
from traces.strict import shown


def replay_router(lines: Iterable[str], router: Router, block_tokens: int) -> Replayed:
    """Feed a fresh router the lines of routing.jsonl, up to the first choice that differs. Raises
    InputError for a line that is none of its kinds."""
    router.begin(block_tokens)
    views: Sequence[ReplicaView] = ()
    equal = 0
    for number, line in enumerate(lines, start=1):
        try:
            told = json.loads(line)
            if "replicas" in told:
                views = [view_of(cells) for cells in told["replicas"]]
            elif "route" in told:
                replayed = _again(router, views, told)
                if replayed != line:
                    where = f"line {number} of routing.jsonl"
                    return Replayed(equal, Difference(where, line, replayed))
                equal += 1
            else:
                getattr(router, _TOLD[told["told"]])(told["of"], told["now_ns"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"routing.jsonl:{number}: {shown(repr(error), 200)}") from None
    return Replayed(equal, None)


_TOLD = {"first_token": "first_token", "ended": "ended", "up": "up", "down": "down"}


def _again(router: Router, views: Sequence[ReplicaView], told: dict[str, Any]) -> str:
    *facts, blocks, attempt = told["route"]
    request = RoutedView(*facts)._replace(blocks=tuple(blocks), attempt=attempt)
    choice = router.route(request, views, told["now_ns"])
    if choice.replica is not None:
        router.sent(request, choice.replica, told["now_ns"])
    return routed_line(told["now_ns"], request, choice)
