"""Recordings written by hand, row by row, so that metrics can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from runs.metrics.columns import columns_of
from runs.metrics.gaps import token_gaps
from runs.metrics.summary import summarise
from runs.recording import SCHEMAS, Recording

SECOND = 1_000_000_000


class Hand:
    """Tables row by row. Step i runs from one of `ends` to the next; it decodes `batch`."""

    def __init__(self, *ends: int, stalls: dict[int, int] | None = None, batch: int = 0) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        begin = 0
        for step, end in enumerate(ends):
            stall = (stalls or {}).get(step, 0)
            row = {"step": step, "start_ns": begin, "end_ns": end, "stall_ns": stall}
            more = {"prefill_tokens": 0, "kv_tokens": 0, "free_blocks": 0, "free_host_blocks": 0}
            self.rows["steps"].append({**row, **more, "batch": batch})
            begin = end

    def request(
        self,
        name: str,
        arrival: int,
        first: int | None = None,
        finish: int | None = None,
        outputs: int = 1,
        **more: Any,
    ) -> Hand:
        """`end`: when the engine let go of it, if neither its finish nor its client's leave says."""
        over = more.get("cancel_ns", arrival) if finish is None else finish
        row = {
            "request_id": name,
            "session_id": more.pop("session", name),
            "turn": more.pop("turn", 1),
            "due_ns": more.pop("due", arrival),
            "arrival_ns": arrival,
            "end_ns": more.pop("end", over),
            "input_tokens": 10,
            "cached_tokens": more.pop("cached", 0),
            "output_tokens": outputs,
            "first_token_ns": first,
            "finish_ns": finish,
            "preemptions": 0,
            "parkings": 0,
            "status": more.pop("status", "rejected" if finish is None else "finished"),
            "reason": "",
            **more,
        }
        self.rows["requests"].append(row)
        return self

    def tokens(self, name: str, *spans: tuple[int, int]) -> Hand:
        """Tokens at the end of every step of these spans."""
        for first, last in spans:
            self._span(name, "token", first, last, last - first + 1)
        return self

    def prompt(self, name: str, step: int, tokens: int) -> Hand:
        self._span(name, "prefill", step, step, tokens)
        return self

    def preempted(self, name: str, step: int, mode: str = "swap", was: str = "running") -> Hand:
        row = {"request_id": name, "step": step, "mode": mode, "was": was}
        self.rows["preemptions"].append(row)
        return self

    def waited(self, before_step: int, start: int, end: int) -> Hand:
        """Somebody was there, and nothing ran but for a copy."""
        row = {"before_step": before_step, "start_ns": start, "end_ns": end}
        self.rows["waits"].append(row)
        return self

    def copy(self, way: str, submit: int, end: int, blocks: int = 1, **more: Any) -> Hand:
        row = {
            "copy_id": len(self.rows["copies"]),
            "request_id": more.pop("of", "r"),
            "direction": way,
            "blocks": blocks,
            "runs": 1,
            "calls": 1,
            "bytes": 100 * blocks,
            "submit_ns": submit,
            "start_ns": submit,
            "end_ns": end,
            "ok": True,
            "waited_for": False,
        }
        self.rows["copies"].append({**row, **more})
        return self

    def wanted(self, session: str, turn: int, outputs: int, **times: float) -> Hand:
        """A row of the workload; without any, each request is one that came when it came."""
        row: dict[str, Any] = {
            "request_id": f"{session}{turn}",
            "session_id": session,
            "turn": turn,
        }
        row["input_tokens"] = 10
        self.rows["workload"].append({**row, "output_tokens": outputs, **times})
        return self

    def _span(self, name: str, kind: str, first: int, last: int, tokens: int) -> None:
        row = {"request_id": name, "kind": kind, "first_step": first, "last_step": last}
        self.rows["spans"].append({**row, "tokens": tokens})

    def _add_whoever_got_tokens(self) -> None:
        """Requests of which only tokens are told came at zero and ended with the last of them."""
        known = {row["request_id"] for row in self.rows["requests"]}
        ends = {row["step"]: row["end_ns"] for row in self.rows["steps"]}
        told: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows["spans"]:
            if row["kind"] == "token" and row["request_id"] not in known:
                told.setdefault(row["request_id"], []).append(row)
        for name, spans in told.items():
            first, last = ends[spans[0]["first_step"]], ends[spans[-1]["last_step"]]
            self.request(name, 0, first, last, sum(row["tokens"] for row in spans))

    def recording(self) -> Recording:
        self._add_whoever_got_tokens()
        rows = dict(self.rows)
        if not rows["workload"]:
            same = (
                "request_id",
                "session_id",
                "turn",
                "input_tokens",
                "output_tokens",
                "client_id",
            )
            rows["workload"] = [
                {**{name: row.get(name) for name in same}, "arrival_s": row["due_ns"] / SECOND}
                for row in rows["requests"]
            ]
        tables = {name: pa.Table.from_pylist(rows[name], schema=SCHEMAS[name]) for name in SCHEMAS}
        return Recording({"link_bytes_per_s": {"h2d": 1e9, "d2h": 2e9}}, tables=tables)

    def found(self) -> dict[str, Any]:
        return summarise(self.recording())

    def gaps(self) -> tuple[list[int], list[int]]:
        """Every gap in the batch, and every one with a preemption inside, sorted."""
        made = self.recording()
        names = ("steps", "spans", "preemptions")
        (values, weights), parked = token_gaps(*(columns_of(made, name) for name in names))
        return sorted(np.repeat(values, weights).tolist()), sorted(parked.tolist())


def every(period: int, count: int) -> list[int]:
    return [period * (i + 1) for i in range(count)]
