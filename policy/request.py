"""One turn of a conversation as the scheduler knows it, and the table of its states."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from policy.errors import IllegalMove

if TYPE_CHECKING:
    from policy.memory.context import Context
    from policy.views import BlockNames


class RequestState(Enum):
    """Where a request is. `WAITING` means that tokens must be prefilled before it can decode."""

    WAITING = auto()
    LOADING = auto()  # a copy to the device is in flight and the step does not wait for it
    RUNNING = auto()  # being prefilled in this step, or in the decode batch
    SWAPPED = auto()  # all its KV is on the host, or on the way there
    FINISHED = auto()
    REJECTED = auto()
    CANCELLED = auto()


class Move(Enum):
    """What can happen to a request."""

    PREFILL = auto()
    LOAD = auto()
    LOADED = auto()  # the prefix has arrived; the rest must still be prefilled
    RESUME = auto()  # all KV is on the device again
    SWAP_OUT = auto()
    CHUNK = auto()  # a step computed a chunk of the prompt, and more of it is left
    RECOMPUTE = auto()
    FINISH = auto()
    REJECT = auto()
    CANCEL = auto()


_W, _L, _R, _S = (
    RequestState.WAITING,
    RequestState.LOADING,
    RequestState.RUNNING,
    RequestState.SWAPPED,
)

#: Every legal transition. Anything else raises IllegalMove and changes nothing.
TRANSITIONS: dict[tuple[RequestState, Move], RequestState] = {
    (_W, Move.PREFILL): _R,
    (_W, Move.LOAD): _L,
    (_S, Move.LOAD): _L,
    (_L, Move.LOADED): _W,
    (_L, Move.RESUME): _R,
    (_S, Move.RESUME): _R,
    (_R, Move.CHUNK): _W,
    (_R, Move.SWAP_OUT): _S,
    (_W, Move.SWAP_OUT): _W,  # a waiting turn gives up the prefix it holds on the device
    (_R, Move.RECOMPUTE): _W,
    (_W, Move.RECOMPUTE): _W,
    (_L, Move.RECOMPUTE): _W,  # its load failed
    (_S, Move.RECOMPUTE): _W,  # its host copy failed
    (_R, Move.FINISH): RequestState.FINISHED,
    (_W, Move.REJECT): RequestState.REJECTED,
    (_R, Move.REJECT): RequestState.REJECTED,
    (_S, Move.REJECT): RequestState.REJECTED,
    (_W, Move.CANCEL): RequestState.CANCELLED,
    (_L, Move.CANCEL): RequestState.CANCELLED,
    (_R, Move.CANCEL): RequestState.CANCELLED,
    (_S, Move.CANCEL): RequestState.CANCELLED,
}

LIVE_STATES = (_W, _L, _R, _S)


class DecodeClock:
    """Counts the steps in which the standing batch decoded.

    Every decoding request gains one token per count, so its length is `offset + clock.count` and
    nobody has to touch it in a step (docs/sources.md#lazy-counts).
    """

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Holding(Protocol):
    """What an engine holds for a request. A policy sees no more of it."""

    @property
    def device_blocks(self) -> int:
        """Blocks on the device."""

    @property
    def host_blocks(self) -> int:
        """Blocks on the host."""

    @property
    def is_resident(self) -> bool:
        """On the device, if only with no block yet."""


class OwnNames:
    """Of a request that repeats nobody's tokens, or does not know it."""

    __slots__ = ("_request_id",)

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Its own."""
        return self._request_id, index


class Request:
    """A request and everything the scheduler knows of it. Only the scheduler changes it.

    Policies see it through `views.RequestView`. Token counts:
    `num_tokens` is prompt plus generated; while decoding, KV exists for `num_tokens - 1` of them,
    because the last sampled token is computed by the next step.
    """

    __slots__ = (
        "_clock",
        "_tokens",
        "arrival_ns",
        "block_names",
        "block_names",
        "cached_tokens",
        "client_id",
        "context",
        "holding",
        "input_tokens",
        "is_begun",
        "is_last_turn",
        "num_preemptions",
        "offset",
        "parent_id",
        "parent_prefix_tokens",
        "parked_tokens",
        "parkings",
        "position",
        "prefix_keys",
        "priority",
        "rank",
        "request_id",
        "resident_since",
        "session_id",
        "state",
        "turn",
    )

    holding: Holding  #: what its engine holds for it, set when the request enters
    context: Context  #: the same, where the engine swaps

    def __init__(
        self,
        request_id: str,
        *,
        arrival_ns: int,
        input_tokens: int,
        session_id: str | None = None,
        turn: int = 1,
        client_id: str | None = None,
        parent_id: str | None = None,
        parent_prefix_tokens: int | None = None,
        priority: int = 0,
        is_last_turn: bool = False,
        prefix_keys: tuple[int | str, ...] = (),
        block_names: BlockNames | None = None,
    ) -> None:
        """`parent_prefix_tokens`: how much of the parent's context this prompt repeats; None: all.
        `is_last_turn`: the client has said that the conversation ends with it. `prefix_keys`: names
        of the prompt's full blocks (`Settings.prefix_block`); two prompts whose first n names are
        equal have the same tokens there. `block_names`: of the pool's blocks, generated ones too, for
        engines that find KV by name; None: shared with nobody.

        A request without a session is one of its own, and a session is its own client when no
        client is named.
        """
        self.request_id = request_id
        self.session_id = session_id if session_id is not None else request_id
        self.client_id = client_id if client_id is not None else self.session_id
        self.turn = turn
        self.arrival_ns = arrival_ns
        self.input_tokens = input_tokens
        self.parent_id = parent_id
        self.parent_prefix_tokens = parent_prefix_tokens
        self.priority = priority
        self.is_last_turn = is_last_turn
        self.prefix_keys = prefix_keys
        self.block_names = block_names or OwnNames(request_id)
        self.state = RequestState.WAITING
        #: (key, arrival, id): the total order of rule 1. The key is the order policy's.
        self.rank: tuple[tuple[int | float, ...], int, str] = ((), arrival_ns, request_id)
        self.cached_tokens = 0  # prompt tokens whose KV was there when it was first prefilled
        self.is_begun = False  # a chunk of the prompt has been computed, once
        self._tokens = input_tokens
        self._clock: DecodeClock | None = None
        self.offset = 0  # while decoding: num_tokens - clock.count
        self.position = 0  # index in the standing batch
        #: Step in which it last got device memory; -1: it has had none but what its parent left.
        self.resident_since = -1
        self.num_preemptions = 0
        self.parkings = 0  # since it last produced a token quantum (rule 10)
        self.parked_tokens = 0  # num_tokens when it was last parked

    def __repr__(self) -> str:
        return f"<{self.request_id} {self.state.name} {self.num_tokens} tokens>"

    @property
    def num_tokens(self) -> int:
        """Prompt plus generated tokens."""
        clock = self._clock
        return self._tokens if clock is None else self.offset + clock.count

    @property
    def num_generated(self) -> int:
        """Output tokens so far."""
        return self.num_tokens - self.input_tokens

    @property
    def is_decoding(self) -> bool:
        """In the standing batch."""
        return self._clock is not None

    @property
    def is_live(self) -> bool:
        """Neither finished, rejected nor cancelled."""
        return self.state in LIVE_STATES

    @property
    def device_blocks(self) -> int:
        """Blocks held on the device."""
        return self.holding.device_blocks

    @property
    def host_blocks(self) -> int:
        """Blocks held on the host."""
        return self.holding.host_blocks

    @property
    def is_resident(self) -> bool:
        """Holds device blocks (a policy's word for it: the GPU)."""
        return self.holding.is_resident

    def move(self, move: Move) -> None:
        """Take one transition of the table, or raise IllegalMove and change nothing."""
        target = TRANSITIONS.get((self.state, move))
        if target is None:
            raise IllegalMove(f"{self.request_id}: {move.name} is illegal in {self.state.name}")
        self.state = target

    def add_token(self) -> None:
        """The step that completed the prefill produced a token."""
        self._tokens += 1

    def start_decoding(self, clock: DecodeClock) -> None:
        """From now on every count of `clock` is one more token."""
        self.offset = self._tokens - clock.count
        self._clock = clock

    def stop_decoding(self) -> None:
        """Freeze the token count."""
        self._tokens = self.num_tokens
        self._clock = None

    def withhold_token(self) -> None:
        """The last count of the clock gave this request no token (its copy failed)."""
        self.offset -= 1
