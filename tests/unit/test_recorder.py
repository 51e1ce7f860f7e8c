"""The recorder: what happened in steps becomes spans, rows and decision lines."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.plan import Batch, Copy, Direction, Plan, PreemptionMode
from policy.request import Request
from runs import recording
from runs.recorder import CopyRecord, Recorder, decision_line
from runs.recording import SCHEMAS, IntTable, Recording
from traces.workload import Turn

SUMMARY = {"machine": "by hand"}
Span = tuple[str, str, int, int, int]


class Script:
    """Plays steps into a recorder in the engine's order, and writes down naively what they are.

    A batch's `joined` and `left` follow from the batch before; `back` left and came back between.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder or Recorder()
        self.step = -1
        self.standing: tuple[str, ...] = ()
        self.plan: Plan | None = None
        self.naive: dict[str, list[list[Any]]] = {}
        self.spans: list[Span] = []

    def arrive(self, *names: str) -> Script:
        for name in names:
            self.naive[name] = []
            self.recorder.arrived(Turn(name, name, 1, 10, 5, arrival_ns=0), 0)
        return self

    def prefill(
        self, *names: str, tokens: int = 7, preempt: Iterable[str] = (), lost: Collection[str] = ()
    ) -> Script:
        """A step without decoding. No names: one that only preempts or rejects."""
        plan = Plan(
            prefill=tuple((name, tokens) for name in names),
            preempt=tuple((name, PreemptionMode.SWAP) for name in preempt),
        )
        self._begin(plan)
        for name in names:
            self.recorder.prefilled(name, self.step, tokens, produced=name not in lost)
            self.naive[name].append(["prefill", self.step, self.step, tokens])
            if name not in lost:
                self.naive[name].append(["token", self.step, self.step, 1])
        self.recorder.stepped(self._row())
        return self

    def decode(
        self,
        *names: str,
        times: int = 1,
        back: Collection[str] = (),
        preempt: Iterable[str] = (),
        withheld: Collection[str] = (),
    ) -> Script:
        """Steps of one standing batch; `withheld` of them get no token in the first and leave."""
        before = self.standing
        left = tuple(name for name in before if name not in names or name in back)
        joined = tuple(name for name in names if name not in before or name in back)
        self.standing = tuple(name for name in names if name not in withheld)
        how = tuple((name, PreemptionMode.SWAP) for name in preempt)
        self._begin(Plan(batch=Batch(names, 100, joined, left), preempt=how))
        for repeat in range(times):
            if repeat:
                self.step += 1  # the very same plan: the recorder is not told
            self.recorder.decoded(self._row())
            for name in self.standing:
                self._token(name)
        for name in withheld:
            self.recorder.withheld(name)
        return self

    def end(self, *names: str, **how: Any) -> Script:
        for name in names:
            turn = Turn(name, name, 1, 10, 5, arrival_ns=0)
            self.recorder.ended(turn, 0, None, **{"status": "finished", "end_ns": 0, **how})
            self.spans += [(name, *span) for span in self.naive.pop(name)]
        return self

    def close(self) -> Recording:
        self.end(*sorted(self.naive), status="unfinished")
        return self.recorder.close(dict(SUMMARY))

    def recorded(self) -> list[Span]:
        """The rows of spans.parquet."""
        rows = self.close().table("spans").to_pylist()
        return [tuple(row.values()) for row in rows]

    def _begin(self, plan: Plan) -> None:
        self.step += 1
        self.recorder.planned(plan, self.step)
        self.recorder.decided(plan, self.step, 10 * self.step, (self.step % 5, 3))

    def _token(self, name: str) -> None:
        spans = self.naive[name]
        if spans and spans[-1][0] == "token" and spans[-1][2] == self.step - 1:
            spans[-1][2] += 1
            spans[-1][3] += 1
        else:
            spans.append(["token", self.step, self.step, 1])

    def _row(self) -> tuple[int, ...]:
        start = 10 * self.step
        return (self.step, start, start + 9, 0, 0, len(self.standing), 1, 2, 3, IntTable.NULL, 5)


