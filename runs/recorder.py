"""Turns plans and outcomes into the tables of a recording. Used by every machine's loop."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from policy.plan import Batch, Direction, Plan, PreemptionMode
from policy.request import Request
from runs.recording import SCHEMAS, IntTable, Recording, Table
from traces.block_names import TokenNames
from traces.readers import parquet
from traces.workload import Header, Turn


class CopyRecord(NamedTuple):
    """What the machine knows of a copy that has ended."""

    copy_id: int
    request_id: str
    direction: str
    blocks: int
    runs: int
    calls: int
    bytes: int
    submit_ns: int
    start_ns: int
    end_ns: int
    ok: bool
    waited_for: bool


class _Story:
    """One live request's spans so far. `since`: decode ordinal from which it decodes, -1 if not."""

    __slots__ = ("due_ns", "parkings", "preemptions", "request_id", "seen_spans", "since", "spans")

    def __init__(self, request_id: str, due_ns: int) -> None:
        self.request_id = request_id
        self.due_ns = due_ns
        self.spans: list[tuple[Any, ...]] = []  # rows of spans.parquet
        self.since = -1
        self.seen_spans = 0  # when it was last taken off the device
        self.preemptions = 0
        self.parkings = 0


class _Lines:
    """Lines of text as they come: in a file, or in memory."""

    def __init__(self, path: Path | None) -> None:
        self.kept: list[str] = []
        self._file: IO[str] | None = None if path is None else path.open("w", encoding="utf-8")

    def write(self, value: Any) -> None:
        line = json.dumps(value, separators=(",", ":"))
        if self._file is None:
            self.kept.append(line)
        else:
            self._file.write(line + "\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Recorder:
    """Collects rows; cheap per step, exact per request.

    Decode steps are counted by an ordinal; steps and ordinals differ only where a step decodes
    nobody, so a list of those breaks turns any residency into spans when it ends.

    With `decisions` it also notes what a replay needs and no table says (replay.jsonl). `aging`:
    the lengths that `pool.aging` used the pools with. `header`: of the workload, whose rows are kept
    under it. `with` closes the files of a run that fails.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        decisions: bool = False,
        aging: Sequence[tuple[int, int]] = (),
        header: Header | None = None,
    ) -> None:
        self._folder = folder
        self._tables = {name: Table(name, folder) for name in SCHEMAS if name != "steps"}
        self._wait: tuple[int, int, int] | None = None  # a row of waits.parquet that may grow
        if header is not None:
            metadata = parquet.recorded_schema(header.as_json()).metadata
            self._tables["workload"] = Table("workload", folder, metadata)
        self._workload_columns = SCHEMAS["workload"].names
        self._num_blocks = 0  # ids of blocks among the rows of the workload that are held
        self._step_table = IntTable("steps", folder)
        self._steps = self._step_table.append
        self._stories: dict[str, _Story] = {}
        self._ordinal = 0  # decode steps so far
        self._next_step = 0  # the step that would follow the last decode step
        self._break_ordinals: list[int] = []
        self._break_steps: list[int] = []
        self._batch: Batch | None = None
        self._text_batch: Batch | None = None
        self._batch_text = "[]"
        self._decisions: list[str] | None = [] if decisions and folder is None else None
        self._file: IO[str] | None = None
        if decisions and folder is not None:
            self._file = (folder / "decisions.jsonl").open("w", encoding="utf-8")
        self.decides = decisions
        self._notes: _Lines | None = None
        self._num_copies = 0
        self._noted: Plan | None = None
        if decisions:
            self._notes = _Lines(None if folder is None else folder / "replay.jsonl")
            self._notes.write({"aging": aging})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_lines()

    # ------------------------------------------------------------------ plans

    def planned(self, plan: Plan, step: int) -> None:
        """A plan that is not the one before it was handed out for `step`."""
        for request_id, mode in plan.preempt:
            was = self._taken_off(self._stories[request_id])
            self._tables["preemptions"].append((request_id, step, mode.value, was))
        batch = plan.batch
        if batch is None:
            return
        if step != self._next_step or not self._break_ordinals:
            self._break_ordinals.append(self._ordinal)
            self._break_steps.append(step)
        if batch is not self._batch:
            self._batch = batch
            for request_id in batch.left:
                story = self._stories.get(request_id)
                if story is not None:
                    self._leave(story)
            for request_id in batch.joined:
                self._stories[request_id].since = self._ordinal

    def _taken_off(self, story: _Story) -> str:
        """A request lost the device. `running`: it had computed since it came there, so this is a
        preemption; `waiting`: it only held KV there, and was parked."""
        self._leave(story)
        was_running = len(story.spans) > story.seen_spans
        story.seen_spans = len(story.spans)
        story.preemptions += was_running
        story.parkings += not was_running
        return "running" if was_running else "waiting"

    def decided(self, plan: Plan, step: int, now_ns: int, free: tuple[int, int]) -> None:
        """Write the line of decisions.jsonl; call for every numbered step."""
        if not self.decides:
            return
        line = decision_line(plan, step, now_ns, free, self._text_of(plan.batch))
        if self._file is not None:
            self._file.write(line + "\n")
        elif self._decisions is not None:
            self._decisions.append(line)

    def unnumbered(self, plan: Plan | None, next_step: int, now_ns: int) -> None:
        """A plan without a number was made before `next_step`; None: vLLM 0.3.3's verdict instead.

        It may have changed what later plans decide from, so a replay makes it at the same point.
        The same object again, without an arrival in between, changed nothing.
        """
        if self._notes is None or (plan is not None and plan is self._noted):
            return
        self._noted = plan
        self._notes.write({"before_step": next_step, "now_ns": now_ns, "copies": self._num_copies})

    def _text_of(self, batch: Batch | None) -> str:
        if batch is None:
            return "[]"
        if batch is not self._text_batch:
            self._text_batch = batch
            self._batch_text = _compact(list(batch.decode))
        return self._batch_text

    # ------------------------------------------------------------------ steps

    def decoded(self, row: tuple[int, ...]) -> None:
        """A step in which the standing batch decoded; `row` is one of steps.parquet, with
        IntTable.NULL for what is missing."""
        self._ordinal += 1
        self._next_step = row[0] + 1
        self._steps(row)

    def withheld(self, request_id: str) -> None:
        """A request that came back for the step just recorded got no token: its load had failed."""
        self._stories[request_id].since = -1

    def stepped(self, row: tuple[int, ...]) -> None:
        """A numbered step in which nobody decoded."""
        self._steps(row)

    def waited(self, before_step: int, start_ns: int, end_ns: int) -> None:
        """Somebody was live and nothing could run but for a copy under way, before step
        `before_step`. Stretches that meet are one row."""
        last = self._wait
        if end_ns <= start_ns:
            return
        if last is not None and last[0] == before_step and last[2] == start_ns:
            start_ns = last[1]
        elif last is not None:
            self._tables["waits"].append(last)
        self._wait = (before_step, start_ns, end_ns)

    def prefilled(self, request_id: str, step: int, tokens: int, *, produced: bool) -> None:
        """A prompt, or what had to be recomputed, went through; with it the next token."""
        story = self._stories[request_id]
        self._leave(story)
        name = story.request_id
        story.spans.append((name, "prefill", step, step, tokens))
        if produced:
            story.spans.append((name, "token", step, step, 1))

    def flush_if_full(self) -> None:
        """Call now and then; keeps memory bounded."""
        self._step_table.flush_if_full()
        for table in self._tables.values():
            table.flush_if_full()

    # ------------------------------------------------------------------ requests and copies

    def arrived(self, turn: Turn, due_ns: int) -> None:
        """A row of the workload is being served; it was due at `due_ns`, and may have had to wait
        for its parent's end."""
        self._noted = None
        self._stories[turn.request_id] = _Story(turn.request_id, due_ns)
        table, in_file = self._tables["workload"], self._folder is not None
        table.append(parquet.recorded_row(turn, self._workload_columns, blocks=in_file))
        if in_file and turn.hash_ids:
            self._num_blocks += len(turn.hash_ids)
            if self._num_blocks >= parquet.GROUP_BLOCKS:
                table.flush()
                self._num_blocks = 0

    def ended(
        self,
        turn: Turn,
        arrival_ns: int,
        request: Request | None,
        *,
        status: str,
        end_ns: int,
        reason: str = "",
        output_tokens: int = 0,
        first_token_ns: int | None = None,
        finish_ns: int | None = None,
        cancel_ns: int | None = None,
        cancel_seen_step: int | None = None,
    ) -> tuple[Any, ...]:
        """A turn finished, was rejected or cancelled, or the run ended before it did: the engine let
        go of it at `end_ns`. Returns its row of requests.parquet."""
        story = self._stories.pop(turn.request_id)
        self._leave(story)
        if self._notes is not None and request is not None:
            self._note_links(request)
        self._tables["spans"].extend(story.spans)
        row = (
            turn.request_id,
            turn.session_id,
            turn.turn,
            turn.client_id,
            story.due_ns,
            arrival_ns,
            turn.input_tokens,
            0 if request is None else request.cached_tokens,
            output_tokens,
            first_token_ns,
            finish_ns,
            cancel_ns,
            cancel_seen_step,
            end_ns,
            story.preemptions,
            story.parkings,
            status,
            reason,
        )
        self._tables["requests"].append(row)
        return row

    def _note_links(self, request: Request) -> None:
        """What the workload as a whole said of a turn, of which only the rows served are kept."""
        names = request.block_names
        named = isinstance(names, TokenNames)
        if request.parent_id is not None or request.is_last_turn or request.prefix_keys or named:
            assert self._notes is not None
            links: dict[str, Any] = {
                "request": request.request_id,
                "parent": request.parent_id,
                "last": request.is_last_turn,
            }
            if request.prefix_keys:
                links["keys"] = request.prefix_keys
            if isinstance(names, TokenNames):
                links["names"] = names.known()
            self._notes.write(links)

    def copied(self, copy: CopyRecord, seen_step: int) -> None:
        """A copy's end was seen; `seen_step` is the first numbered plan made afterwards."""
        self._num_copies += 1
        self._tables["copies"].append((*copy[:10], seen_step, copy.ok, copy.waited_for))

    def close(self, summary: dict[str, Any]) -> Recording:
        """The recording; its tables are on disk if there is a folder."""
        self._close_lines()
        if self._wait is not None:
            self._tables["waits"].append(self._wait)
        notes = [] if self._notes is None else self._notes.kept
        tables = {name: table.close() for name, table in self._tables.items()}
        tables["steps"] = self._step_table.close()
        in_memory = {name: table for name, table in tables.items() if table is not None}
        return Recording(summary, self._folder, in_memory, self._decisions or [], notes)

    def _close_lines(self) -> None:
        if self._notes is not None:
            self._notes.close()
        if self._file is not None:
            self._file.close()

    # ------------------------------------------------------------------ spans

    def _leave(self, story: _Story) -> None:
        """Turn the residency that ends before the next decode step into spans."""
        if story.since < 0:
            return
        begin, end = story.since, self._ordinal - 1
        story.since = -1
        name, spans = story.request_id, story.spans
        index = bisect_right(self._break_ordinals, begin) - 1
        breaks, steps = self._break_ordinals, self._break_steps
        joins = bool(spans)  # a span after a break never touches the one before it
        while begin <= end:
            shift = steps[index] - breaks[index]
            index += 1
            last = min(end, breaks[index] - 1) if index < len(breaks) else end
            count = last - begin + 1
            if joins and spans[-1][1] == "token" and spans[-1][3] == begin + shift - 1:
                _, _, first, _, tokens = spans[-1]
                spans[-1] = (name, "token", first, last + shift, tokens + count)
            else:
                spans.append((name, "token", begin + shift, last + shift, count))
            joins = False
            begin = last + 1


def decision_line(
    plan: Plan, step: int, now_ns: int, free: tuple[int, int], decode: str | None = None
) -> str:
    """One line of decisions.jsonl (docs/formats.md), the same from every machine."""
    if decode is None:
        decode = _compact(list(plan.batch.decode) if plan.batch is not None else [])
    return (
        f'{{"step":{step},"now_ns":{now_ns},"prefill":{_compact([list(p) for p in plan.prefill])},'
        f'"decode":{decode},"swap_out":{_compact(_preempted(plan, PreemptionMode.SWAP))},'
        f'"swap_in":{_compact(_loaded(plan))},'
        f'"recompute":{_compact(_preempted(plan, PreemptionMode.RECOMPUTE))},'
        f'"reject":{_compact([list(r) for r in plan.reject])},{_by_name(plan)}'
        f'"free_device_blocks":{free[0]},"free_host_blocks":{free[1]}}}'
    )


def _by_name(plan: Plan) -> str:
    """What only engines that find KV by its name have: tokens found by who was admitted, and lost by
    who was preempted; blocks whose copies to the host and from there begin, and of whom."""
    if not plan.is_by_name:
        return ""
    copies: dict[Direction, list[tuple[str, int]]] = {way: [] for way in Direction}
    for copy in plan.copies:
        copies[copy.direction].append((copy.request_id, copy.num_blocks))
    return "".join(
        [
            f'"{name}":{_compact([list(one) for one in told])},'
            for name, told in (
                ("found", plan.found),
                ("lost", plan.lost),
                ("stored", copies[Direction.TO_HOST]),
                ("loaded", copies[Direction.TO_DEVICE]),
            )
        ]
    )


def _preempted(plan: Plan, mode: PreemptionMode) -> list[str]:
    return [request_id for request_id, how in plan.preempt if how is mode]


def _loaded(plan: Plan) -> list[str]:
    return [copy.request_id for copy in plan.copies if copy.direction is Direction.TO_DEVICE]


def _compact(value: list[Any]) -> str:
    return json.dumps(value, separators=(",", ":")) if value else "[]"
