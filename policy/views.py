"""What policies and machines may read: live objects behind read-only protocols, no copies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol


class RequestView(Protocol):
    """A request as a policy may see it. The true output length is not among these."""

    @property
    def request_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def client_id(self) -> str: ...
    @property
    def turn(self) -> int: ...
    @property
    def arrival_ns(self) -> int: ...
    @property
    def priority(self) -> int:
        """The workload's static priority, lower is more urgent."""

    @property
    def input_tokens(self) -> int: ...
    @property
    def num_tokens(self) -> int:
        """Prompt plus generated."""

    @property
    def num_generated(self) -> int: ...
    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV was there when it was first prefilled."""

    @property
    def is_resident(self) -> bool:
        """Holds device blocks."""

    @property
    def is_decoding(self) -> bool: ...
    @property
    def device_blocks(self) -> int: ...
    @property
    def host_blocks(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def resident_since(self) -> int:
        """The step in which it last got device memory; -1: it has had none but what its parent left."""

    @property
    def rank(self) -> tuple[tuple[int | float, ...], int, str]:
        """(key, arrival, id), the total order at the last refresh of keys."""


class BlockNames(Protocol):
    """What a request's blocks are called. Equal names mean equal tokens, and all before them alike."""

    def __getitem__(self, index: int, /) -> Hashable:
        """Of the block at `index`, whose tokens are known."""


class HostCopy(Protocol):
    """The host copy of an idle conversation, as a host eviction may see it."""

    @property
    def owner(self) -> RequestView:
        """The turn that left it."""

    @property
    def host_blocks(self) -> int: ...


class Tables(Protocol):
    """Block tables, read live by machines on the engine thread."""

    def block_table(self, request_id: str) -> Sequence[int]:
        """Device block ids of a resident request, in logical order. Do not keep or change it."""

    def num_tokens(self, request_id: str) -> int:
        """Tokens of the request: prompt plus generated."""

    def num_computed(self, request_id: str) -> int:
        """Tokens of a request in `Plan.prefill` that are in its blocks already. With the plan's count
        on top it has all its KV, and the step yields a token; or else that was a chunk."""


class Draw(Protocol):
    """Randomness, given from outside: a pure function, 64 uniform bits."""

    def __call__(self, purpose: str, name: str, k: int, /) -> int: ...
