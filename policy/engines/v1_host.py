"""V1's native offloading connector, the scheduler's side: rules O1 to O10 of docs/vllm_v1.md.

What is stored on the host, what is looked up there, which copies are under way and which must be
waited for. The tier itself is `pools.chunks`; who is admitted when is `vllm_v1_offload`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from policy.engines.v1_held import Held
from policy.plan import Copy, Direction
from policy.pools.chunk_eviction import Arc, Lru, Visit
from policy.pools.chunks import ChunkPool
from policy.pools.named import Name
from policy.pools.runs import contiguous_runs
from policy.request import Request
from policy.settings import Settings
from policy.systems import SwapOptions


class Job(NamedTuple):
    """A copy under way: of whose, of which chunks, and from or to which device blocks."""

    share: Share
    names: tuple[Name, ...]
    blocks: tuple[int, ...]
    is_store: bool


class Share:
    """What the connector keeps of a request. `offered`: chunks from the first on that need not be
    offered (again); `retries`: the last offer found no room. `jobs`: its copies under way."""

    __slots__ = ("has_ended", "jobs", "offered", "request", "retries", "visit")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.offered = 0
        self.retries = False
        self.jobs: dict[int, Job] = {}
        self.visit = Visit()
        self.has_ended = False


class Host:
    """`stored`, `loaded`: blocks so far."""

    def __init__(self, settings: Settings, options: SwapOptions, *, caches: bool) -> None:
        per_chunk = settings.offload_chunk_blocks
        chunks = settings.host_blocks // per_chunk
        eviction = Arc(chunks) if options.host_eviction == "arc" else Lru()
        self.pool = ChunkPool(chunks, eviction)
        self.jobs: dict[int, Job] = {}
        self.stored = self.loaded = 0
        self._size = settings.block_size
        self._per_chunk = per_chunk
        self._prompts_only = options.offload == "prompt"
        self._caches = caches
        self._loading: dict[Name, None] = {}  # chunks being loaded, where blocks are found by name
        self._fenced: dict[
            int, dict[int, None]
        ] = {}  # block of who has ended -> stores that read it
        #: Stores to be submitted with the next plan, when what they read is computed.
        self.due: list[Copy] = []
        self._next_id = 0

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a chunk."""
        return self._size * self._per_chunk

    def name(self, request: Request, chunk: int) -> Name:
        """O1: a chunk is called what its last block is."""
        return request.block_names[(chunk + 1) * self._per_chunk - 1]

    # ------------------------------------------------------------------ loads

    def match(self, share: Share, found: int) -> int | None:
        """O2: tokens behind those found on the device that can be loaded. None: ask again later, since
        copies of it are under way, or one of these chunks is still being stored, or being loaded by
        somebody else. O6: from here on everything is offered again."""
        share.offered = 0
        if share.jobs:
            return None
        size = self.chunk_tokens
        last = share.request.num_tokens // size
        first = found // size
        if last * size - found < size:
            return 0
        count, waits = 0, False
        for chunk in range(first, last):
            ready = self.pool.is_ready(self.name(share.request, chunk))
            if ready is None:
                break
            count += 1
            waits |= not ready
        if waits:
            return None
        tokens = (first + count) * size - found
        if not count or tokens < size:
            return 0
        names = [self.name(share.request, chunk) for chunk in range(first, first + count)]
        if any(name in self._loading for name in names):
            return None
        return tokens

    def load(self, share: Share, held: Held, found: int, end: int) -> Copy:
        """O3: bring what stands between `found` and `end` into its blocks."""
        per = self._per_chunk
        first, last = found // self._size, -(-end // self._size)
        chunks = range(first // per, -(-end // self.chunk_tokens))
        names = [self.name(share.request, chunk) for chunk in chunks]
        positions = [(chunk + 1) * self.chunk_tokens for chunk in chunks]
        slots = self.pool.begin_load(names, positions, share.visit)
        share.offered = chunks.stop
        blocks = held.blocks[first:last]
        host = [slots[i // per - chunks.start] * per + i % per for i in range(first, last)]
        self.loaded += len(blocks)
        if self._caches:
            for name in names:
                self._loading[name] = None
        return self._start(share, names, blocks, host, is_store=False)

    # ------------------------------------------------------------------ stores

    def storable(self, request: Request, tokens: int, blocks: int) -> int:
        """O6: chunks of so many tokens, of which so many blocks are known; replies only where they are
        stored too (O1)."""
        if self._prompts_only:
            tokens = min(tokens, request.input_tokens)
        return min(tokens // self.chunk_tokens, blocks // self._per_chunk)

    def offer(self, share: Share, tokens: int, blocks: list[int]) -> int | None:
        """O6, O7: store what is new of so many tokens; the copy's id, if there is one."""
        count = self.storable(share.request, tokens, len(blocks))
        share.retries = False
        if count <= share.offered:
            return None
        per = self._per_chunk
        chunks = range(share.offered, count)
        names = [self.name(share.request, chunk) for chunk in chunks]
        positions = [(chunk + 1) * self.chunk_tokens for chunk in chunks]
        stored = self.pool.begin_store(names, positions, share.visit)
        if stored is None:
            share.retries = True
            return None
        share.offered = count
        if not stored.names:
            return None
        slot_of = dict(zip(stored.names, stored.slots, strict=True))
        device, host = [], []
        for chunk, name in zip(chunks, names, strict=True):
            if name in slot_of:
                device += blocks[chunk * per : (chunk + 1) * per]
                host += [slot_of[name] * per + i for i in range(per)]
        self.stored += len(device)
        copy = self._start(share, stored.names, device, host, is_store=True)
        self.due.append(copy)
        return copy.copy_id

    def _start(
        self, share: Share, names: list[Name], device: list[int], host: list[int], *, is_store: bool
    ) -> Copy:
        copy = Copy(
            self._next_id,
            Direction.TO_HOST if is_store else Direction.TO_DEVICE,
            share.request.request_id,
            tuple(contiguous_runs(device, host)),
            len(device),
        )
        self._next_id += 1
        job = Job(share, tuple(names), tuple(device), is_store)
        self.jobs[copy.copy_id] = share.jobs[copy.copy_id] = job
        return copy

    # ------------------------------------------------------------------ the ends of copies and requests

    def ended(self, copy_id: int, *, ok: bool) -> Job:
        """A copy has ended."""
        job = self.jobs.pop(copy_id)
        del job.share.jobs[copy_id]
        if job.is_store:
            self.pool.end_store(job.names, ok=ok)
            for block in job.blocks:
                fence = self._fenced.get(block)
                if fence is not None and copy_id in fence:
                    del fence[copy_id]
                    if not fence:
                        del self._fenced[block]
            return job
        self.pool.end_load(job.names)
        if self._caches:
            for name in job.names:
                del self._loading[name]
        return job

    def fence(self, copy_ids: Iterable[int]) -> None:
        """O10: whoever they read for has ended, and its blocks may be handed out."""
        for copy_id in copy_ids:
            job = self.jobs[copy_id]
            if job.is_store:
                for block in job.blocks:
                    self._fenced.setdefault(block, {})[copy_id] = None

    @property
    def has_fences(self) -> bool:
        """A block that is handed out may have to be waited for."""
        return bool(self._fenced)

    def behind(self, block: int) -> Iterable[int]:
        """O10: stores that still read a block whose owner has ended."""
        return self._fenced.get(block, ())
