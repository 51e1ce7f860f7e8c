"""Serves one request at a time, in order, to its end; its KV begins at block 0 and is never moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from policy.engines.base import Event, Levels, Until
from policy.engines.draft import Draft
from policy.engines.swapping import Parts
from policy.errors import InvariantError
from policy.plan import CopyResult, Plan
from policy.pools.allocation import Pool
from policy.request import Move, Request


class Held(NamedTuple):
    """What a request holds, as `policy.request.Holding` asks: nothing until it is served."""

    device_blocks: int = 0
    host_blocks: int = 0
    is_resident: bool = False


class OneAtATime:
    """See policy.engines.base.Engine."""

    name = "one-at-a-time"

    def __init__(self, parts: Parts) -> None:
        self.desk = parts.desk
        self._blocks = range(self.desk.settings.device_blocks)

    def enter(self, request: Request) -> None:
        request.holding = Held()
        self.desk.enter(request)
        if request.num_tokens > self.desk.settings.prompt_limit:
            self.desk.reject(request, "prompt is too long")

    def leave(self, request: Request, move: Move) -> None:
        self.desk.prefilling.pop(request, None)
        self.desk.leave(request, move)

    def ranks_changed(self) -> None:
        pass

    def computed(self, request: Request, tokens: int) -> None:
        pass

    def copy_ended(self, result: CopyResult) -> int:
        raise InvariantError(f"copy {result.copy_id} was never asked for")

    def decide(self) -> tuple[Plan, Until]:
        desk, draft = self.desk, Draft()
        for request in [
            r for r in desk.running if self._used(r.num_tokens + 1) > len(self._blocks)
        ]:
            desk.reject(request, "it has outgrown the device")
        if not desk.running and desk.ranked:
            request = desk.ranked[0]
            request.move(Move.PREFILL)
            request.holding = Held(self._used(request.num_tokens), is_resident=True)
            desk.prefilling[request] = request.num_tokens
            draft.prefill.append((request.request_id, request.num_tokens))
        desk.flush_rejects(draft)
        idle = () if desk.running or draft.prefill else ("arrivals",)
        return draft.finish(desk.standing_batch(), idle), Until(events=Event.LEFT | Event.ARRIVED)

    def grow(self, growing: Mapping[Request, None]) -> None:
        pass

    @property
    def num_available(self) -> int:
        return len(self._blocks) - sum(self._used(r.num_tokens) for r in self.desk.running)

    @property
    def num_coming(self) -> int:
        return 0

    def block_table(self, request_id: str) -> Sequence[int]:
        return self._blocks[: self._used(self.desk.live[request_id].num_tokens)]

    def num_computed(self, request_id: str) -> int:
        return 0

    def levels(self) -> Levels:
        return Levels(self.num_available, self.desk.settings.host_blocks)

    def pools(self) -> Sequence[tuple[Pool, int]]:
        return ()

    def facts(self) -> dict[str, Any]:
        return {"contaminated_blocks": 0}

    def check(self, *, full: bool) -> None:
        if len(self.desk.running) > 1:
            raise InvariantError("more than one request is served")

    def _used(self, tokens: int) -> int:
        return -(-tokens // self.desk.settings.block_size)
