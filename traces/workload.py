"""The workload schema: one row per turn, behind one header.

Times are integer nanoseconds inside and seconds in files. Everything but the identity and the two
lengths may be missing: a reader fills what its source has and invents nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

FORMAT = "fastswitch-workload"
#: 2 added `priority_process`, `may_lack_last_block` and run-length block ids; 3 added `assumed`.
VERSION = 3
READABLE = (1, 2, 3)

Timing = Literal["open", "closed", "gap"]

#: Most tokens of one prompt or reply, and longest id: more is a broken file, not a workload.
MAX_TOKENS = 1 << 24
MAX_ID = 128


@dataclass(frozen=True, slots=True)
class Turn:
    """One request: one turn of a conversation.

    `input_tokens` is the whole prompt as sent, history included. Exactly one of `arrival_ns`
    (open loop), `think_ns` (from the end of the parent's reply) and `gap_ns` (from the parent's
    start) drives a turn after the first. `parent_id` None means the turn before it in the session.
    `parent_prefix_tokens`: how much of the parent's context, prompt and reply, this prompt repeats
    from its start; None: nobody says, and a run that assumes all of it says so. `cancel_ns`: the
    client leaves this long after its arrival, waits included, unless served. `priority`: lower is more urgent; `priority_process` names how it changes afterwards.
    `service_ns`: what serving took at the source, for checking a model, never for driving one.
    `stop`: how the reply ended, as `end_turn` or `tool_use`. `components`: ordered parts of the
    prompt as (kind, id, tokens).
    """

    request_id: str
    session_id: str
    turn: int
    input_tokens: int
    output_tokens: int
    arrival_ns: int | None = None
    think_ns: int | None = None
    gap_ns: int | None = None
    parent_id: str | None = None
    parent_prefix_tokens: int | None = None
    new_input_tokens: int | None = None
    client_id: str | None = None
    priority: int = 0
    cancel_ns: int | None = None
    slo_ttft_ns: int | None = None
    slo_tbt_ns: int | None = None
    service_ns: int | None = None
    model: str | None = None
    kind: str | None = None
    stop: str | None = None
    hash_ids: tuple[int, ...] | None = None
    components: tuple[tuple[str, str, int], ...] | None = None
    priority_process: str | None = None


TURN_FIELDS = tuple(f.name for f in fields(Turn))


@dataclass(frozen=True, slots=True)
class Header:
    """What a workload is and where it comes from.

    `hash_scope`: where an id of a block means the same block. `may_lack_last_block`: the last block
    of a prompt may have no id if it is not full. `priority_process`: of turns that name none.
    `lost`: what the source has, or a reader of it would expect, and this has not. `assumed`: what a
    reader took for granted and the source does not say.
    """

    source: str = ""
    licence: str = ""
    tokenizer: str = ""
    timing: Timing = "open"
    time_resolution_s: float = 1e-9
    block_size: int | None = None
    hash_scope: Literal["global", "session"] | None = None
    may_lack_last_block: bool = False
    priority_process: str = ""
    composed_from: tuple[str, ...] = ()
    seed: int | None = None
    notes: str = ""
    lost: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The header line of a JSONL file."""
        data: dict[str, Any] = {"format": f"{FORMAT}/{VERSION}"}
        data.update({f.name: getattr(self, f.name) for f in fields(self)})
        data["composed_from"] = list(self.composed_from)
        data["lost"] = list(self.lost)
        data["assumed"] = list(self.assumed)
        return data


@dataclass(frozen=True)
class Workload:
    """A header and a way to iterate over the turns, again and again, in bounded memory.

    Order: open workloads by arrival; closed ones by the arrival of turn 1, each session's turns
    together (`traces.rules`). `left_out`: records of the source that are no requests, by reason,
    counted anew by every iteration.
    """

    header: Header
    source: Callable[[], Iterator[Turn]] = field(repr=False)
    left_out: Counter[str] = field(default_factory=Counter, repr=False)

    def __iter__(self) -> Iterator[Turn]:
        return self.source()

    @staticmethod
    def of(turns: Iterable[Turn], header: Header | None = None) -> Workload:
        """A workload held in memory."""
        kept = list(turns)
        return Workload(header or Header(), lambda: iter(kept))


def repeats_all(turns: int) -> str:
    """What is assumed of later turns that do not say what they repeat."""
    return f"the whole context before is repeated, of which {turns} later turns say nothing"


def watched(workload: Workload, advance: Callable[[], None]) -> Workload:
    """The same workload, which calls `advance` at every turn that is read."""

    def turns() -> Iterator[Turn]:
        for turn in workload:
            advance()
            yield turn

    return Workload(workload.header, turns)
