"""The worked swap of docs/architecture.md: three requests, a device of eight blocks of four tokens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import policy
from policy.orders.catalog import OrderSettings, make_order
from policy.plan import Copy, CopyResult, Outcome
from policy.request import Request
from policy.scheduler import Scheduler
from policy.settings import Settings
from policy.systems import SYSTEMS
from runs.recorder import decision_line
from tests.helpers.small import draw

POLICY = Path(policy.__file__).parent
SETTINGS = Settings(
    device_blocks=8,
    host_blocks=8,
    block_size=4,
    watermark=0.0,
    initial_group=2,
    growth_group=1,
    host_increment=0,
    update_every=1,
)
#: Request -> prompt, tokens that it generates, priority, step before which it arrives.
REQUESTS = {"lead": (7, 8, 0, 0), "calm": (9, 9, 2, 0), "urgent": (8, 2, 1, 2)}
#: The plan that parks `calm`.
SWAP_OUT = 2


@contextmanager
def executed(files: list[str]) -> Iterator[None]:
    """Collect the files of policy/ that run, in the order in which they are reached."""

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(POLICY)):
            name = Path(frame.f_code.co_filename).relative_to(POLICY).as_posix()
            if name not in files:
                files.append(name)

    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(None)


def run() -> tuple[list[str], list[str]]:
    """Every plan as a line, and the files that the plan which swaps out went through."""
    order = make_order("priority", draw, OrderSettings())
    scheduler = Scheduler(SETTINGS, SYSTEMS["fastswitch"], order, draw)
    left = {name: tokens for name, (_, tokens, _, _) in REQUESTS.items()}
    lines: list[str] = []
    files: list[str] = []
    step = 0
    while left:
        for name, (prompt, _, priority, arrives) in REQUESTS.items():
            if arrives == step:
                made = Request(name, arrival_ns=step, input_tokens=prompt, priority=priority)
                scheduler.add(made, step)
        with executed(files if step == SWAP_OUT else []):
            plan = scheduler.schedule(step)
        told = json.loads(decision_line(plan, scheduler.step, step, scheduler.engine.levels()))
        lines.append(shown(told, plan.copies))
        ended = tuple(CopyResult(copy.copy_id, True, step) for copy in plan.copies)
        scheduler.update(Outcome(plan.runs, step, step, None, finished(plan, left), ended))
        step += 1
    return lines, files


def finished(plan: Any, left: dict[str, int]) -> tuple[str, ...]:
    """Who has all tokens once the plan has run."""
    for name in plan.num_scheduled_tokens:
        left[name] -= 1
    ended = tuple(name for name, tokens in left.items() if not tokens)
    for name in ended:
        del left[name]
    return ended


def shown(told: dict[str, Any], copies: tuple[Copy, ...]) -> str:
    """`2  decode lead; swap out calm (device 2 -> host 0, 3 blocks); free 2, 5`."""
    parts = []
    if told["prefill"]:
        parts.append("prefill " + " ".join(f"{name} ({count})" for name, count in told["prefill"]))
    if told["decode"]:
        parts.append("decode " + " ".join(told["decode"]))
    for copy in copies:
        runs = ", ".join(f"{length} at {device}:{host}" for device, host, length in copy.runs)
        way = {"d2h": "store", "h2d": "load"}[copy.direction.value]
        parts.append(f"{way} {copy.request_id} ({runs})")
    if told["swap_out"]:
        parts.append("parked " + " ".join(told["swap_out"]))
    return f"{told['step']:2}  {'; '.join(parts)}; free {told['free_device_blocks']}, {told['free_host_blocks']}"
