"""V1 with its native offloading connector: rules O2 to O10 of docs/vllm_v1.md around those of V1.

Who is looked up on the host, who waits for a load, and which copies a step starts or waits for.
Copies and chunks are `v1_host`. Compared with the release in tests/full/test_vllm_v1_offload.py.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from policy.engines.base import Event, Levels, Until
from policy.engines.draft import Draft
from policy.engines.swapping import Parts
from policy.engines.v1_held import Held, place_of
from policy.engines.v1_host import Host, Share
from policy.engines.v1_queue import Arrivals, ByRank, Queue
from policy.engines.vllm_v1 import EVENTS, V1Engine
from policy.plan import Copy, CopyResult, Plan
from policy.request import Move, Request


class Gone:
    """A request that has ended since the last decision: what of it may still be stored."""

    def __init__(self, share: Share, tokens: int, blocks: list[int]) -> None:
        self.share = share
        self.tokens = tokens
        self.blocks = blocks


class V1OffloadEngine(V1Engine):
    """`holding`: those that hold blocks and do not run, since a load is or was under way (O4)."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self.host = Host(self.settings, parts.system.options, caches=self.caches)
        self.holding: Queue = ByRank() if self.by_priority else Arrivals()
        self._stores_replies = parts.system.options.offload == "all"
        self._shares: dict[Request, Share] = {}
        self._loading: dict[Request, int] = {}  # whose blocks a copy fills -> the copy
        self._orphans: dict[int, Held] = {}  # copies whose request was cancelled
        self._gone: list[Gone] = []
        self._touched: list[list[int]] = []  # tables of those admitted or loading in this step
        self._loads: list[Copy] = []

    # ------------------------------------------------------------------ what happened

    def enter(self, request: Request) -> None:
        """See Engine."""
        super().enter(request)
        if request in self.held:
            self._shares[request] = Share(request)

    def leave(self, request: Request, move: Move) -> None:
        """See Engine."""
        held, share = self.held[request], self._shares.pop(request)
        blocks = list(held.blocks) if request in self.running else []
        if request in self.running or held.blocks:
            computed = request.num_tokens - 1 if request.is_decoding else held.computed
        else:
            computed = 0
        if move is Move.FINISH:  # O6: the last token sampled has no KV
            computed = max(request.input_tokens, request.num_tokens - 1)
        share.has_ended = True
        self.host.fence(share.jobs)
        self._gone.append(Gone(share, computed, blocks))
        if request not in self.running and held.blocks:
            self.holding.remove(request)
            copy_id = self._loading.pop(request, None)
            if copy_id is None:
                self._catch_up()
                self.device.free(reversed(held.blocks))
            else:
                self._orphans[copy_id] = held
            self.waiting.add(request)  # the base takes it out again
        super().leave(request, move)

    def ranks_changed(self) -> None:
        """See Engine."""
        super().ranks_changed()
        self.holding.keys_changed()

    def copy_ended(self, result: CopyResult) -> int:
        """See Engine. O5: a loaded request is admitted without being looked up again."""
        job = self.host.ended(result.copy_id, ok=result.ok)
        if job.is_store:
            return Event.STORED if result.ok else Event.LOST
        request = job.share.request
        orphan = self._orphans.pop(result.copy_id, None)
        if orphan is not None:
            self._catch_up()
            self.device.free(reversed(orphan.blocks))
        else:
            del self._loading[request]
            if not result.ok:
                self._forget_load(self.held[request])
        return Event.LOADED

    def _forget_load(self, held: Held) -> None:
        """A load failed: nothing is there, and the request waits as one that never began."""
        self.device.free(reversed(held.blocks))
        held.blocks = []
        held.computed = held.num_named = 0
        self.holding.remove(held.request)
        self.waiting.put_back(held.request)

    # ------------------------------------------------------------------ who is admitted

    def _admit(self, budget: int, cap: int) -> None:
        """R14, O4: those that hold blocks come first; O2: some are passed over in this step."""
        running, seats = self.running, self.settings.max_num_seqs
        passed: list[Request] = []
        passed_holding: list[Request] = []
        while budget > 0 and len(running) < seats:
            queue = self.holding if len(self.holding) else self.waiting
            if not len(queue):
                break
            request = queue.first()
            held = self.held[request]
            if request in self._loading:
                passed_holding.append(queue.pop())
                continue
            if held.blocks:
                self._arrive(held)
                tokens = self._chunk(held, budget, cap)
                if not self._holder_fits(held, held.computed + tokens):
                    self._blocked = None
                    break
            else:
                hits = self._lookup(request)
                found = len(hits) * self._size
                more = self.host.match(self._shares[request], found)
                if more is None:
                    passed.append(queue.pop())
                    continue
                held.computed = found
                if more:
                    if not self._load_fits(request, hits, found + more):
                        held.computed = 0
                        self._blocked = request
                        break
                    self._begin_load(held, hits, found + more)
                    passed_holding.append(queue.pop())
                    continue
                tokens = self._chunk(held, budget, cap)
                if not self._has_room(request, hits, found + tokens):
                    held.computed = 0
                    self._blocked = request
                    break
                self.device.share(hits)
                held.blocks = hits
                held.num_named = len(hits)
            queue.pop()
            self._seat(held)
            self._hold(held, tokens)
            self._touched.append(held.blocks)
            budget -= tokens
        self.holding.restore(passed_holding)
        self.waiting.restore(passed)

    def _arrive(self, held: Held) -> None:
        """O5: what was loaded has names now; if it is all, one token is computed again."""
        self._name(held, held.computed)
        if held.computed == held.request.num_tokens:
            held.computed -= 1

    def _holder_fits(self, held: Held, tokens: int) -> bool:
        """R15, R16 for who holds blocks already."""
        if self.settings.reserve_full_isl:
            tokens = max(tokens, held.request.num_tokens)
        watermark = self._watermark if self.running else 0
        need = max(0, self._blocks(tokens) - len(held.blocks))
        return need + watermark <= self.device.num_free

    def _load_fits(self, request: Request, hits: list[int], end: int) -> bool:
        """O3: the hit beside what prefills and loads under way still need; all of it without that."""
        device = self.device
        taken = device.num_idle(hits) - len(hits) + (self._watermark if self.running else 0)
        if (
            self.settings.reserve_full_isl
            and self._blocks(request.num_tokens) + taken > device.num_free
        ):
            return False
        holders = [self.held[one] for one in dict.fromkeys([*self.holding, *self._loading])]
        holders += [held for held in self.partial.values() if not held.is_stalled]
        needed = sum(
            max(0, self._blocks(held.request.num_tokens) - len(held.blocks)) for held in holders
        )
        return self._blocks(end) + taken <= device.num_free - needed

    def _begin_load(self, held: Held, hits: list[int], end: int) -> None:
        """O3: blocks for the whole hit at once; no seat, no names yet."""
        found = held.computed
        self.device.share(hits)
        held.num_named = len(hits)
        held.blocks = hits + self.device.take(self._blocks(end) - len(hits))
        held.computed = end
        copy = self.host.load(self._shares[held.request], held, found, end)
        self._loads.append(copy)
        self._loading[held.request] = copy.copy_id
        self._touched.append(held.blocks)

    # ------------------------------------------------------------------ copies of a step

    def decide(self) -> tuple[Plan, Until]:
        """See Engine."""
        self._touched, self._loads = [], []
        return super().decide()

    def _copies(self, draft: Draft) -> None:
        """Start what is due, offer what is new, and wait for what reads blocks that change hands."""
        host, desk = self.host, self.desk
        flush: dict[int, None] = {}
        for name, _ in self._lost:  # O9
            share = self._shares[desk.live[name]]
            flush.update(dict.fromkeys(share.jobs))
        taken = self._taken() if host.has_fences or self._gone else {}
        for block in taken:  # O10
            flush.update(dict.fromkeys(host.behind(block)))
        due, host.due = host.due, []
        for request in self._offering():
            held = self.held[request]
            tokens = request.num_tokens
            if not request.is_decoding:
                tokens = held.computed + self._chunks[request]
            host.offer(self._shares[request], tokens, held.blocks)
        for gone in sorted(self._gone, key=_arrival):
            copy_id = host.offer(gone.share, gone.tokens, gone.blocks)
            if copy_id is not None:
                host.fence([copy_id])
                if any(block in taken for block in host.jobs[copy_id].blocks):
                    flush[copy_id] = None
        for gone in sorted(self._gone, key=_arrival):
            host.pool.end_visit(gone.share.visit)
        self._gone.clear()
        idle = not self._chunks and not desk.running
        draft.to_host += due + [copy for copy in host.due if idle or copy.copy_id in flush]
        host.due = [] if idle else [copy for copy in host.due if copy.copy_id not in flush]
        draft.to_device += self._loads
        draft.wait_for += sorted(flush)

    def _offering(self) -> list[Request]:
        """Of those who run in this step, who may have a new chunk; in the order in which they run."""
        found = dict.fromkeys(self._chunks)
        if self._stores_replies:
            found.update(dict.fromkeys(self.desk.filling()))
        found.update(dict.fromkeys([r for r in self.desk.running if self._shares[r].retries]))
        return sorted(found, key=place_of)

    def _taken(self) -> dict[int, None]:
        """Blocks that those who run got in this step, or share from it on."""
        found: dict[int, None] = {}
        for request in self.desk.growing():
            found[self.held[request].blocks[-1]] = None
        for request in self._chunks:
            held = self.held[request]
            found.update(dict.fromkeys(held.blocks[self._blocks(held.computed) :]))
        for blocks in self._touched:
            found.update(dict.fromkeys(blocks))
        return found

    def _until(self) -> Until:
        host = self.host
        events = EVENTS | Event.STORED
        if host.due or any(self._shares[request].retries for request in self.desk.running):
            events |= Event.MADE
        step = self._next_find()
        if self._stores_replies:
            fill = self.desk.next_fill()
            if fill is not None:
                step = fill if step is None else min(step, fill)
        return Until(events, step, as_blocks_fill=host.has_fences)

    def _why_idle(self, plan: Plan) -> tuple[str, ...]:
        if plan.copies or self.host.due:
            return ("the next plan",)
        if self.host.jobs:
            return (f"copy {min(self.host.jobs)}",)
        return super()._why_idle(plan)

    # ------------------------------------------------------------------ what others read

    def queues(self) -> tuple[Queue, ...]:
        """See V1Holdings."""
        return (self.holding, self.waiting)

    @property
    def is_still(self) -> bool:
        """See V1Holdings."""
        return not self.host.jobs

    def tables(self) -> list[list[int]]:
        """See V1Holdings."""
        return super().tables() + [held.blocks for held in self._orphans.values()]

    def levels(self) -> Levels:
        """See Engine."""
        free = self.host.pool.num_free * self.settings.offload_chunk_blocks
        return Levels(self.device.num_free, free)

    def facts(self) -> dict[str, Any]:
        """See Engine. Blocks stored on the host and loaded from there, chunks that gave way."""
        host = self.host
        offload = {
            "stored_blocks": host.stored,
            "loaded_blocks": host.loaded,
            "evicted_chunks": host.pool.num_evicted,
        }
        return {**super().facts(), "offload": offload}

    def state(self) -> Hashable:
        """See V1Holdings."""
        return (super().state(), self.host.pool.state())

    def check(self, *, full: bool) -> None:
        """See Engine."""
        super().check(full=full)
        if full:
            self.host.pool.check()


def _arrival(gone: Gone) -> tuple[int, str]:
    request = gone.share.request
    return request.arrival_ns, request.request_id
