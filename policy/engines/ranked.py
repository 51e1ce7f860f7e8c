"""Decides by one order over all requests: the ranked engine.

Who is first in order is served first, on the device as far as it goes; a request higher up displaces one
further down, whatever either is doing. The order (`policy/orders/`) gives the keys, the choices
(`policy/choices/`) nominate, and these thirteen rules, cited by number in the code, keep it safe:

 1. One total order over live requests: key, then arrival, then id. Nothing hangs on hash or dict order.
 2. Room is *free*, *coming* (it returns when a copy in flight ends) or *reserved* (promised to a load or
    a prefill that has begun). Only free room is given out. What a victim has on the host already is
    free at once, what must be copied first is coming.
 3. Where coming room covers what is missing, it is waited for, and nobody else is parked.
 4. Victims are parked only if together they cover all that is missing: the last in order first, never
    one who is first needed there, is shielded, or is being loaded. Blocks that others hold too are
    not counted.
 5. Who first finds no room ends the line: nobody behind may take room that it could use later. Those
    behind that decode, or hold all they need, go on.
 6. Who comes to the device needs room for its whole context and one step more, not for a first chunk.
 7. A load holds room for the prefill behind it too. Those that hold blocks and do not run go on first.
 8. Nobody is parked and brought back in one plan, and nothing is loaded in the place of what was just
    stored for its sake.
 9. The leader, the first in order that is on the device, is no victim: so somebody always ends.
10. Parked so many times (`max_parkings`), a request is shielded until it has made a quantum of tokens.
11. Who cannot fit even alone is rejected: on arrival, or when it has grown too long. Who was parked
    with tokens made comes back, if alone, into the room that admission keeps free too.
12. A plan that runs nothing says what it waits on. With requests live and nothing to wait for it is an
    error, raised with the reasons.
13. Host room is made before a swap is granted. Without it a victim recomputes.

A system may switch rules 9 and 10 off (`System.rules_off`). Rules 3 to 5 are `target.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from policy.choices.displacement import Place
from policy.choices.movement import BACKUPS
from policy.choices.shape import SHAPES, Shape
from policy.desk import Rank, rank_of
from policy.engines.ahead import make_ahead
from policy.engines.base import ALWAYS, Event, Until
from policy.engines.draft import Draft
from policy.engines.merged import Merged
from policy.engines.room import Room, blocks_missing, blocks_needed, floor_of
from policy.engines.swapping import Parts, SwapEngine
from policy.engines.target import Bounds, Target, choose_target
from policy.errors import ConfigError, ProgressError
from policy.plan import Plan
from policy.pools.prefix import SharedBlock
from policy.request import Request, RequestState


class RankedEngine(SwapEngine):
    """See the module. Batch shapes, displacement, overlap, movement and the rest are the system's."""

    name = "ranked"

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        options, settings = parts.system.options, parts.desk.settings
        if options.shape == "chunked" and settings.max_num_batched_tokens <= settings.max_num_seqs:
            raise ConfigError(
                f"limits.max_num_batched_tokens: {settings.max_num_batched_tokens} is not above"
                f" max_num_seqs {settings.max_num_seqs}; under shape chunked every decode takes a token"
                " of it, and prompts what is left"
            )
        self._shape = SHAPES[options.shape]
        self._ahead = make_ahead(self.swaps)
        self._unmet = False  # somebody in the target set waits for room or for the next prefill
        #: What a plan's end depends on whatever it is: see Until.
        backups = BACKUPS.get(options.movement)
        self._until = Until(
            room=settings.low_blocks if options.movement == "proactive" else 0,
            as_blocks_fill=backups is not None and not backups.is_lazy,
        )

    def enter(self, request: Request) -> None:
        """A new turn: refused at once if it can never be served (rule 11)."""
        super().enter(request)
        tokens = request.num_tokens
        limit = self._shape.longest_prompt(self.desk.settings)
        if tokens > limit:
            self.swaps.reject(request, f"prompt of {tokens} tokens, limit {limit}")

    def decide(self) -> tuple[Plan, Until]:
        """One plan from the present state, and until when deciding again would change nothing.

        Room that comes back changes nothing by itself, since the target set counts it while it is
        coming; unless somebody in that set has not been admitted, or work ahead of need is left.
        """
        draft = Draft()
        target, shielded = self._displace(draft)
        self._clear_growth(draft)
        self._admit(target, draft)
        step = self._end_of_shields(target, shielded)
        ahead = self._ahead
        if ahead is not None:
            if ahead.act(self._residents, draft):
                self._unmet = True  # who was put out stands elsewhere in the next choice
            if ahead.wake_step is not None:
                step = min(ahead.wake_step, step or ahead.wake_step)
        plan = self._finish(draft)
        events = ALWAYS
        is_unsettled = self._unmet or (ahead is not None and ahead.is_behind)
        if is_unsettled or not (self.desk.running or self.desk.prefilling):
            events |= Event.PLANNED | Event.STORED
        return plan, self._until._replace(events=events, step=step)

    def _displace(self, draft: Draft) -> tuple[Target, list[Request]]:
        """Choose who should be on the device, and take off it who makes way. Returns the choice and who
        was shielded from it."""
        swaps = self.swaps
        swaps.retire_ended(draft)
        shielded = swaps.shielded()
        target = self._target(shielded)
        while target.never:
            self._refuse(target.never)
            shielded = swaps.shielded()
            target = self._target(shielded)
        swaps.flush(draft)
        waited = swaps.overlap.waits_for_stores
        for request in target.victims:
            swaps.preempt(request, draft, waited=waited)
        swaps.retire_idle(self._wanted(target), draft)
        return target, shielded

    def _finish(self, draft: Draft) -> Plan:
        """What runs in the plan, after all its commands."""
        desk, swaps = self.desk, self.swaps
        if draft.prefill and not self._shape.decodes_beside:
            return draft.finish(None)
        growing = desk.growing()
        if len(growing) > swaps.memory.device.num_available:
            return draft.finish(None, () if draft.prefill else self._loads_in_the_way())
        batch = desk.standing_batch()
        if growing:
            swaps.grow(growing)
        runs = batch is not None or draft.prefill
        return draft.finish(batch, () if runs else self._why_idle(draft))

    # ------------------------------------------------------------------ who

    def _refuse(self, hopeless: list[Request]) -> None:
        desk, swaps = self.desk, self.swaps
        for request in hopeless:
            blocks = swaps.memory.blocks_for(request.num_tokens + 1)
            swaps.reject(
                request,
                f"{request.num_tokens} tokens and one more need {blocks} blocks; the device has"
                f" {swaps.settings.device_blocks} and keeps {desk.watermark} free",
            )

    def _target(self, shielded: list[Request]) -> Target:
        desk, swaps = self.desk, self.swaps
        memory, settings = swaps.memory, desk.settings
        bounds = Bounds(
            memory.device.num_blocks,
            desk.watermark,
            memory.num_soon + sum(context.device_blocks for context in swaps.idle_device),
            len(desk.growing()),
            settings.block_size,
            settings.max_num_seqs,
            swaps.sharing,
            swaps.options.protects_leader,
            None if swaps.displacement.by_rank else self._place,
            0 if self._ahead is None else self._ahead.headroom,
        )
        return choose_target(self._standing(), swaps.residents, shielded, bounds)

    def _standing(self) -> Iterable[Request]:
        """The live requests in the order in which they are served."""
        desk, swaps = self.desk, self.swaps
        if swaps.displacement.by_rank:
            return desk.ranked
        return Merged(self._residents(), desk.ranked, self._place)

    def _residents(self) -> list[Request]:
        """Those of them that hold device memory."""
        swaps = self.swaps
        place = rank_of if swaps.displacement.by_rank else self._place
        return sorted(swaps.residents, key=place)

    def _place(self, request: Request) -> tuple[Place, Rank]:
        """Where a request stands, the order and who may displace whom put together."""
        return (self.swaps.displacement.key(request), request.rank)

    def _wanted(self, target: Target) -> int:
        desk, size = self.desk, self.desk.settings.block_size
        wanted = len(desk.growing()) + (desk.watermark if target.incoming else 0)
        return wanted + sum(blocks_missing(request, size) for request in target.incoming)

    # ------------------------------------------------------------------ room

    def _clear_growth(self, draft: Draft) -> None:
        """If this step's growth must come from blocks that are being copied out, wait for those
        copies, oldest first, and for no other."""
        desk, swaps = self.desk, self.swaps
        memory = swaps.memory
        growth = len(desk.growing())
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
        desk, swaps = self.desk, self.swaps
        ready, loading = self._with_room(target, draft)
        self._unmet = not target.is_final or len(ready) + len(loading) < len(target.incoming)
        if swaps.sharing is not None and target.head_of_line is not None:
            self._unmet = True  # once what is computed now is shared, it may fit
        if target.victims and not swaps.displacement.by_rank:
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
                swaps.load(request, draft, waited=wait)
                if request.state is not RequestState.WAITING:
                    continue  # decoding again, or on its way
            if shape is None:
                shape = self._shape(swaps.settings, len(desk.running))
            tokens = self._prefill_tokens(request)
            granted = shape.grant(tokens, is_again=request.num_generated > 0) if is_open else 0
            if not granted:
                is_open = False
                self._unmet = True
                continue
            if loads and request.context.device is None:
                swaps.load(request, draft, waited=True)
            most = granted if shape.decodes_beside else None
            if not swaps.start_prefill(request, draft, most):
                is_open = False
                self._unmet = True
        if swaps.sharing is not None:
            swaps.sharing.tree.spare((), {})

    def _in_turn(self, target: Target, count: int) -> Sequence[Request]:
        """The first so many in the target's order; where the batch decodes beside prompts, those who only
        come back to it go first, since their tokens come first out of the step's budget."""
        found = target.incoming[:count]
        return sorted(found, key=_is_prompt) if self._shape.decodes_beside else found

    def _with_room(self, target: Target, draft: Draft) -> tuple[list[Request], list[Request]]:
        """Those that could be prefilled now, and those that must be loaded first."""
        desk, swaps = self.desk, self.swaps
        memory, sharing, settings = swaps.memory, swaps.sharing, desk.settings
        room = Room(
            memory.device.num_available - len(desk.growing()),
            settings.max_num_seqs - len(desk.running) - len(swaps.loading),
        )
        ready: list[Request] = []
        loading: list[Request] = []
        booked: dict[SharedBlock, None] = {}
        for request in target.incoming:
            context = request.context
            if draft.wait_for and memory.is_promised(context):
                break
            if sharing is not None and not sharing.can_use_host_copy(context):
                swaps.lose_host_copy(request, sharing)
            held = request.device_blocks
            if context.outgoing is not None:
                if not memory.can_keep(context, swaps.blocks_to_resume(request)):
                    break
                held = memory.kept_blocks(context)
            whole = blocks_needed(request, settings.block_size)
            need = max(0, whole - held)
            if sharing is not None:
                need -= sharing.blocks_for_nothing(context, booked)
            floor = 0
            if context.device is None:
                floor = floor_of(whole, settings.device_blocks, desk.watermark)
            if not room.fits(need, floor):
                break  # rule 5
            room.take(need)
            if sharing is not None:
                sharing.book(context, booked)
            if context.outgoing is not None or memory.is_to_load(context):
                loading.append(request)
            else:
                ready.append(request)
        return ready, loading

    def _choose_overlap(self, ready: int, loading: list[Request], draft: Draft) -> bool:
        desk, swaps = self.desk, self.swaps
        memory = swaps.memory
        blocks = 0
        for request in loading:
            blocks += memory.blocks_to_load(request.context)
        for flight in memory.in_flight.values():
            if not flight.to_host:
                blocks += flight.copy.num_blocks
        choice = swaps.overlap.choose(
            len(desk.running) + ready,
            len(loading),
            blocks * desk.rates.load_ns_per_block,
            desk.rates.step_ns,
        )
        draft.wait_cost, draft.overlap_cost = choice.wait_cost, choice.overlap_cost
        return choice.wait

    def _prefill_tokens(self, request: Request) -> int:
        return request.num_tokens - self.swaps.memory.present_tokens(request.context)

    # ------------------------------------------------------------------ idleness

    def _end_of_shields(self, target: Target, shielded: list[Request]) -> int | None:
        """While a shield keeps somebody out: the step in which the first shield ends."""
        desk, swaps = self.desk, self.swaps
        if not shielded or (target.head_of_line is None and not self._unmet):
            return None
        settings = desk.settings
        ends = [
            max(
                request.resident_since + settings.min_run_steps,
                desk.step + settings.token_quantum - request.num_tokens + request.parked_tokens
                if request.parkings >= settings.max_parkings
                else 0,
            )
            for request in shielded
            if request.is_resident and swaps.is_shielded(request)
        ]
        return max(desk.step + 1, min(ends)) if ends else None

    def _loads_in_the_way(self) -> tuple[str, ...]:
        """Loads hold the last free blocks and cannot be stopped: the batch waits for one to end,
        after which its request may be a victim."""
        loads = [f for f in self.swaps.memory.in_flight.values() if not f.to_host]
        if not loads:
            raise ProgressError("the batch cannot grow and no load is in the way")
        return tuple(f"copy {flight.copy.copy_id}" for flight in loads)

    def _why_idle(self, draft: Draft) -> tuple[str, ...]:
        """What an idle plan waits on. Raises ProgressError if that is nothing (rule 12)."""
        desk, swaps = self.desk, self.swaps
        if draft.acts:
            return ("the next plan",)
        in_flight = tuple(f"copy {copy_id}" for copy_id in swaps.memory.in_flight)
        if in_flight:
            return in_flight
        if desk.live:
            raise ProgressError(
                f"{len(desk.live)} requests are live, nothing runs and no copy is in flight:"
                f" first in order is {desk.ranked[0]!r},"
                f" {swaps.memory.device.num_available} device blocks available"
            )
        return ("arrivals",)


def _is_prompt(request: Request) -> bool:
    return request.state is RequestState.WAITING
