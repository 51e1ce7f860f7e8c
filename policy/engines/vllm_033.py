"""vLLM 0.3.3 under FCFS, decision for decision.

Own words for what that release's `Scheduler` and `BlockSpaceManager` decide, with swap forced as
the preemption mode where the system says so. It keeps none of the rules in `System.rules_off`: one
victim at a time, the last runner may go too, admission without room for the next step. Where the
release would abort its engine or wait for ever, `ReleaseVerdict` is raised. Compared with the
package itself in `tests/full/test_vllm_release.py`.

What it hands to the model is listed by request id: `SchedulerOutputs` sorts every batch by
(LoRA id, request id), with or without LoRA. Queues and victims keep queue order.

`vllm-0.3.3-keep` adds to it only what the release lacks: KV of idle turns kept on the host.
"""

from __future__ import annotations

from collections import deque

from policy.engines.base import ALWAYS, Event, Until
from policy.engines.draft import Draft, PrefillShape
from policy.engines.room import Room
from policy.engines.swapping import Parts, SwapEngine
from policy.errors import ProgressError, ReleaseVerdict
from policy.plan import Plan, PreemptionMode
from policy.request import Move, Request, RequestState


def _arrival(request: Request) -> int:
    return request.arrival_ns


class ReleaseEngine(SwapEngine):
    """Waiting, running and swapped queues as in the release; ties keep queue order."""

    name = "vllm-0.3.3"

    #: Every step with a command in it may be followed by a different decision, and every running request
    #: must find a free block, whether it needs one or not.
    UNTIL = Until(ALWAYS | Event.PLANNED | Event.STORED, spare=1)

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._waiting: deque[Request] = deque()
        self._swapped: list[Request] = []

    def enter(self, request: Request) -> None:
        """A new turn joins the back of the waiting queue."""
        super().enter(request)
        self._waiting.append(request)

    def leave(self, request: Request, move: Move) -> None:
        """See Engine."""
        if not request.is_decoding:
            self._dequeue(request)
        super().leave(request, move)

    def _requeue(self, request: Request) -> None:
        """Recompute, from the front of the waiting queue as after a preemption."""
        self._dequeue(request)
        self._waiting.appendleft(request)

    def _dequeue(self, request: Request) -> None:
        for queue in (self._waiting, self._swapped):
            if request in queue:
                queue.remove(request)

    def decide(self) -> tuple[Plan, Until]:
        """See Engine."""
        return self._decide(), self.UNTIL

    def _decide(self) -> Plan:
        """One plan: a prefill-only step if anybody can be admitted, else a decode step."""
        desk, swaps = self.desk, self.swaps
        draft = Draft()
        swaps.retire_ended(draft)
        admitted = [] if self._swapped else self._admit()
        if self._park_holders(draft, admitted) and not (self._swapped or admitted):
            admitted = self._admit()
        for request in admitted:
            context = request.context
            if context.device is None and context.host_tokens:
                swaps.load(request, draft, waited=True)
            swaps.start_prefill(request, draft)
        swaps.flush(draft)
        if draft.prefill or draft.reject:
            draft.prefill.sort()
            return draft.finish(None)
        preempted = self._decode(draft)
        if not preempted:
            self._swap_in(draft)
        batch = desk.standing_batch(by_id=True)
        return draft.finish(batch, () if batch is not None else self._why_idle(draft))

    # ------------------------------------------------------------------ prefill

    def _admit(self) -> list[Request]:
        """Who leaves the waiting queue for a prefill now."""
        desk, swaps = self.desk, self.swaps
        settings = swaps.settings
        shape = PrefillShape(settings)
        room = Room(swaps.memory.device.num_free, settings.max_num_seqs - len(desk.running))
        admitted: list[Request] = []
        while self._waiting:
            request = self._waiting[0]
            tokens = request.num_tokens
            blocks = swaps.memory.blocks_for(tokens)
            why = self._never(tokens, blocks)
            if why is not None:
                self._waiting.popleft()
                swaps.reject(request, why)
                continue
            wanted = blocks - request.device_blocks
            if not room.fits(wanted, desk.watermark):
                break
            context = request.context
            if swaps.memory.is_promised(context):
                break
            if not shape.admits(tokens - max(context.device_tokens, context.host_tokens)):
                break
            admitted.append(self._waiting.popleft())
            room.take(wanted)
        return admitted

    def _never(self, tokens: int, blocks: int) -> str | None:
        settings = self.swaps.settings
        if tokens > settings.prompt_limit:
            return f"prompt of {tokens} tokens, limit {settings.prompt_limit}"
        if settings.device_blocks - blocks < self.desk.watermark:
            return (
                f"{tokens} tokens need {blocks} blocks, the device has"
                f" {settings.device_blocks} and keeps {self.desk.watermark} free"
            )
        return None

    def _park_holders(self, draft: Draft, admitted: list[Request]) -> bool:
        """`-keep`: a turn that arrived before its parent's KV left the device, and was not
        admitted, lets that KV go to the host now, as it would have a moment earlier.

        Before the admitted ones load, so that no store goes where a load of this plan still reads.
        Returns whether any device blocks came free.
        """
        swaps = self.swaps
        parked = False
        for request in list(swaps.residents):
            if request.state is RequestState.WAITING and request not in admitted:
                del swaps.residents[request]
                swaps.retire(request.context, draft)
                parked = True
        return parked

    # ------------------------------------------------------------------ decode

    def _decode(self, draft: Draft) -> bool:
        """A block for whoever needs one, the youngest making way; whether anybody had to."""
        desk, swaps = self.desk, self.swaps
        device = swaps.memory.device
        growing = desk.growing()
        desk.running.sort(key=_arrival)
        queue = deque(desk.running)
        preempted = False
        while queue:
            request = queue.popleft()
            while device.num_free < 1:
                victim = queue.pop() if queue else request
                self._preempt(victim, draft)
                preempted = True
                if victim is request:
                    break
            else:
                if request in growing:
                    swaps.grow({request: None})
        return preempted

    def _preempt(self, victim: Request, draft: Draft) -> None:
        swaps = self.swaps
        context = victim.context
        if swaps.options.preemption == "swap":
            swaps.memory.settle(context, victim.num_tokens - 1)
            wanted = swaps.memory.host_blocks_wanted(context)
            if not swaps.memory.ledger.make_room(wanted, context, at_any_cost=True):
                raise ReleaseVerdict(
                    f"vLLM 0.3.3 aborts its engine here: {victim.request_id} must be swapped out,"
                    f" {wanted} host blocks wanted, {swaps.memory.host.num_available} free"
                )
        mode = swaps.preempt(victim, draft, waited=True)
        if mode is PreemptionMode.SWAP:
            self._swapped.append(victim)
        else:
            self._waiting.appendleft(victim)

    def _swap_in(self, draft: Draft) -> None:
        """Oldest first, each with one block to spare above the watermark."""
        desk, swaps = self.desk, self.swaps
        settings = swaps.settings
        device = swaps.memory.device
        self._swapped.sort(key=_arrival)
        while self._swapped:
            request = self._swapped[0]
            room = Room(device.num_free, settings.max_num_seqs - len(desk.running))
            if not room.fits(request.host_blocks + 1, desk.watermark):
                break
            del self._swapped[0]
            swaps.load(request, draft, waited=True)
            if request in desk.growing():
                swaps.grow({request: None})

    def _why_idle(self, draft: Draft) -> tuple[str, ...]:
        if draft.acts:
            return ("the next plan",)
        if self._swapped:
            first = self._swapped[0]
            raise ReleaseVerdict(
                f"vLLM 0.3.3 waits for ever here: nothing runs, and {first.request_id} needs"
                f" {first.host_blocks + 1} free blocks above the watermark of"
                f" {self.desk.watermark} to be swapped in,"
                f" {self.swaps.memory.device.num_free} are free"
            )
        if self._waiting:
            raise ProgressError(f"nothing runs and {self._waiting[0]!r} is not admitted")
        return ("arrivals",)