# ---------------------------------------------------------------------- spans


def test_a_prefill_and_the_decode_steps_after_it_are_two_spans() -> None:
    script = Script().arrive("a").prefill("a", tokens=7).decode("a", times=5).end("a")
    assert script.recorded() == [("a", "prefill", 0, 0, 7), ("a", "token", 0, 5, 6)]


def test_who_computed_since_it_came_is_preempted_and_who_did_not_is_parked() -> None:
    """a decodes, is preempted, comes back and is put out before it computes, then once more after."""
    script = Script().arrive("a", "b").prefill("a").decode("a", times=3)
    script.prefill("b", preempt=["a"]).prefill(preempt=["a"])
    script.decode("a", "b", times=2, back=["a"]).decode("b", preempt=["a"]).end("a", "b")
    recorded = script.close()
    rows = recorded.table("preemptions").to_pylist()
    assert [(row["step"], row["was"]) for row in rows] == [
        (4, "running"),
        (5, "waiting"),
        (8, "running"),
    ]
    counts = recorded.table("requests").select(["request_id", "preemptions", "parkings"])
    assert [tuple(row.values()) for row in counts.to_pylist()] == [("a", 2, 1), ("b", 0, 0)]


def test_stretches_of_waiting_that_meet_are_one_row_and_nothing_is_none() -> None:
    recorder = Recorder()
    for stretch in ((3, 10, 20), (3, 20, 25), (3, 30, 31), (4, 31, 40), (4, 40, 40)):
        recorder.waited(*stretch)
    rows = [tuple(row.values()) for row in recorder.close(SUMMARY).table("waits").to_pylist()]
    assert rows == [(3, 10, 25), (3, 30, 31), (4, 31, 40)]


def test_a_turn_of_one_token_ends_with_its_prefill() -> None:
    script = Script().arrive("a").prefill("a", tokens=7).end("a")
    assert script.recorded() == [("a", "prefill", 0, 0, 7), ("a", "token", 0, 0, 1)]


def test_a_step_that_only_prefills_interrupts_everybody_elses_tokens() -> None:
    script = Script().arrive("a", "b").prefill("a").decode("a", times=2).prefill("b")
    script.decode("a", "b", times=3).end("a", "b")
    assert script.recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 2, 3),
        ("a", "token", 4, 6, 3),
        ("b", "prefill", 3, 3, 7),
        ("b", "token", 3, 6, 4),
    ]


def test_many_interruptions_are_as_many_gaps() -> None:
    script = Script().arrive("a").prefill("a").decode("a", times=2)
    for times in (1, 3, 2):
        script.prefill().prefill().decode("a", times=times)
    assert script.end("a").recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 2, 3),
        ("a", "token", 5, 5, 1),
        ("a", "token", 8, 10, 3),
        ("a", "token", 13, 14, 2),
    ]


def test_a_preempted_request_has_no_tokens_until_it_returns() -> None:
    script = Script().arrive("a", "b").prefill("a", "b").decode("a", "b", times=2)
    script.decode("b", times=3, preempt=["a"]).decode("b", "a", times=2).end("a", "b")
    assert script.recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 2, 3),
        ("a", "token", 6, 7, 2),
        ("b", "prefill", 0, 0, 7),
        ("b", "token", 0, 7, 8),
    ]


def test_who_left_and_came_back_between_two_batches_missed_only_the_steps_in_between() -> None:
    script = Script().arrive("a", "b").prefill("a", "b").decode("a", "b")
    script.prefill(preempt=["a"]).decode("b", "a", back=["a"]).end("a", "b")
    assert script.recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 1, 2),
        ("a", "token", 3, 3, 1),
        ("b", "prefill", 0, 0, 7),
        ("b", "token", 0, 1, 2),
        ("b", "token", 3, 3, 1),
    ]


