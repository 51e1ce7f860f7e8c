"""Every step and copy of a real run through the cost model: how far each is off, taken alone.

Nothing is decided again: the step's own batch, contexts and prompts go to `sim.costs`, with the copies
that were under way beside it, a copy's blocks and runs likewise. What is left over here is the cost model's error; what a whole simulation is off by
beyond it comes from decisions that fell otherwise, and so from queueing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from calibrate.profile import Profile
from policy.plan import Copy, Direction
from policy.systems import System
from runs.metrics.columns import columns_of
from runs.recording import Recording
from sim.costs import CopyCosts, StepCosts, step_costs

Ints = npt.NDArray[np.int64]

#: An engine that goes straight on takes less than this share of a step to begin the next; one that took
#: longer had been waiting.
_STRAIGHT_ON = 0.25
KINDS = ("decode", "prefill", "mixed", "copy")


class Compared(NamedTuple):
    """Steps or copies of one kind. `load`: batch, prompt tokens, or blocks."""

    kind: str
    load: Ints
    measured_ns: Ints
    predicted_ns: Ints


@dataclass(frozen=True)
class CostErrors:
    """How far single predictions are off. `bias`: all predicted times over all measured ones, less
    one; `mean`, `p50`, `p95`: of |predicted / measured - 1|. `share`: of the run's time."""

    kind: str
    count: int
    bias: float
    mean: float
    p50: float
    p95: float
    share: float


def compare(recorded: Recording, profile: Profile, system: System) -> list[Compared]:
    """Decode steps, prefill steps, mixed ones, and copies that had the link to themselves."""
    steps = columns_of(recorded, "steps")
    contexts = Contexts(recorded)
    copy_costs = CopyCosts(profile, system, int(recorded.summary["block_size"]))
    beside = _Beside(recorded, copy_costs)
    found = []
    for kind, rows in (
        ("decode", np.flatnonzero((steps["batch"] > 0) & (steps["prefill_tokens"] == 0))),
        ("prefill", np.flatnonzero((steps["batch"] == 0) & (steps["prefill_tokens"] > 0))),
        ("mixed", np.flatnonzero((steps["batch"] > 0) & (steps["prefill_tokens"] > 0))),
    ):
        if rows.size:
            found.append(_steps(kind, rows, steps, contexts, step_costs(profile), beside))
    copies = _copies(recorded, copy_costs)
    return [*found, copies] if copies is not None else found


def errors(compared: Iterable[Compared], makespan_ns: int) -> list[CostErrors]:
    """One line for each kind that occurred."""
    found = []
    for kind, _, measured, predicted in compared:
        off = np.abs(predicted / measured - 1)
        found.append(
            CostErrors(
                kind,
                len(measured),
                float(predicted.sum() / measured.sum() - 1),
                float(off.mean()),
                float(np.percentile(off, 50)),
                float(np.percentile(off, 95)),
                float(measured.sum() / max(1, makespan_ns)),
            )
        )
    return found


def merged(runs: Sequence[Sequence[Compared]]) -> list[Compared]:
    """The steps and copies of several runs of one system as if of one."""
    by_kind: dict[str, list[Compared]] = defaultdict(list)
    for run in runs:
        for one in run:
            by_kind[one.kind].append(one)
    return [
        Compared(kind, *(np.concatenate([one[i] for one in by_kind[kind]]) for i in (1, 2, 3)))
        for kind in KINDS
        if kind in by_kind
    ]


# ---------------------------------------------------------------------- steps


def _steps(
    kind: str,
    rows: Ints,
    steps: dict[str, Any],
    contexts: Contexts,
    costs: StepCosts,
    beside: _Beside,
) -> Compared:
    own = steps["end_ns"] - steps["start_ns"] - steps["stall_ns"]
    gaps = np.append(steps["start_ns"][1:] - steps["end_ns"][:-1], 0)
    whole = own + np.where(gaps < _STRAIGHT_ON * own, gaps, 0)
    measured, predicted, load = [], [], []
    for row in rows.tolist():
        step, batch = int(steps["step"][row]), int(steps["batch"][row])
        kv_tokens = int(steps["kv_tokens"][row])
        uneven = max(0, contexts.longest(step) * batch - kv_tokens)
        if kind == "decode":
            foretold = costs.decode_ns(batch, kv_tokens, uneven)
            load.append(batch)
        else:
            prompts = contexts.prompts(step)
            foretold = (
                costs.prefill_ns(prompts)
                if kind == "prefill"
                else costs.mixed_ns(batch, kv_tokens, uneven, prompts)
            )
            load.append(int(steps["prefill_tokens"][row]))
        end = int(steps["end_ns"][row])
        measured.append(max(1, int(whole[row])))
        predicted.append(foretold + beside.slowdown(end - int(own[row]), end, foretold))
    return Compared(kind, _ints(load), _ints(measured), _ints(predicted))


