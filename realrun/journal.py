"""Ended requests and their tokens, one flushed line each, while a run lasts.

A run that is killed leaves its journal, from which `runs.recording.load` rebuilds the requests that
had ended. `replies.jsonl` holds what was said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs.recording import JOURNAL, SCHEMAS

REPLIES = "replies.jsonl"


class Journal:
    """Writes both files; without a folder it keeps replies in memory. `decode`: tokens to text.
    `with_replies` false: no replies.jsonl."""

    def __init__(
        self,
        folder: Path | None,
        decode: Callable[[list[int]], str] | None = None,
        *,
        with_replies: bool = True,
    ) -> None:
        self.replies: dict[str, list[int]] = {}
        self._decode = decode
        self._files = (
            []
            if folder is None
            else [
                (folder / name).open("w", encoding="utf-8")
                for name in (JOURNAL, REPLIES)[: 1 + with_replies]
            ]
        )

    def ended(self, row: tuple[Any, ...], output: list[int]) -> None:
        """A request has ended: its row of requests.parquet and the tokens it produced."""
        fields = dict(zip(SCHEMAS["requests"].names, row, strict=True))
        if not self._files:
            self.replies[fields["request_id"]] = output
        reply: dict[str, Any] = {"request_id": fields["request_id"], "tokens": output}
        if self._decode is not None:
            reply["text"] = self._decode(output)
        for file, line in zip(self._files, (fields, reply), strict=False):
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
            file.flush()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()