def test_who_left_and_came_back_without_missing_a_step_has_one_span() -> None:
    script = Script().arrive("a", "b").prefill("a", "b").decode("a", "b", times=2)
    script.decode("b", "a", times=2, back=["a"]).end("a", "b")
    assert script.recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 4, 5),
        ("b", "prefill", 0, 0, 7),
        ("b", "token", 0, 4, 5),
    ]


def test_a_recomputed_request_has_a_second_prefill_which_gives_its_next_token() -> None:
    script = Script().arrive("a", "b").prefill("a", "b").decode("a", "b", times=2)
    script.decode("b", preempt=["a"]).prefill("a", tokens=13).decode("b", "a", times=2)
    assert script.end("a").recorded()[:4] == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 2, 3),
        ("a", "prefill", 4, 4, 13),
        ("a", "token", 4, 6, 3),
    ]


def test_a_request_recomputed_in_the_step_after_its_last_token_begins_a_new_span() -> None:
    script = Script().arrive("a").prefill("a").decode("a").prefill("a", tokens=9)
    assert script.decode("a", back=["a"]).end("a").recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 1, 2),
        ("a", "prefill", 2, 2, 9),
        ("a", "token", 2, 3, 2),
    ]


def test_a_prefill_whose_load_was_lost_gives_no_token() -> None:
    script = Script().arrive("a", "b").prefill("a", "b", lost=["a"]).prefill("a", tokens=9)
    assert script.end("a", "b").recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "prefill", 1, 1, 9),
        ("a", "token", 1, 1, 1),
        ("b", "prefill", 0, 0, 7),
        ("b", "token", 0, 0, 1),
    ]


def test_a_request_that_came_back_on_a_lost_load_gets_no_token_in_that_step() -> None:
    script = Script().arrive("a", "b").prefill("a", "b").decode("a", "b").decode("b")
    script.decode("a", "b", withheld=["a"]).prefill("a", tokens=9).decode("a", "b")
    assert script.end("a").recorded()[:4] == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 1, 2),
        ("a", "prefill", 4, 4, 9),
        ("a", "token", 4, 5, 2),
    ]


def test_a_request_cancelled_in_the_batch_keeps_the_tokens_it_had() -> None:
    script = Script().arrive("a", "b").prefill("a", "b").decode("a", "b", times=3)
    script.end("a", status="cancelled").decode("b", times=4).end("b")
    assert script.recorded() == [
        ("a", "prefill", 0, 0, 7),
        ("a", "token", 0, 3, 4),
        ("b", "prefill", 0, 0, 7),
        ("b", "token", 0, 7, 8),
    ]


def test_a_request_that_never_ran_has_no_spans() -> None:
    script = Script().arrive("a", "b").prefill("b").end("a", status="rejected").end("b")
    assert script.recorded() == [("b", "prefill", 0, 0, 7), ("b", "token", 0, 0, 1)]


def play(script: Script, rng: random.Random, steps: int) -> None:
    """Anything that an engine may do, at random."""
    ready: set[str] = set()  # may decode
    away: set[str] = set()  # were preempted since the batch was last told
    for number in range(steps):
        if rng.random() < 0.4:
            script.arrive(f"r{number}")
        live = sorted(script.naive)
        what = rng.random()
        some = [name for name in live if rng.random() < 0.5]
        if what < 0.3:
            lost = [name for name in some if rng.random() < 0.2]
            script.prefill(*some, tokens=rng.randrange(1, 9), preempt=some[:1], lost=lost)
            away.update(some)
            ready.update(some)
            ready.difference_update(lost)
        elif what < 0.4:
            script.prefill()
        elif some := [name for name in some if name in ready]:
            back = [name for name in some if name in away or rng.random() < 0.1]
            came = [name for name in some if name not in script.standing or name in back]
            withheld = [name for name in came if rng.random() < 0.1]
            times = 1 if withheld else rng.randrange(1, 5)
            script.decode(*some, times=times, back=back, withheld=withheld)
            away.clear()
            away.update(withheld)
            ready.difference_update(withheld)
        for name in live:
            if rng.random() < 0.1:
                script.end(name)
                ready.discard(name)
        script.recorder.flush_if_full()


