"""Where the KV of live requests is, and the moves they can make, under engines that swap.

Methods act; engines decide when (`ranked`, `vllm_033`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policy.choices.catalog import Decisions
from policy.choices.preemption import parking_of
from policy.desk import Desk, in_batch_order
from policy.engines.draft import Draft
from policy.memory.context import Context
from policy.memory.memory import Memory
from policy.memory.sharing import Sharing
from policy.memory.transfers import Transfer
from policy.plan import PreemptionMode
from policy.request import Move, Request, RequestState
from policy.systems import SwapOptions


class Swaps:
    """The requests of one desk and their contexts, on the device and on the host."""

    def __init__(
        self,
        desk: Desk,
        options: SwapOptions,
        memory: Memory,
        decisions: Decisions,
    ) -> None:
        self.desk = desk
        self.settings = desk.settings
        self.options = options
        self.memory = memory
        self.sharing = memory.sharing
        self.overlap = decisions.overlap
        self.displacement = decisions.displacement
        self.preemption = decisions.preemption
        self.residents: dict[Request, None] = {}  # live requests that hold device blocks
        self.loading: dict[Request, None] = {}  # a copy in flight brings their KV
        self._worn: dict[Request, None] = {}  # parked so often that rule 10 may shield them
        self.ended: list[Context] = []  # finished turns whose KV still awaits its copy out
        self.idle_device: dict[Context, None] = {}  # `keep_device`: idle, on the device only
        self._cancels: list[int] = []

    # ------------------------------------------------------------------ arrivals and departures

    def enter(self, request: Request) -> None:
        """A new turn: take its parent's context over and give it a rank."""
        ledger = self.memory.ledger
        context = ledger.take(request)
        if context is None:
            context = Context(request)
        else:
            self._take_over(context, request)
        request.context = request.holding = context
        self.desk.enter(request)
        ledger.classify(context)
        if context.device is not None:
            self.residents[request] = None  # no place of its own yet, which a shield would guard

    def _take_over(self, context: Context, request: Request) -> None:
        """The parent's context is the request's as far as its prompt repeats it.

        One token at least is always computed, since it yields the first output token.
        """
        shared = request.input_tokens - 1
        if request.parent_prefix_tokens is not None:
            shared = min(shared, request.parent_prefix_tokens)
        self.idle_device.pop(context, None)
        context.owner = request
        self.memory.repeat(context, shared)

    def _forget(self, request: Request) -> None:
        """A request that has left the desk."""
        self.loading.pop(request, None)
        self._worn.pop(request, None)
        self.residents.pop(request, None)

    def reject(self, request: Request, why: str) -> None:
        """Give a request up, in the next plan made."""
        self.desk.reject(request, why)
        self._forget(request)
        self._cancels.extend(self.memory.abandon(request.context))

    def leave(self, request: Request, move: Move) -> None:
        """A request has finished or was cancelled. The KV of a finished turn stays, or goes, as the
        system says; otherwise all is free that no copy uses."""
        self.desk.leave(request, move)
        self._forget(request)
        context = request.context
        if move is Move.CANCEL:
            self._cancels.extend(self.memory.abandon(context))
            return
        self.memory.settle(context, request.num_tokens - 1)
        self._cancels.extend(self.memory.stop_backup(context))
        mode = self.options.between_turns
        if mode == "drop" or request.is_last_turn:
            self.memory.abandon(context)
        else:
            self.memory.ledger.keep(context)
            if mode == "keep_device":
                self.idle_device[context] = None
            else:
                self.ended.append(context)

    def flush(self, draft: Draft) -> None:
        """Rejections and cancelled copies since the last plan."""
        self.desk.flush_rejects(draft)
        if self._cancels:
            in_flight = self.memory.in_flight  # one may have ended with the step that stopped it
            draft.cancel.extend(copy_id for copy_id in self._cancels if copy_id in in_flight)
            self._cancels.clear()

    # ------------------------------------------------------------------ between turns

    def retire_ended(self, draft: Draft) -> None:
        """Copy the KV of turns that ended to the host; a next turn may have taken it meanwhile."""
        for context in self.ended:
            if not context.owner.is_live and context.device is not None:
                self.retire(context, draft)
        self.ended.clear()

    def retire(self, context: Context, draft: Draft) -> None:
        """Take an idle conversation off the device: to the host if that has room, else lost."""
        memory = self.memory
        self.idle_device.pop(context, None)
        memory.prepare_to_leave(context)
        wanted = memory.host_blocks_wanted(context)
        if memory.ledger.make_room(wanted, context, at_any_cost=False):
            waited = self.overlap.waits_for_stores
            copy = memory.copy_out(context, self.desk.now_ns, waited=waited)
            draft.add_store(copy, waited=waited)
        else:
            memory.drop_device(context)
            memory.ledger.forget_if_empty(context)

    def retire_idle(self, wanted: int, draft: Draft, *, only_to_host: bool = False) -> None:
        """Idle conversations on the device give way until `wanted` blocks are free or about to be, the
        one served last first. `only_to_host`: none is lost, so until one finds no room there."""
        if not self.idle_device:
            return
        memory = self.memory
        memory.ledger.rank_idle()
        idle = sorted(self.idle_device, key=lambda context: context.owner.rank)
        while idle and memory.num_soon < wanted:
            context = idle.pop()
            if only_to_host and not self.fits_host(context, context.device_tokens):
                return
            self.retire(context, draft)

    def fits_host(self, context: Context, tokens: int) -> bool:
        """Whether the host has room for so many tokens of it, at the cost of nobody who ranks before it."""
        memory = self.memory
        kept = 0 if context.host is None else len(context.host.blocks)
        wanted = memory.blocks_for(tokens) - context.host_base - kept
        return memory.ledger.make_room(wanted, context, at_any_cost=False)

    def grow(self, growing: Mapping[Request, None]) -> None:
        """Give each of them a block, in batch order; room must be available."""
        ordered: Iterable[Request] = in_batch_order(growing) if len(growing) > 1 else growing
        holders = []
        for request in ordered:
            device = request.context.device
            assert device is not None
            holders.append(device)
        self.memory.device.grow(holders, self.settings.growth_group - 1)

    def room_left(self) -> int:
        """Device blocks free, or pending, once the batch has grown by this step's tokens."""
        return self.memory.num_soon - len(self.desk.growing())

    # ------------------------------------------------------------------ onto and off the device

    def start_prefill(self, request: Request, draft: Draft, most: int | None = None) -> bool:
        """Prefill what of the context is not on the device, in this step `most` tokens of it (None:
        all); whether that is all. Room for the whole context must be available, and is held from
        the first chunk on (rule 6)."""
        context = request.context
        tokens = request.num_tokens
        blocks = self.memory.blocks_for(tokens)
        self.memory.hold(context, blocks, max(0, self.settings.initial_group - blocks))
        self._settle_in(request)
        if request.num_generated == 0 and not request.is_begun:
            request.cached_tokens = context.device_tokens
        left = tokens - context.device_tokens
        count = left if most is None else min(most, left)
        draft.prefill.append((request.request_id, count))
        self.desk.prefilling[request] = context.device_tokens + count
        request.move(Move.PREFILL)
        return count == left

    def load(self, request: Request, draft: Draft, *, waited: bool) -> None:
        """Bring the request's KV back: keep it if it is still leaving, else copy it in.

        A load holds the blocks for the prefill behind it too (rule 7). One that the step waits for
        ends as if it had never been away.
        """
        memory = self.memory
        context = request.context
        blocks = self.blocks_to_resume(request)
        if context.outgoing is not None:
            cancelled, copy = memory.keep_source(context, blocks, self.desk.now_ns, waited=waited)
            draft.cancel.append(cancelled)
        else:
            copy = memory.load(context, blocks, self.desk.now_ns, 0, waited=waited)
        self._settle_in(request)
        if copy is not None:
            draft.add_load(copy, waited=waited)
        if copy is None or waited:
            self._on_device(request)
        else:
            request.move(Move.LOAD)
            self.loading[request] = None

    def lose_host_copy(self, request: Request, sharing: Sharing) -> None:
        """What its host copy continues is gone: the request recomputes."""
        sharing.count_lost(request.context)
        self.memory.ledger.drop(request.context)
        if request.state is RequestState.SWAPPED:
            request.move(Move.RECOMPUTE)

    def blocks_to_resume(self, request: Request) -> int:
        """Blocks that `load` makes a request hold."""
        ahead = 0 if request.state is RequestState.WAITING else 1
        return self.memory.blocks_for(request.num_tokens - ahead)

    def loaded(self, request: Request) -> None:
        """A load that no step waited for has ended well."""
        del self.loading[request]
        if self._is_complete(request):
            self._on_device(request)
        else:
            request.move(Move.LOADED)

    def _on_device(self, request: Request) -> None:
        if request.state is not RequestState.WAITING:
            request.move(Move.RESUME)
            self.desk.join_batch(request)

    def _is_complete(self, request: Request) -> bool:
        return request.num_generated > 0 and request.context.device_tokens >= request.num_tokens - 1

    def _settle_in(self, request: Request) -> None:
        if request not in self.residents or request.resident_since < 0:
            self.residents[request] = None
            request.resident_since = self.desk.step

    def preempt(self, request: Request, draft: Draft, *, waited: bool) -> PreemptionMode:
        """Take a request off the device, by swap if that is decided and the host has room."""
        memory = self.memory
        context = request.context
        self._count_parking(request)
        if request.is_decoding:
            self.desk.leave_batch(request)
            memory.settle(context, request.num_tokens - 1)
        self.residents.pop(request, None)
        draft.cancel.extend(memory.stop_backup(context))
        memory.prepare_to_leave(context)
        mode = PreemptionMode.RECOMPUTE
        if (
            context.device_tokens
            and self._swaps(request, waited=waited)
            and self._has_host_room(context, draft)
        ):
            mode = PreemptionMode.SWAP
            copy = memory.copy_out(context, self.desk.now_ns, waited=waited)
            draft.add_store(copy, waited=waited)
            request.move(Move.SWAP_OUT)
        else:  # rule 13: no host room means recompute, never an exception
            memory.drop_device(context)
            request.move(Move.RECOMPUTE)
        draft.preempt.append((request.request_id, mode))
        return mode

    def _swaps(self, request: Request, *, waited: bool) -> bool:
        """What is decided; but a host copy of all that was generated is not disowned, since the load
        that brings it back leaves nothing to prefill."""
        context = request.context
        if request.num_generated and context.host_tokens >= request.num_tokens - 1:
            return True
        costs = parking_of(
            context, self.memory, self.desk.rates, len(self.desk.running), waits=waited
        )
        return self.preemption.swaps(costs)

    def _has_host_room(self, context: Context, draft: Draft) -> bool:
        """Make host room for a victim; backups under way give way, so that what they add to may go."""
        memory = self.memory
        wanted = memory.host_blocks_wanted(context)
        at_any_cost = self.preemption.at_any_cost
        if memory.ledger.make_room(wanted, context, at_any_cost=at_any_cost):
            return True
        backups = memory.backups()
        if not backups:
            return False
        for backup in backups:
            assert backup.context is not None
            draft.cancel.extend(memory.stop_backup(backup.context))
        return memory.ledger.make_room(wanted, context, at_any_cost=at_any_cost)

    def _count_parking(self, request: Request) -> None:
        tokens = request.num_tokens
        if tokens - request.parked_tokens >= self.settings.token_quantum:
            request.parkings = 0
            self._worn.pop(request, None)
        request.parkings += self.options.caps_parkings
        if request.parkings == self.settings.max_parkings:
            self._worn[request] = None
        request.parked_tokens = tokens
        request.num_preemptions += 1

    def shielded(self) -> list[Request]:
        """Residents that are no victims: being loaded, or protected by `is_shielded`."""
        suspects = self.residents if self.settings.min_run_steps else self._worn
        found = list(self.loading)
        found += [
            request
            for request in suspects
            if request.is_resident
            and request.state is not RequestState.LOADING
            and self.is_shielded(request)
        ]
        return found

    def is_shielded(self, request: Request) -> bool:
        """Not a victim yet: too short on the device, or parked too often without progress. Who has only
        taken over what its parent left is none of these: several of them could fill the device, and
        none could run."""
        settings, since = self.settings, request.resident_since
        return (since >= 0 and self.desk.step - since < settings.min_run_steps) or (
            request.parkings >= settings.max_parkings
            and request.num_tokens - request.parked_tokens < settings.token_quantum
        )

    # ------------------------------------------------------------------ copies

    def copy_ended(self, flight: Transfer, *, ok: bool) -> bool:
        """Move the request whose KV a copy carried, if anybody still wants it.

        True if the request lost KV with the copy and must recompute.
        """
        context = flight.context
        if context is None:
            return False
        request = context.owner
        if not request.is_live:
            self.memory.ledger.forget_if_empty(context)
            return False
        if ok:
            if not flight.to_host and not flight.is_waited:
                self.loaded(request)
            return False
        if request.is_decoding:
            self.desk.leave_batch(request)
            self.memory.settle(context, 0)
        if context.device is None:
            self.residents.pop(request, None)
        if request.state is RequestState.WAITING:
            return False
        self.loading.pop(request, None)
        request.move(Move.RECOMPUTE)
        return True
