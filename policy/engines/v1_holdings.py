"""What V1 holds for whom: its queues, and blocks with names (rules R4, R8, R17 of docs/vllm_v1.md).

What it decides is `vllm_v1`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from policy.engines.base import Levels
from policy.engines.swapping import Parts
from policy.engines.v1_held import Held, in_order, place
from policy.engines.v1_laws import check_laws, check_seats, state_of
from policy.engines.v1_queue import Arrivals, ByRank, Queue
from policy.engines.v1_watch import Watch
from policy.errors import InvariantError
from policy.orders.base import Order
from policy.plan import CopyResult, PreemptionMode
from policy.pools.allocation import Pool
from policy.pools.named import NamedPool
from policy.pools.named_runs import NamedRuns
from policy.request import Move, Request


class V1Holdings:
    """`running` and `partial` are in order of admission; `partial` are those of it that do not
    decode. A subclass decides."""

    name = "vllm-v1"

    def __init__(self, parts: Parts) -> None:
        desk = parts.desk
        settings = desk.settings
        self.desk = desk
        self.settings = settings
        self.caches = parts.system.options.prefix_sharing  # the release's enable_prefix_caching
        pool = NamedRuns if parts.system.options.allocator == "groups" else NamedPool
        self.device: NamedPool = pool("device", settings.device_blocks)
        self.by_priority = type(desk.order) is not Order
        self.waiting: Queue = ByRank() if self.by_priority else Arrivals()
        self.running: dict[Request, Held] = {}
        self.partial: dict[Request, Held] = {}
        self.held: dict[Request, Held] = {}
        self._size = settings.block_size
        # R1: the release counts its block that is never handed out.
        self._watermark = int(settings.watermark * (settings.device_blocks + 1))
        self._place = 0
        self._ended: list[Held] = []  # of the step before, in the machine's order
        self.found_tokens = self.looked_up_tokens = self.lost_tokens = 0
        self._blocked: Request | None = None  # who did not fit, and ended the scan
        self._joined = False  # the batch is not in order of admission any more
        self._watch = Watch()
        # Of the plan being made:
        self._chunks: dict[Request, int] = {}  # tokens of who does not decode, in order
        self._victims: list[tuple[str, PreemptionMode]] = []
        self._lost: list[tuple[str, int]] = []  # victims, and the tokens they lost
        self._found: list[tuple[str, int]] = []  # who was admitted, and the tokens found

    # ------------------------------------------------------------------ what happened

    def enter(self, request: Request) -> None:
        """See Engine. A prompt that leaves no room for a token is refused at the release's door."""
        request.holding = held = self.hold_nothing(request)
        self.desk.enter(request)
        limit = self.settings.max_model_len - 1
        if request.input_tokens > limit:
            self.desk.reject(request, f"prompt of {request.input_tokens} tokens, limit {limit}")
            return
        self.held[request] = held
        self.waiting.add(request)
        self._watch.stirred()

    def hold_nothing(self, request: Request) -> Held:
        """What is kept of a request that arrives."""
        return Held(request)

    def leave(self, request: Request, move: Move) -> None:
        """See Engine."""
        held = self.held[request]
        if request not in self.running:
            self.waiting.remove(request)
        elif move is Move.FINISH:
            self._stop(held)
            self._ended.append(held)
        else:
            self._catch_up()
            self._stop(held)
            self.device.free(reversed(held.blocks))
        del self.held[request]
        self.desk.leave(request, move)
        self._watch.stirred()

    def _stop(self, held: Held) -> None:
        """It does not run any more."""
        request = held.request
        del self.running[request]
        if request.is_decoding:
            self.desk.leave_batch(request)
            held.computed = request.num_tokens - 1
        else:
            del self.partial[request]

    def _catch_up(self) -> None:
        """What the step before filled gets its names (R4: nobody has looked since), and who was done
        with it frees its blocks (R17), both in the order in which the step served them."""
        filled = self.desk.growing()
        ended = self._ended
        if ended:
            ended.sort(key=place)
            for held in sorted([*ended, *[self.running[r] for r in filled]], key=place):
                self._name(held, held.request.num_tokens - 1)
            for held in ended:
                self.device.free(reversed(held.blocks))
            ended.clear()
        else:
            self._name_filled(in_order(filled))

    def ranks_changed(self) -> None:
        """See Engine."""
        self.waiting.keys_changed()

    def computed(self, request: Request, tokens: int) -> None:
        """See Engine. R17: who has computed all it has gets a token, and decodes from now on."""
        self.running[request].computed = tokens
        if tokens == request.num_tokens:
            del self.partial[request]
            self._joined = True

    def copy_ended(self, result: CopyResult) -> int:
        """See Engine. Nothing is copied."""
        raise InvariantError(f"copy {result.copy_id} ended, and {self.name} copies nothing")

    # ------------------------------------------------------------------ blocks and names

    def grow(self, growing: Mapping[Request, None]) -> None:
        """See Engine. What the step before filled gets its name now: nobody looked since (R4)."""
        ordered = in_order(growing)
        self._name_filled(ordered)
        self._begin_blocks(ordered)

    def _begin_blocks(self, growing: Iterable[Request]) -> None:
        """In order of admission, as the release: which blocks they are says how far copies run."""
        take = self.device.take
        for request in growing:
            blocks = self.running[request].blocks
            blocks += take(1, blocks[-1])

    def _name_filled(self, filled: Iterable[Request]) -> None:
        """Name what is full of these, who decode, in order of admission; this step's token included if
        it has a block."""
        if self.caches:
            for request in filled:
                held = self.running[request]
                self._name(held, min(request.num_tokens, len(held.blocks) * self._size))

    def _hold(self, held: Held, tokens: int) -> None:
        """R8: blocks for this chunk alone, and no watermark; R4: full ones are named at once."""
        self._chunks[held.request] = tokens
        end = held.computed + tokens
        need = self._blocks(end) - len(held.blocks)
        if need > 0:
            blocks = held.blocks
            blocks += self.device.take(need, blocks[-1] if blocks else None)
        self._name(held, end)

    def _name(self, held: Held, tokens: int) -> None:
        """R4: full blocks of so many tokens have names, generated ones too."""
        if self.caches:
            full = tokens // self._size
            for index in range(held.num_named, full):
                self.device.name_block(held.blocks[index], held.request.block_names[index])
            held.num_named = max(full, held.num_named)

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self._size)

    def _lookup(self, request: Request) -> list[int]:
        """R13: whole blocks, and one token at least is computed."""
        if not self.caches:
            return []
        names = request.block_names
        limit = (request.num_tokens - 1) // self._size
        return self.device.find(map(names.__getitem__, range(limit)))

    def _room_for(self, hits: list[int], tokens: int) -> int:
        """Blocks that must be free to admit somebody with so many tokens."""
        # Blocks found that nobody holds are free now, and will not be.
        taken = self.device.num_idle(hits) - len(hits)
        if self.running:  # R15: whoever was admitted in this step runs
            taken += self._watermark
        return self._blocks(tokens) + taken

    # ------------------------------------------------------------------ what machines and people read

    @property
    def num_available(self) -> int:
        """See Engine."""
        return self.device.num_free

    @property
    def num_coming(self) -> int:
        """See Engine. Nothing is copied."""
        return 0

    def queues(self) -> tuple[Queue, ...]:
        """Where those are who do not run."""
        return (self.waiting,)

    @property
    def is_still(self) -> bool:
        """Nothing changes but by decisions."""
        return True

    def state(self) -> Hashable:
        """All that the next decisions depend on, if nobody comes or leaves."""
        return state_of(self)

    def tables(self) -> list[list[int]]:
        """The blocks of everybody who holds any."""
        return [held.blocks for held in (*self.held.values(), *self._ended)]

    def block_table(self, request_id: str) -> Sequence[int]:
        """See Engine."""
        return self.held[self.desk.live[request_id]].blocks

    def num_computed(self, request_id: str) -> int:
        """See Engine."""
        return self.held[self.desk.live[request_id]].computed

    def levels(self) -> Levels:
        """See Engine."""
        return Levels(self.device.num_free, 0)

    def pools(self) -> Sequence[tuple[Pool, int]]:
        """See Engine. Names, not places, are what matters here: nothing is aged."""
        return ()

    def facts(self) -> dict[str, Any]:
        """See Engine. `found_tokens` of `looked_up_tokens` (known to whoever was admitted) were here, of
        `lost_tokens` that preemptions threw away; `evicted_blocks` were handed out with a name on."""
        return {
            "prefixes": {
                "block_tokens": self.settings.prefix_block or self._size,
                "hit_tokens": self.found_tokens,
                "looked_up_tokens": self.looked_up_tokens,
                "evicted_tokens": self.device.num_evicted * self._size,
                "lost_tokens": self.lost_tokens,
            }
        }

    # ------------------------------------------------------------------ laws

    def check(self, *, full: bool) -> None:
        """See Engine."""
        check_seats(self)
        if full:
            check_laws(self)