@given(st.integers(0, 1 << 30), st.integers(0, 40))
def test_spans_are_what_step_by_step_book_keeping_finds(seed: int, steps: int) -> None:
    script = Script()
    play(script, random.Random(seed), steps)
    recorded = script.recorded()
    assert recorded == script.spans


# ---------------------------------------------------------------------- other tables


def test_a_turn_is_written_down_as_it_came_and_as_it_ended() -> None:
    recorder = Recorder()
    turn = Turn(
        "s/2",
        "s",
        2,
        500,
        40,
        think_ns=2_500_000_000,
        parent_id="s/1",
        parent_prefix_tokens=300,
        client_id="k",
        priority=3,
        cancel_ns=60_000_000_000,
    )
    request = Request("s/2", arrival_ns=70, input_tokens=500)
    request.cached_tokens = 290
    recorder.arrived(turn, 60)
    recorder.ended(
        turn,
        70,
        request,
        status="cancelled",
        end_ns=125,
        reason="client left",
        output_tokens=11,
        first_token_ns=90,
        cancel_ns=120,
        cancel_seen_step=5,
    )
    recorded = recorder.close(SUMMARY)
    assert recorded.table("requests").to_pylist() == [
        {
            "request_id": "s/2",
            "session_id": "s",
            "turn": 2,
            "client_id": "k",
            "due_ns": 60,
            "arrival_ns": 70,
            "input_tokens": 500,
            "cached_tokens": 290,
            "output_tokens": 11,
            "first_token_ns": 90,
            "finish_ns": None,
            "cancel_ns": 120,
            "cancel_seen_step": 5,
            "end_ns": 125,
            "preemptions": 0,
            "parkings": 0,
            "status": "cancelled",
            "reason": "client left",
        }
    ]
    (kept,) = recorded.table("workload").to_pylist()
    assert {name: value for name, value in kept.items() if value is not None} == {
        "request_id": "s/2",
        "session_id": "s",
        "turn": 2,
        "input_tokens": 500,
        "output_tokens": 40,
        "think_s": 2.5,
        "parent_id": "s/1",
        "parent_prefix_tokens": 300,
        "client_id": "k",
        "priority": 3,
        "cancel_s": 60.0,
    }


def test_a_step_a_preemption_and_a_copy_are_a_row_each() -> None:
    recorder = Recorder()
    for name in "ab":
        recorder.arrived(Turn(name, name, 1, 10, 5, arrival_ns=0), 0)
    recorder.prefilled("b", 3, 10, produced=True)
    modes = (("a", PreemptionMode.SWAP), ("b", PreemptionMode.RECOMPUTE))
    recorder.planned(Plan(preempt=modes), 4)
    recorder.stepped((4, 10, 20, 3, 0, 0, 0, 7, 8, IntTable.NULL, 0))
    copy = CopyRecord(2, "a", "d2h", 5, 2, 64, 4096, 11, 12, 19, ok=False, waited_for=True)
    recorder.copied(copy, 6)
    recorded = recorder.close(SUMMARY)
    assert [tuple(row.values()) for row in recorded.table("preemptions").to_pylist()] == [
        ("a", 4, "swap", "waiting"),
        ("b", 4, "recompute", "running"),
    ]
    assert recorded.table("steps").to_pylist() == [
        {
            "step": 4,
            "start_ns": 10,
            "end_ns": 20,
            "stall_ns": 3,
            "prefill_tokens": 0,
            "batch": 0,
            "kv_tokens": 0,
            "free_blocks": 7,
            "free_host_blocks": 8,
            "wait_cost": None,
            "overlap_cost": 0,
        }
    ]
    assert recorded.table("copies").to_pylist() == [
        {
            "copy_id": 2,
            "request_id": "a",
            "direction": "d2h",
            "blocks": 5,
            "runs": 2,
            "calls": 64,
            "bytes": 4096,
            "submit_ns": 11,
            "start_ns": 12,
            "end_ns": 19,
            "seen_step": 6,
            "ok": False,
            "waited_for": True,
        }
    ]


