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

from policy.engines.draft import Draft, PrefillShape
from policy.errors import ProgressError, ReleaseVerdict
from policy.plan import Plan, PreemptionMode
from policy.request import Request, RequestState
from policy.state import State


def _arrival(request: Request) -> int:
    return request.arrival_ns


class ReleasePlanner:
    """Waiting, running and swapped queues as in the release; ties keep queue order."""

    #: Every running request must find a free block, whether it needs one or not.
    strict_growth = True
    wake_step: int | None = None

    def __init__(self, state: State) -> None:
        self._state = state
        self._waiting: deque[Request] = deque()
        self._swapped: list[Request] = []

    def enter(self, request: Request) -> None:
        """A new turn joins the back of the waiting queue."""
        self._state.enter(request)
        self._waiting.append(request)

    def leave(self, request: Request) -> None:
        """A request was cancelled."""
        if request in self._waiting:
            self._waiting.remove(request)
        elif request in self._swapped:
            self._swapped.remove(request)

    def requeue(self, request: Request) -> None:
        """A copy failed: recompute, from the front of the waiting queue as after a preemption."""
        self.leave(request)
        self._waiting.appendleft(request)

    #: Every step with a command in it may be followed by a different decision.
    is_settled = False

    def decide(self) -> Plan:
        """One plan: a prefill-only step if anybody can be admitted, else a decode step."""
        state = self._state
        draft = Draft()
        state.retire_ended(draft)
        admitted = [] if self._swapped else self._admit()
        if self._park_holders(draft, admitted) and not (self._swapped or admitted):
            admitted = self._admit()
        for request in admitted:
            context = request.context
            if context.device is None and context.host_tokens:
                state.load(request, draft, waited=True)
            state.start_prefill(request, draft)
        state.flush(draft)
        if draft.prefill or draft.reject:
            draft.prefill.sort()
            return draft.finish(None)
        preempted = self._decode(draft)
        if not preempted:
            self._swap_in(draft)
        batch = state.standing_batch(by_id=True)
        return draft.finish(batch, () if batch is not None else self._why_idle(draft))

    # ------------------------------------------------------------------ prefill

    def _admit(self) -> list[Request]:
        """Who leaves the waiting queue for a prefill now."""
        state = self._state
        settings = state.settings
        shape = PrefillShape(settings)
        free = state.memory.device.num_free
        admitted: list[Request] = []
        while self._waiting:
            request = self._waiting[0]
            tokens = request.num_tokens
            blocks = state.memory.blocks_for(tokens)
            why = self._never(tokens, blocks)
            if why is not None:
                self._waiting.popleft()
                state.reject(request, why)
                continue
            wanted = blocks - request.device_blocks
            if free - wanted < state.watermark:
                break
            if len(state.running) + len(admitted) + 1 > settings.max_num_seqs:
                break
            context = request.context
            if state.memory.is_promised(context):
                break
            if not shape.admits(tokens - max(context.device_tokens, context.host_tokens)):
                break
            admitted.append(self._waiting.popleft())
            free -= wanted
        return admitted

    def _never(self, tokens: int, blocks: int) -> str | None:
        settings = self._state.settings
        if tokens > settings.prompt_limit:
            return f"prompt of {tokens} tokens, limit {settings.prompt_limit}"
        if settings.device_blocks - blocks < self._state.watermark:
            return (
                f"{tokens} tokens need {blocks} blocks, the device has"
                f" {settings.device_blocks} and keeps {self._state.watermark} free"
            )
        return None

    def _park_holders(self, draft: Draft, admitted: list[Request]) -> bool:
        """`-keep`: a turn that arrived before its parent's KV left the device, and was not
        admitted, lets that KV go to the host now, as it would have a moment earlier.

        Before the admitted ones load, so that no store goes where a load of this plan still reads.
        Returns whether any device blocks came free.
        """
        state = self._state
        parked = False
        for request in list(state.residents):
            if request.state is RequestState.WAITING and request not in admitted:
                del state.residents[request]
                state.retire(request.context, draft)
                parked = True
        return parked

    # ------------------------------------------------------------------ decode

    def _decode(self, draft: Draft) -> bool:
        """A block for whoever needs one, the youngest making way; whether anybody had to."""
        state = self._state
        device = state.memory.device
        growing = state.growing()
        state.running.sort(key=_arrival)
        queue = deque(state.running)
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
                    state.grow({request: None})
        return preempted

    def _preempt(self, victim: Request, draft: Draft) -> None:
        state = self._state
        context = victim.context
        if state.system.preemption == "swap":
            state.memory.settle(context, victim.num_tokens - 1)
            wanted = state.memory.host_blocks_wanted(context)
            if not state.memory.ledger.make_room(wanted, context, at_any_cost=True):
                raise ReleaseVerdict(
                    f"vLLM 0.3.3 aborts its engine here: {victim.request_id} must be swapped out,"
                    f" {wanted} host blocks wanted, {state.memory.host.num_available} free"
                )
        mode = state.preempt(victim, draft, waited=True)
        if mode is PreemptionMode.SWAP:
            self._swapped.append(victim)
        else:
            self._waiting.appendleft(victim)

    def _swap_in(self, draft: Draft) -> None:
        """Oldest first, each with one block to spare above the watermark."""
        state = self._state
        settings = state.settings
        device = state.memory.device
        self._swapped.sort(key=_arrival)
        while self._swapped:
            request = self._swapped[0]
            room = device.num_free - request.host_blocks - 1
            if room < state.watermark or len(state.running) >= settings.max_num_seqs:
                break
            del self._swapped[0]
            state.load(request, draft, waited=True)
            if request in state.growing():
                state.grow({request: None})

    def _why_idle(self, draft: Draft) -> tuple[str, ...]:
        if draft.acts:
            return ("the next plan",)
        if self._swapped:
            first = self._swapped[0]
            raise ReleaseVerdict(
                f"vLLM 0.3.3 waits for ever here: nothing runs, and {first.request_id} needs"
                f" {first.host_blocks + 1} free blocks above the watermark of"
                f" {self._state.watermark} to be swapped in,"
                f" {self._state.memory.device.num_free} are free"
            )
        if self._waiting:
            raise ProgressError(f"nothing runs and {self._waiting[0]!r} is not admitted")
        return ("arrivals",)
