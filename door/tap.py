"""Who got a token in a step, on either machine: a recorder that also tells those who wait.

Every machine tells its recorder all that a client could want to know. What happened in a step is
handed over once, when the step has been folded in; a request gets at most one token in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from policy.plan import Batch, Plan
from policy.scheduler import Scheduler
from runs.recorder import Recorder
from runs.recording import SCHEMAS
from traces.workload import Header


class Happened(NamedTuple):
    """One step. `decoded`: who got a token, `prefilled`: likewise, behind their prompts. `tokens`: the
    token of each, where the machine made any. `ended`: rows of requests.parquet."""

    decoded: Sequence[str]
    prefilled: Sequence[str]
    tokens: dict[str, int]
    ended: Sequence[dict[str, Any]]


class Tap(Recorder):
    """`tell` is called in the engine's thread. `token_of`: the last token of a live request."""

    def __init__(
        self,
        folder: Path,
        tell: Callable[[Happened], None],
        *,
        aging: Sequence[tuple[int, int]],
        header: Header,
    ) -> None:
        super().__init__(folder, decisions=True, aging=aging, header=header)
        self._tell = tell
        self.token_of: Callable[[str], int | None] | None = None
        self.on_row: Callable[[tuple[Any, ...]], None] = lambda _row: None
        self._tapped: Batch | None = None  # the standing batch
        self._decoded: Sequence[str] = ()
        self._prefilled: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self._last_tokens: dict[str, int] = {}  # of requests that ended in this step

    def checking(self, check: Callable[[Scheduler], None] | None) -> Callable[[Scheduler], None]:
        """The engine's check, called when a step has been folded in, and with it the news."""

        def both(scheduler: Scheduler) -> None:
            if check is not None:
                check(scheduler)
            self.tell()

        return both

    def tell(self) -> None:
        """Hand over what has happened since the last time."""
        if not self._decoded and not self._prefilled and not self._rows:
            return
        tokens = self._last_tokens
        if self.token_of is not None:
            for name in (*self._decoded, *self._prefilled):
                if name not in tokens and (token := self.token_of(name)) is not None:
                    tokens[name] = token
        self._tell(Happened(self._decoded, self._prefilled, tokens, self._rows))
        self._decoded, self._prefilled, self._rows, self._last_tokens = (), [], [], {}

    # ------------------------------------------------------------------ as a recorder

    def planned(self, plan: Plan, step: int) -> None:
        """See Recorder."""
        super().planned(plan, step)
        self._tapped = plan.batch

    def decoded(self, row: tuple[int, ...]) -> None:
        """See Recorder."""
        super().decoded(row)
        if self._tapped is not None:
            self._decoded = self._tapped.decode

    def withheld(self, request_id: str) -> None:
        """See Recorder."""
        super().withheld(request_id)
        self._decoded = [name for name in self._decoded if name != request_id]

    def prefilled(self, request_id: str, step: int, tokens: int, *, produced: bool) -> None:
        """See Recorder."""
        super().prefilled(request_id, step, tokens, produced=produced)
        if produced:
            self._prefilled.append(request_id)

    def ended(self, *args: Any, **values: Any) -> tuple[Any, ...]:
        """See Recorder."""
        row = super().ended(*args, **values)
        self._rows.append(dict(zip(SCHEMAS["requests"].names, row, strict=True)))
        self.on_row(row)
        return row

    def output(self, request_id: str, tokens: list[int]) -> None:
        """All that a request produced, at its end."""
        if tokens:
            self._last_tokens[request_id] = tokens[-1]