def test_a_recorder_that_saw_nothing_has_every_table_without_rows() -> None:
    recorded = Recorder().close(SUMMARY)
    assert {name: recorded.table(name).schema for name in SCHEMAS} == SCHEMAS
    assert {recorded.table(name).num_rows for name in SCHEMAS} == {0}
    assert (recorded.summary, recorded.decisions) == (SUMMARY, [])


# ---------------------------------------------------------------------- decision lines


def copy_of(request_id: str, direction: Direction) -> Copy:
    return Copy(1, direction, request_id, ((0, 0, 1),), 1)


EXAMPLE = Plan(
    batch=Batch(("r2",), 10, ("r2",), ()),
    prefill=(("r1", 512),),
    preempt=(("r3", PreemptionMode.SWAP), ("r5", PreemptionMode.RECOMPUTE)),
    copies=(copy_of("r3", Direction.TO_HOST), copy_of("r4", Direction.TO_DEVICE)),
    reject=(("r6", "why"),),
)
EXAMPLE_LINE = (
    '{"step":0,"now_ns":0,"prefill":[["r1",512]],"decode":["r2"],"swap_out":["r3"],'
    '"swap_in":["r4"],"recompute":["r5"],"reject":[["r6","why"]],"free_device_blocks":1,'
    '"free_host_blocks":2}'
)


def test_a_decision_line_is_the_documented_one() -> None:
    assert decision_line(EXAMPLE, 0, 0, (1, 2)) == EXAMPLE_LINE


def test_a_plan_that_does_nothing_is_a_line_of_empty_lists() -> None:
    assert decision_line(Plan(), 3, 14, (0, 0)) == (
        '{"step":3,"now_ns":14,"prefill":[],"decode":[],"swap_out":[],"swap_in":[],'
        '"recompute":[],"reject":[],"free_device_blocks":0,"free_host_blocks":0}'
    )


@given(st.lists(st.text(min_size=1, max_size=8), min_size=5, max_size=5, unique=True))
def test_any_request_id_survives_a_decision_line(names: list[str]) -> None:
    prefilled, decoded, swapped, loaded, rejected = names
    plan = Plan(
        batch=Batch((decoded, prefilled), 0, (), ()),
        prefill=((prefilled, 1),),
        preempt=((swapped, PreemptionMode.SWAP),),
        copies=(copy_of(loaded, Direction.TO_DEVICE),),
        reject=((rejected, rejected),),
    )
    line = decision_line(plan, 7, 1 << 62, (1, 0))
    assert "\n" not in line
    assert json.loads(line) == {
        "step": 7,
        "now_ns": 1 << 62,
        "prefill": [[prefilled, 1]],
        "decode": [decoded, prefilled],
        "swap_out": [swapped],
        "swap_in": [loaded],
        "recompute": [],
        "reject": [[rejected, rejected]],
        "free_device_blocks": 1,
        "free_host_blocks": 0,
    }


def test_lines_are_kept_only_when_asked_for(tmp_path: Path) -> None:
    told, untold = Recorder(decisions=True), Recorder()
    for recorder in (told, untold):
        recorder.decided(EXAMPLE, 0, 0, (1, 2))
        recorder.decided(EXAMPLE._replace(batch=None), 1, 5, (1, 2))
        recorder.decided(EXAMPLE, 2, 9, (1, 2))
    lines = list(told.close(SUMMARY).decision_lines())
    assert lines[0] == EXAMPLE_LINE
    assert [json.loads(line)["decode"] for line in lines] == [["r2"], [], ["r2"]]
    assert list(untold.close(SUMMARY).decision_lines()) == []


