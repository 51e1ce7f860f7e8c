"""What the scheduler decides (`Plan`) and what a machine reports back (`Outcome`). Frozen values.

A plan has two parts. The **batch** stands: the same `Batch` object comes back in every plan until
membership changes, so machines and recorders skip by identity. Everything else is a **command** and
happens once. While nothing changes the very same `Plan` object is handed out again; it then holds
no command.

Order inside one plan: copies to the host that are waited for end first; then
copies to the device start; then those waited for end; then the kernels run. Copies of one direction
take effect in the order of submission, over all plans: two of one plan may fill the same host
block, where the later one gave up the copy that the earlier one made, and the later one counts.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from policy.pools.runs import Run


class Direction(Enum):
    """Which way a copy goes."""

    TO_HOST = "d2h"
    TO_DEVICE = "h2d"


class PreemptionMode(Enum):
    """What becomes of a victim's KV."""

    SWAP = "swap"
    RECOMPUTE = "recompute"


class Copy(NamedTuple):
    """One copy job. `runs` are (device, host, length), contiguous on both sides."""

    copy_id: int
    direction: Direction
    request_id: str
    runs: tuple[Run, ...]
    num_blocks: int


class Batch(NamedTuple):
    """The standing decode batch: one token each, in this order.

    `kv_tokens`: sum of the context lengths in the first step that this batch runs; it grows by
    `len(decode)` with every further one. `left` and `joined`, in this order, make it from the batch
    that stood before; a request that left and came back is in both.
    """

    decode: tuple[str, ...]
    kv_tokens: int
    joined: tuple[str, ...]
    left: tuple[str, ...]


class Plan(NamedTuple):
    """One decision. Block tables are not in it: machines read them live (`views.Tables`)."""

    batch: Batch | None = None  # None: nobody decodes in this step
    #: (request, tokens), behind what `Tables.num_computed` says: a whole prompt's rest, or a chunk.
    prefill: tuple[tuple[str, int], ...] = ()
    preempt: tuple[tuple[str, PreemptionMode], ...] = ()
    copies: tuple[Copy, ...] = ()  # in submission order, those to the host first
    wait_for: tuple[int, ...] = ()  # copy ids, of this plan or in flight
    cancel: tuple[int, ...] = ()  # copy ids whose source is kept
    reject: tuple[tuple[str, str], ...] = ()  # (request, why)
    waiting_on: tuple[str, ...] = ()  # why nothing runs; never empty then
    wait_cost: int | None = None  # the adaptive rule's two sides, request-nanoseconds
    overlap_cost: int | None = None
    #: Of engines that find KV by its name: who was admitted and how many tokens were found, and who
    #: was preempted and how many it lost.
    found: tuple[tuple[str, int], ...] = ()
    lost: tuple[tuple[str, int], ...] = ()
    #: The engine finds KV by its name, and something of that kind is in the plan.
    is_by_name: bool = False

    @property
    def runs(self) -> bool:
        """Some request computes in this step."""
        return self.batch is not None or bool(self.prefill)

    @property
    def is_numbered(self) -> bool:
        """It runs, preempts, starts or rejects something, so it is a step (an iteration)."""
        return (
            self.batch is not None
            or bool(self.prefill)
            or bool(self.preempt or self.copies or self.reject)
        )

    @property
    def has_commands(self) -> bool:
        """Something in it happens once."""
        return bool(
            self.prefill
            or self.preempt
            or self.copies
            or self.reject
            or self.wait_for
            or self.cancel
        )

    @property
    def num_scheduled_tokens(self) -> dict[str, int]:
        """Request to tokens in this step: prefill, chunk and decode are one idea."""
        tokens = dict.fromkeys(self.batch.decode, 1) if self.batch is not None else {}
        tokens.update(self.prefill)
        return tokens


class CopyResult(NamedTuple):
    """A copy has ended, well or not."""

    copy_id: int
    ok: bool
    done_ns: int


class Outcome(NamedTuple):
    """What happened. Applied in this order: tokens, finished, copies.

    `ran`: the last plan's step was executed, from `start_ns` to `end_ns`. Without it only copies
    are reported (an idle machine). `tokens` None means as planned: one token for every request that
    ran, but for prompts of which a chunk was computed. Otherwise (request, 0 or 1) for every one of
    them, 0 if nothing came of its part in the step. `finished` are done with this step.
    """

    ran: bool
    start_ns: int
    end_ns: int
    tokens: tuple[tuple[str, int], ...] | None = None
    finished: tuple[str, ...] = ()
    copies: tuple[CopyResult, ...] = ()
