"""A difference planted in any of V1's rules is found by the comparison with the release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policy.engines import v1_holdings
from policy.engines.v1_held import Held
from policy.engines.v1_queue import Arrivals, ByRank
from policy.engines.vllm_v1 import V1Engine
from policy.pools.named import NamedPool
from policy.request import Request
from tests.full.test_vllm_v1 import compare_runs, vllm  # noqa: F401
from tests.helpers.vllm_v1_release import ReleaseDriver

MOST = 400  # runs until it must be found

pytestmark = pytest.mark.full

Plant = Callable[[pytest.MonkeyPatch], None]


def r1(patch: pytest.MonkeyPatch) -> None:
    """The watermark does not count block 0."""
    original = V1Engine.__init__

    def made(self: V1Engine, parts: Any) -> None:
        original(self, parts)
        self._watermark = int(self.settings.watermark * self.settings.device_blocks)

    patch.setattr(V1Engine, "__init__", made)


def r2(patch: pytest.MonkeyPatch) -> None:
    """Named blocks are handed out freed last first."""
    original = NamedPool.take

    def take(self: NamedPool, count: int) -> list[int]:
        self._named = type(self._named)(reversed(self._named.items()))
        taken = original(self, count)
        self._named = type(self._named)(reversed(self._named.items()))
        return taken

    patch.setattr(NamedPool, "take", take)


def r3(patch: pytest.MonkeyPatch) -> None:
    """Blocks are freed first to last."""
    original = NamedPool.free
    patch.setattr(NamedPool, "free", lambda self, blocks: original(self, list(blocks)[::-1]))


def r4(patch: pytest.MonkeyPatch) -> None:
    """Blocks of prompts are named once they are computed."""
    hold, name, computed = V1Engine._hold, V1Engine._name, V1Engine.computed

    def held(self: V1Engine, one: Held, tokens: int) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(V1Engine, "_name", lambda *_: None)
            hold(self, one, tokens)

    def done(self: V1Engine, request: Request, tokens: int) -> None:
        computed(self, request, tokens)
        name(self, self.held[request], tokens)

    patch.setattr(V1Engine, "_hold", held)
    patch.setattr(V1Engine, "computed", done)


def r5(patch: pytest.MonkeyPatch) -> None:
    """A block equal to another gets no name."""
    original = NamedPool.name_block

    def name_block(self: NamedPool, block: int, name: Any) -> None:
        if not self.holds(name):
            original(self, block, name)

    patch.setattr(NamedPool, "name_block", name_block)


def r6(patch: pytest.MonkeyPatch) -> None:
    """Decodes cost nothing of the budget."""
    original = V1Engine._serve_all
    patch.setattr(
        V1Engine,
        "_serve_all",
        lambda self, budget, cap: original(self, budget, cap) + len(self.desk.running),
    )


def r7(patch: pytest.MonkeyPatch) -> None:
    """The cap holds for who is alone too."""
    patch.setattr(V1Engine, "_cap", lambda self: self.settings.long_prefill_token_threshold)


def r8(patch: pytest.MonkeyPatch) -> None:
    """The blocks of a whole prompt are taken at once."""
    original = V1Engine._hold

    def hold(self: V1Engine, held: Held, tokens: int) -> None:
        original(self, held, tokens)
        more = self._blocks(held.request.num_tokens) - len(held.blocks)
        held.blocks += self.device.take(min(max(more, 0), self.device.num_free))

    patch.setattr(V1Engine, "_hold", hold)
    patch.setattr("policy.engines.v1_holdings.check_laws", lambda _: None)


def r9(patch: pytest.MonkeyPatch) -> None:
    """Of equal ones the last admitted goes."""
    patch.setattr(
        V1Engine,
        "_victim",
        lambda self, running: (
            max(running, key=lambda held: (held.request.rank[:2], held.place))
            if self.by_priority
            else running[-1]
        ),
    )


def r9_fcfs(patch: pytest.MonkeyPatch) -> None:
    """The first admitted goes."""
    original = V1Engine._victim
    patch.setattr(
        V1Engine,
        "_victim",
        lambda self, running: original(self, running) if self.by_priority else running[0],
    )


def r10(patch: pytest.MonkeyPatch) -> None:
    """A victim's tokens are lost to the budget."""
    patch.setattr(V1Engine, "_given_back", lambda *_: 0)


def r11(patch: pytest.MonkeyPatch) -> None:
    """A victim goes to the back of the queue."""
    patch.setattr(Arrivals, "put_back", Arrivals.add)


def r12(patch: pytest.MonkeyPatch) -> None:
    """A victim is first in the heap."""
    add = ByRank.add

    def put_back(self: ByRank, request: Request) -> None:
        add(self, request)
        count = self._entry[request]
        self._heap = [
            (((-1,), *rank[1:]) if number == count else rank, number, one)
            for rank, number, one in self._heap
        ]
        self._heap.sort()

    patch.setattr(ByRank, "put_back", put_back)


def r13(patch: pytest.MonkeyPatch) -> None:
    """Two tokens at least are computed."""
    original = V1Engine._lookup

    def lookup(self: V1Engine, request: Request) -> list[int]:
        return original(self, request)[: (request.num_tokens - 2) // self._size]

    patch.setattr(V1Engine, "_lookup", lookup)


def r14(patch: pytest.MonkeyPatch) -> None:
    """A step that preempted admits."""
    patch.setattr(V1Engine, "_may_admit", lambda _: True)


def r15(patch: pytest.MonkeyPatch) -> None:
    """The watermark holds when nobody runs too."""
    original = V1Engine._has_room

    def has_room(self: V1Engine, request: Request, hits: list[int], tokens: int) -> bool:
        if self.running:
            return original(self, request, hits, tokens)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self, "running", {None: None})
            return original(self, request, hits, tokens)

    patch.setattr(V1Engine, "_has_room", has_room)


def r16(patch: pytest.MonkeyPatch) -> None:
    """The chunk alone must fit."""
    original = ReleaseDriver.config

    def config(self: ReleaseDriver, *args: Any, **named: Any) -> Any:
        made = original(self, *args, **named)
        made.scheduler_config.scheduler_reserve_full_isl ^= True
        return made

    patch.setattr(ReleaseDriver, "config", config)


def r17(patch: pytest.MonkeyPatch) -> None:
    """Who is done frees by id."""
    patch.setattr(v1_holdings, "place", lambda held: held.request.request_id)
    patch.setattr(v1_holdings, "check_laws", lambda _: None)


PLANTED = (r1, r2, r3, r4, r5, r6, r7, r8, r9, r9_fcfs, r10, r11, r12, r13, r14, r15, r16, r17)


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.param(monkeypatch)


@pytest.mark.parametrize("planted", PLANTED, indirect=True, ids=lambda plant: plant.__name__)
@pytest.mark.usefixtures("planted")
def test_a_planted_difference_is_found(vllm: Any) -> None:  # noqa: F811
    with pytest.raises(AssertionError, match="seed"):
        compare_runs(vllm, range(MOST))