def test_the_batch_in_a_line_is_the_one_that_stands_now() -> None:
    recorder = Recorder(decisions=True)
    for names in (("a",), ("a", "b"), ("b",), ()):
        recorder.decided(Plan(batch=Batch(names, 0, (), ())), 0, 0, (0, 0))
    lines = recorder.close(SUMMARY).decision_lines()
    assert [json.loads(line)["decode"] for line in lines] == [["a"], ["a", "b"], ["b"], []]


# ---------------------------------------------------------------------- folders


def play_into(folder: Path | None, seed: int, steps: int) -> Recording:
    recorder = Recorder(folder, decisions=True)
    script = Script(recorder)
    play(script, random.Random(seed), steps)
    for copy_id in range(steps):
        copy = CopyRecord(copy_id, "a", "h2d", 1, 1, 1, 9, 0, 1, 2, copy_id % 2 == 0, True)
        recorder.copied(copy, copy_id)
        recorder.waited(copy_id, 5, 6)
        recorder.flush_if_full()
    return script.close()


@pytest.mark.parametrize(("rows", "chunks"), [(1, 1), (3, 2), (7, 1000), (1 << 12, 16)], ids=str)
def test_a_folder_holds_the_tables_that_memory_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, chunks: int
) -> None:
    in_memory = play_into(None, 5, 120)
    monkeypatch.setattr(recording, "CHUNK_ROWS", rows)
    monkeypatch.setattr(recording, "CHUNKS_PER_GROUP", chunks)
    on_disk = play_into(tmp_path, 5, 120)
    assert on_disk.tables == {}
    for name in SCHEMAS:
        assert in_memory.table(name).num_rows > 10
        assert on_disk.table(name).equals(in_memory.table(name)), name
    assert list(on_disk.decision_lines()) == list(in_memory.decision_lines())
    assert len(list(on_disk.decision_lines())) > 50


def test_a_run_that_fails_leaves_no_file_open_and_its_lines_on_disk(tmp_path: Path) -> None:
    with suppress(KeyError), Recorder(tmp_path, decisions=True) as recorder:
        recorder.decided(EXAMPLE, 0, 0, (1, 2))
        raise KeyError("the machine")
    assert (tmp_path / "decisions.jsonl").read_text() == EXAMPLE_LINE + "\n"
    assert (tmp_path / "replay.jsonl").read_text() == '{"aging":[]}\n'
    with pytest.raises(ValueError, match="closed file"):
        recorder.decided(EXAMPLE, 1, 0, (1, 2))
    with pytest.raises(ValueError, match="closed file"):
        recorder.unnumbered(EXAMPLE, 1, 0)


def test_an_empty_recording_in_a_folder_has_every_table(tmp_path: Path) -> None:
    recorded = Recorder(tmp_path).close(SUMMARY)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{name}.parquet" for name in SCHEMAS
    )
    assert all(recorded.table(name).schema.equals(SCHEMAS[name]) for name in SCHEMAS)


def test_full_chunks_leave_memory_while_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "CHUNK_ROWS", 10)
    monkeypatch.setattr(recording, "CHUNKS_PER_GROUP", 2)
    table, cells = recording.Table("preemptions", tmp_path), IntTable("steps", tmp_path)
    for step in range(100):
        table.append((f"request {step}", step, "swap", "running"))
        cells.append(range(step, step + len(SCHEMAS["steps"])))
        table.flush_if_full()
        cells.flush_if_full()
    written = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(written) == {"preemptions.parquet", "steps.parquet"}
    assert min(written.values()) > 500
    assert (table.close(), cells.close()) == (None, None)
    recorded = Recording({}, tmp_path)
    assert recorded.table("preemptions")["step"].to_pylist() == list(range(100))
    assert recorded.table("steps")["end_ns"].to_pylist() == [step + 2 for step in range(100)]
