"""The planner every system shares under any order but the release's own FCFS.

vLLM 0.3.3's batch shape (prefill-only steps) or another (`policy/choices/shape.py`), one order over waiting, swapped and running requests,
and the thirteen rules of policies.md 3.4. A higher request displaces a lower one; swapped requests
do not bar waiting ones; without host room a victim recomputes.
"""

from __future__ import annotations

from collections.abc import Sequence

from policy.choices.displacement import Place
from policy.choices.shape import SHAPES, Shape
from policy.engines.ahead import Ahead, make_ahead
from policy.engines.draft import Draft
from policy.engines.target import Room, Target, choose_target
from policy.errors import ProgressError
from policy.memory.context import Context
from policy.plan import Plan
from policy.pools.prefix import SharedBlock
from policy.request import Request, RequestState
from policy.state import Rank, State


class RulePlanner:
    """Decides for one state. `decide` is called only when something has changed."""

    #: A decoding request needs no free block beyond the one it grows by.
    strict_growth = False

    def __init__(self, state: State) -> None:
        self._state = state
        self._shape = SHAPES[state.system.shape]
        self.wake_step: int | None = None  # a shield that mattered ends in this step
        self._ahead = make_ahead(state)
        self._unmet = False  # somebody in the target set waits for room or for the next prefill

    def enter(self, request: Request) -> None:
        """A new turn: refused at once if it can never be served (rule 11)."""
        state = self._state
        settings = state.settings
        state.enter(request)
        tokens = request.num_tokens
        limit = self._shape.longest_prompt(settings)
        if tokens > limit:
            state.reject(request, f"prompt of {tokens} tokens, limit {limit}")

    def leave(self, request: Request) -> None:
        """A request was cancelled; this planner keeps no queue of its own."""

    def requeue(self, request: Request) -> None:
        """A copy failed and the request must recompute; its rank is its place."""

    @property
    def is_settled(self) -> bool:
        """Deciding again would change nothing until a request arrives or leaves, a load ends, ranks
        change or blocks run short. Room that comes back changes nothing either: the target set
        counts it while it is pending. Not settled: somebody named in it has not been admitted.
        """
        if self._unmet or (self._ahead is not None and self._ahead.is_behind):
            return False
        return bool(self._state.running or self._state.prefilling)

    def decide(self) -> Plan:
        """One plan from the present state."""
        state = self._state
        draft = Draft()
        state.retire_ended(draft)
        shielded = state.shielded()
        target = self._target(shielded)
        while target.never:
            self._refuse(target.never)
            shielded = state.shielded()
            target = self._target(shielded)
        state.flush(draft)
        waited = state.overlap.waits_for_stores
        for request in target.victims:
            state.preempt(request, draft, waited=waited)
        state.retire_idle(self._wanted(target), draft)
        self._clear_growth(draft)
        self._admit(target, draft)
        self._set_wake_step(target, shielded)
        if self._ahead is not None:
            self._act_ahead(self._ahead, draft)
        if draft.prefill and not self._shape.decodes_beside:
            return draft.finish(None)
        growing = state.growing()
        if len(growing) > state.memory.device.num_available:
            return draft.finish(None, () if draft.prefill else self._loads_in_the_way())
        batch = state.standing_batch()
        if growing:
            state.grow(growing)
        runs = batch is not None or draft.prefill
        return draft.finish(batch, () if runs else self._why_idle(draft))

    # ------------------------------------------------------------------ who

    def _refuse(self, hopeless: list[Request]) -> None:
        state = self._state
        for request in hopeless:
            blocks = state.memory.blocks_for(request.num_tokens + 1)
            state.reject(
                request,
                f"{request.num_tokens} tokens and one more need {blocks} blocks; the device has"
                f" {state.settings.device_blocks} and keeps {state.watermark} free",
            )

    def _target(self, shielded: list[Request]) -> Target:
        state = self._state
        memory = state.memory
        settings = state.settings
        device = memory.device
        coming = device.num_available + memory.pending_device + device.num_leaving
        for context in state.idle_device:
            coming += context_blocks(context)
        room = Room(
            device.num_blocks,
            state.watermark,
            coming,
            len(state.growing()),
            settings.block_size,
            settings.max_num_seqs,
            state.sharing,
            state.system.protects_leader,
            None if state.displacement.by_rank else self._place,
            0 if self._ahead is None else self._ahead.headroom,
        )
        return choose_target(self._standing(), state.residents, shielded, room)

    def _standing(self) -> Sequence[Request]:
        """The live requests in the order in which they are served."""
        state = self._state
        if state.displacement.by_rank:
            return state.ranked
        return sorted(state.ranked, key=self._place)

    def _place(self, request: Request) -> tuple[Place, Rank]:
        """Where a request stands, the order and who may displace whom put together."""
        return (self._state.displacement.key(request), request.rank)

    def _wanted(self, target: Target) -> int:
        state = self._state
        blocks_for = state.memory.blocks_for
        wanted = len(state.growing())
        for request in target.incoming:
            wanted += max(0, blocks_for(request.num_tokens + 1) - request.device_blocks)
        return wanted + (state.watermark if target.incoming else 0)

    # ------------------------------------------------------------------ room

    def _clear_growth(self, draft: Draft) -> None:
        """If this step's growth must come from blocks that are being copied out, wait for those
        copies, oldest first, and for no other."""
        state = self._state
        memory = state.memory
        growth = len(state.growing())
        if memory.device.num_available >= growth:
            return
        for flight in list(memory.in_flight.values()):
            if flight.to_host and flight.device is not None:
                memory.wait(flight)
                draft.wait_for.append(flight.copy.copy_id)
                if memory.device.num_available >= growth:
                    return

    # ------------------------------------------------------------------ admission

    def _admit(self, target: Target, draft: Draft) -> None:
        """Give free room to the named beneficiaries, in order; stop at the first without."""
        state = self._state
        ready, loading = self._with_room(target, draft)
        self._unmet = not target.is_final or len(ready) + len(loading) < len(target.incoming)
        if state.sharing is not None and target.head_of_line is not None:
            self._unmet = True  # once what is computed now is shared, it may fit
        if target.victims and not state.displacement.by_rank:
            self._unmet = True  # who was put out stands elsewhere in the next choice
        if not ready and not loading:
            return
        wait = True
        if loading:
            wait = self._choose_overlap(len(ready), loading, draft)
        shape: Shape | None = None
        is_open = True  # no prompt may pass one before it that did not fit the step
        for request in self._in_turn(target, len(ready) + len(loading)):
            is_prompt = _is_prompt(request)
            loads = request in loading
            if loads and not (is_prompt and wait):
                state.load(request, draft, waited=wait)
                if request.state is not RequestState.WAITING:
                    continue  # decoding again, or on its way
            if shape is None:
                shape = self._shape(state.settings, len(state.running))
            tokens = self._prefill_tokens(request)
            granted = shape.grant(tokens, is_again=request.num_generated > 0) if is_open else 0
            if not granted:
                is_open = False
                self._unmet = True
                continue
            if loads and request.context.device is None:
                state.load(request, draft, waited=True)
            most = granted if shape.decodes_beside else None
            if not state.start_prefill(request, draft, most):
                is_open = False
                self._unmet = True
        if state.sharing is not None:
            state.sharing.tree.spare((), {})

    def _in_turn(self, target: Target, count: int) -> Sequence[Request]:
        """The first so many in the target's order; where the batch decodes beside prompts, those who only
        come back to it go first, since their tokens come first out of the step's budget."""
        found = target.incoming[:count]
        return sorted(found, key=_is_prompt) if self._shape.decodes_beside else found

    def _with_room(self, target: Target, draft: Draft) -> tuple[list[Request], list[Request]]:
        """Those that could be prefilled now, and those that must be loaded first."""
        state = self._state
        memory = state.memory
        room = memory.device.num_available - len(state.growing())
        seats = state.settings.max_num_seqs - len(state.running) - len(state.loading)
        watermark = state.watermark
        ready: list[Request] = []
        loading: list[Request] = []
        sharing = state.sharing
        booked: dict[SharedBlock, None] = {}
        for request in target.incoming:
            context = request.context
            if draft.wait_for and memory.is_promised(context):
                break
            if sharing is not None:
                if not sharing.can_use_host_copy(context):
                    state.lose_host_copy(request, sharing)
                room += sharing.blocks_for_nothing(context, booked)
            need = memory.blocks_for(request.num_tokens + 1)
            held = request.device_blocks
            floor = 0 if context.device is not None else watermark
            if context.outgoing is not None:
                if not memory.can_keep(context, state.blocks_to_resume(request)):
                    break
                held = memory.kept_blocks(context)
            room -= max(0, need - held)
            seats -= 1
            if room < floor or seats < 0:
                break  # rule 5
            if sharing is not None:
                sharing.book(context, booked)
            if context.outgoing is not None or memory.is_to_load(context):
                loading.append(request)
            else:
                ready.append(request)
        return ready, loading

    def _choose_overlap(self, ready: int, loading: list[Request], draft: Draft) -> bool:
        state = self._state
        memory = state.memory
        blocks = 0
        for request in loading:
            blocks += memory.blocks_to_load(request.context)
        for flight in memory.in_flight.values():
            if not flight.to_host:
                blocks += flight.copy.num_blocks
        choice = state.overlap.choose(
            len(state.running) + ready,
            len(loading),
            blocks * state.rates.load_ns_per_block,
            state.rates.step_ns,
        )
        draft.wait_cost, draft.overlap_cost = choice.wait_cost, choice.overlap_cost
        return choice.wait

    def _prefill_tokens(self, request: Request) -> int:
        return request.num_tokens - self._state.memory.present_tokens(request.context)

    # ------------------------------------------------------------------ ahead of need

    def _act_ahead(self, ahead: Ahead, draft: Draft) -> None:
        if ahead.act(self._standing(), draft):
            self._unmet = True  # who was put out stands elsewhere in the next choice
        if ahead.wake_step is not None:
            self.wake_step = min(ahead.wake_step, self.wake_step or ahead.wake_step)

    # ------------------------------------------------------------------ idleness

    def _set_wake_step(self, target: Target, shielded: list[Request]) -> None:
        """While a shield keeps somebody out, decide again when the first shield ends."""
        state = self._state
        self.wake_step = None
        if not shielded or (target.head_of_line is None and not self._unmet):
            return
        settings = state.settings
        ends = [
            max(
                request.resident_since + settings.min_run_steps,
                state.step + settings.token_quantum - request.num_tokens + request.parked_tokens
                if request.parkings >= settings.max_parkings
                else 0,
            )
            for request in shielded
            if request.is_resident and state.is_shielded(request)
        ]
        if ends:
            self.wake_step = max(state.step + 1, min(ends))

    def _loads_in_the_way(self) -> tuple[str, ...]:
        """Loads hold the last free blocks and cannot be stopped: the batch waits for one to end,
        after which its request may be a victim."""
        loads = [f for f in self._state.memory.in_flight.values() if not f.to_host]
        if not loads:
            raise ProgressError("the batch cannot grow and no load is in the way")
        return tuple(f"copy {flight.copy.copy_id}" for flight in loads)

    def _why_idle(self, draft: Draft) -> tuple[str, ...]:
        """What an idle plan waits on. Raises ProgressError if that is nothing (rule 12)."""
        state = self._state
        if draft.acts:
            return ("the next plan",)
        in_flight = tuple(f"copy {copy_id}" for copy_id in state.memory.in_flight)
        if in_flight:
            return in_flight
        if state.live:
            raise ProgressError(
                f"{len(state.live)} requests are live, nothing runs and no copy is in flight:"
                f" first in order is {state.ranked[0]!r},"
                f" {state.memory.device.num_available} device blocks available"
            )
        return ("arrivals",)


def _is_prompt(request: Request) -> bool:
    return request.state is RequestState.WAITING


def context_blocks(context: Context) -> int:
    """Device blocks a context holds."""
    return 0 if context.device is None else len(context.device.blocks)
