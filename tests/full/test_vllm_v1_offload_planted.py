"""A difference planted in any rule of V1's offloading is found by the comparison with the release."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from policy.engines import vllm_v1_offload
from policy.engines.v1_held import Held
from policy.engines.v1_host import Host, Share
from policy.engines.vllm_v1_offload import V1OffloadEngine
from policy.pools.chunk_eviction import Arc, Lru, Visit
from policy.pools.chunks import ChunkPool, Stored
from policy.request import Request
from tests.full.test_vllm_v1_offload import compare_runs, vllm  # noqa: F401

MOST = 300  # runs until it must be found

pytestmark = pytest.mark.full


def o1(patch: pytest.MonkeyPatch) -> None:
    """Replies are stored, whatever the system says."""
    original = Host.__init__

    def made(self: Host, *args: Any, **named: Any) -> None:
        original(self, *args, **named)
        self._prompts_only = not self._prompts_only

    patch.setattr(Host, "__init__", made)


def o1_key(patch: pytest.MonkeyPatch) -> None:
    """A chunk is called what its first block is."""
    patch.setattr(Host, "name", lambda self, request, c: request.block_names[c * self._per_chunk])


def o2(patch: pytest.MonkeyPatch) -> None:
    """What somebody else is loading is loaded once more.

    That nobody is looked up who has copies under way cannot be seen: a victim's are waited for (O9).
    """
    original = Host.match

    def match(self: Host, share: Share, found: int) -> int | None:
        loading, self._loading = self._loading, {}
        try:
            return original(self, share, found)
        finally:
            self._loading = loading

    patch.setattr(Host, "match", match)


def o2_pending(patch: pytest.MonkeyPatch) -> None:
    """What is still being stored is a miss."""
    original = ChunkPool.is_ready
    patch.setattr(ChunkPool, "is_ready", lambda self, name: original(self, name) or None)


def o3(patch: pytest.MonkeyPatch) -> None:
    """A load leaves nothing for what is under way."""
    original = V1OffloadEngine._load_fits

    def fits(self: V1OffloadEngine, request: Request, hits: list[int], end: int) -> bool:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self, "partial", {})
            inner.setattr(self, "_loading", {})
            return original(self, request, hits, end)

    patch.setattr(V1OffloadEngine, "_load_fits", fits)


def o4(patch: pytest.MonkeyPatch) -> None:
    """Who is loaded waits behind the others."""
    original = V1OffloadEngine._admit

    def admit(self: V1OffloadEngine, budget: int, cap: int) -> None:
        loaded = [r for r in list(self.holding) if r not in self._loading]
        if loaded and len(self.waiting) and len(self.running) % 2:
            for request in loaded:
                self.holding.remove(request)
            original(self, budget, cap)
            self.holding.restore(loaded)
        else:
            original(self, budget, cap)

    patch.setattr(V1OffloadEngine, "_admit", admit)


def o5(patch: pytest.MonkeyPatch) -> None:
    """What was loaded gets no names."""

    def arrive(self: V1OffloadEngine, held: Held) -> None:
        held.num_named = max(held.num_named, held.computed // self._size)
        if held.computed == held.request.num_tokens:
            held.computed -= 1

    patch.setattr(V1OffloadEngine, "_arrive", arrive)


def o6(patch: pytest.MonkeyPatch) -> None:
    """After a new admission nothing is offered again."""
    original = Host.match

    def match(self: Host, share: Share, found: int) -> int | None:
        before = share.offered
        more = original(self, share, found)
        share.offered = before
        return more

    patch.setattr(Host, "match", match)


def o7(patch: pytest.MonkeyPatch) -> None:
    """What was offered may give way too."""
    original = Lru.evict
    patch.setattr(Lru, "evict", lambda self, count, _protected: original(self, count, {}))


def o7_whole(patch: pytest.MonkeyPatch) -> None:
    """As much of an offer as there is room for is stored."""
    original = ChunkPool.begin_store

    def begin(self: ChunkPool, names: Any, positions: Any, visit: Visit) -> Stored | None:
        found = original(self, names, positions, visit)
        if found is None and len(names) > 1:
            return original(self, names[:1], positions[:1], visit)
        return found

    patch.setattr(ChunkPool, "begin_store", begin)


def o8(patch: pytest.MonkeyPatch) -> None:
    """What a request saw is not ranked anew when it ends."""
    patch.setattr(Lru, "ended", lambda *_: None)


def o8_tail(patch: pytest.MonkeyPatch) -> None:
    """Of one request the head goes first."""
    patch.setattr(Visit, "tail_first", lambda self: sorted(self.seen, key=self.seen.__getitem__))


def o9(patch: pytest.MonkeyPatch) -> None:
    """A victim's stores are not waited for."""
    original = V1OffloadEngine._copies

    def copies(self: V1OffloadEngine, draft: Any) -> None:
        lost, self._lost = self._lost, []
        original(self, draft)
        self._lost = lost

    patch.setattr(V1OffloadEngine, "_copies", copies)


def o10(patch: pytest.MonkeyPatch) -> None:
    """Stores of who has ended are not waited for."""
    patch.setattr(Host, "behind", lambda *_: ())


def l2(patch: pytest.MonkeyPatch) -> None:
    """Who ended is gone through by id alone."""
    patch.setattr(vllm_v1_offload, "_arrival", lambda gone: gone.share.request.request_id)


PLANTED = (o1, o1_key, o2, o2_pending, o3, o4, o5, o6, o7, o7_whole, o8, o8_tail, o9, o10, l2)


@pytest.fixture
def planted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    request.param(monkeypatch)


@pytest.mark.parametrize("planted", PLANTED, indirect=True, ids=lambda plant: plant.__name__)
@pytest.mark.usefixtures("planted")
def test_a_planted_difference_is_found(vllm: Any) -> None:  # noqa: F811
    # A difference may also stop our side, which has laws that the release has not.
    with pytest.raises((AssertionError, LookupError, ValueError, RuntimeError)):
        compare_runs(vllm, range(MOST), "lru")


def arc_promotion(patch: pytest.MonkeyPatch) -> None:
    """A chunk moves to the second list without having been used again."""
    original = Arc.ended

    def ended(self: Arc, visit: Visit) -> None:
        visit.reused.update(visit.inserted)
        original(self, visit)

    patch.setattr(Arc, "ended", ended)


def arc_learning(patch: pytest.MonkeyPatch) -> None:
    """Nothing is learnt from what was lost."""
    patch.setattr(Arc, "missed", lambda *_: None)


Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.mark.parametrize(
    "planted", [arc_promotion, arc_learning], indirect=True, ids=lambda plant: plant.__name__
)
@pytest.mark.usefixtures("planted")
def test_a_difference_planted_in_arc_is_found(vllm: Any) -> None:  # noqa: F811
    with pytest.raises(AssertionError, match="seed"):
        compare_runs(vllm, range(MOST), "arc")