class _Beside:
    """Copies under way while steps computed, and by how much they slow one."""

    def __init__(self, recorded: Recording, costs: CopyCosts) -> None:
        copies = columns_of(recorded, "copies")
        self._ways = []
        for way, share in costs.interference.items():
            mine = np.array([direction == way.value for direction in copies["direction"]], bool)
            self._ways.append((copies["start_ns"][mine], copies["end_ns"][mine], share))

    def slowdown(self, begin_ns: int, end_ns: int, step_ns: int) -> int:
        """As `sim.link.HostLink.slowdown`: a share of the time for which a direction was busy."""
        extra = 0
        for starts, ends, share in self._ways:
            inside = np.minimum(ends, end_ns) - np.maximum(starts, begin_ns)
            busy = int(inside[inside > 0].sum())
            extra += min(busy, end_ns - begin_ns, step_ns) * share >> 10
        return extra


class Contexts:
    """How long each request's context was at each step, from its spans."""

    def __init__(self, recorded: Recording) -> None:
        lengths = recorded.table("requests", ["request_id", "input_tokens"]).to_pylist()
        context = {row["request_id"]: row["input_tokens"] for row in lengths}
        self._decoding: dict[int, int] = defaultdict(int)
        self._prompts: dict[int, list[tuple[int, int]]] = defaultdict(list)
        spans = recorded.table("spans").to_pylist()
        prefilled = {
            (span["request_id"], span["first_step"]) for span in spans if span["kind"] == "prefill"
        }
        produced = {
            (span["request_id"], span["first_step"]) for span in spans if span["kind"] == "token"
        }
        chunks: dict[str, list[tuple[int, int]]] = defaultdict(list)
        # a prefill comes before the span of tokens that begins at its step
        spans.sort(key=lambda span: (span["first_step"], span["kind"] != "prefill"))
        for span in spans:
            name, first = span["request_id"], span["first_step"]
            if span["kind"] == "prefill":
                new = span["tokens"]
                chunks[name].append((first, new))
                if (name, first) in produced:
                    self._fill(chunks.pop(name), context[name])
                continue
            for step in range(first, span["last_step"] + 1):
                if step > first or (name, first) not in prefilled:
                    self._decoding[step] = max(self._decoding[step], context[name])
                context[name] += 1

        for name, left in chunks.items():  # computed in part when the run, or the request, ended
            self._fill(left, context[name])

    def _fill(self, chunks: list[tuple[int, int]], context: int) -> None:
        """Chunks that end with the last token of a context, from the last one back; before those of
        a prefill that was lost half-way nothing is known to be there."""
        for step, new in reversed(chunks):
            context = max(0, context - new)
            self._prompts[step].append((new, context))

    def longest(self, step: int) -> int:
        """Tokens of the longest context that a decode step read."""
        return self._decoding[step]

    def prompts(self, step: int) -> list[tuple[int, int]]:
        """(new tokens, tokens already there) of every prompt of a prefill step."""
        return self._prompts[step]


# ---------------------------------------------------------------------- copies


def _copies(recorded: Recording, costs: CopyCosts) -> Compared | None:
    rows = [row for row in recorded.table("copies").to_pylist() if row["ok"]]
    rows = [row for row in rows if row["end_ns"] > row["start_ns"]]
    alone = [row for row in rows if _is_alone(row, rows)]
    if not alone:
        return None
    return Compared(
        "copy",
        _ints([row["blocks"] for row in alone]),
        _ints([row["end_ns"] - row["start_ns"] for row in alone]),
        _ints([_alone_ns(row, costs) for row in alone]),
    )


def _is_alone(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    return not any(
        other is not row and other["start_ns"] < row["end_ns"] and row["start_ns"] < other["end_ns"]
        for other in rows
    )


def _alone_ns(row: dict[str, Any], costs: CopyCosts) -> int:
    """As `sim.link` plays a job that meets an idle link; its runs taken as equally long."""
    runs, blocks = row["runs"], row["blocks"]
    lengths = [blocks // runs + (index < blocks % runs) for index in range(runs)]
    pieces = tuple((0, 0, length) for length in lengths)
    cost = costs.cost(Copy(0, Direction(row["direction"]), "", pieces, blocks))
    return max(1, cost.first_call_ns + cost.link_ns, cost.submit_ns + cost.last_piece_ns)


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)
