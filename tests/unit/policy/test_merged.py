"""The order of service where who holds a place stands elsewhere than its rank says."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from policy.choices.displacement import DISPLACEMENTS
from policy.desk import rank_of
from policy.engines.merged import Merged
from policy.engines.target import leader_of
from policy.memory.context import Context
from policy.pools.paged import PagedPool
from policy.request import Request


def crowd(rng: random.Random, count: int, share: float) -> list[Request]:
    """Requests in order, some of which hold blocks for all of their tokens or for a few."""
    pool, found = PagedPool("device", 1000), []
    for number in range(count):
        request = Request(
            f"r{number}", arrival_ns=rng.randrange(3), input_tokens=rng.randrange(1, 9)
        )
        request.holding = request.context = Context(request)
        key = rng.choice([(), (rng.randrange(-3, 3),), (rng.randrange(-3, 3), rng.random())])
        request.rank = (key, request.arrival_ns, request.request_id)
        if rng.random() < share:
            request.context.device = pool.new()
            pool.allocate(request.context.device, rng.randrange(1, 3))
        found.append(request)
    return sorted(found, key=rank_of)


@pytest.mark.parametrize("name", ["gap", "never"])
@pytest.mark.parametrize("seed", range(30))
def test_merged_is_everybody_sorted_by_place(name: str, seed: int) -> None:
    displacement = DISPLACEMENTS[name](2.0, 4)
    ranked = crowd(random.Random(seed), 40, seed / 30)

    def place(request: Request) -> tuple[object, ...]:
        return (displacement.key(request), request.rank)

    residents = sorted((r for r in ranked if r.is_resident), key=place)
    merged = Merged(residents, ranked, place)
    assert list(merged) == sorted(ranked, key=place)
    assert next(iter(merged)) is min(ranked, key=place), "it can be begun again"


@pytest.mark.parametrize("behind", [0, 3, 30])
def test_the_leader_is_the_first_resident_however_many_wait_before_it(behind: int) -> None:
    ranked = crowd(random.Random(behind), behind + 9, 0.0)
    residents = crowd(random.Random(7), 3, 1.0)
    for number, request in enumerate(residents):
        request.rank = ((99 + number,), 0, request.request_id)
    by_rank: Callable[[Request], tuple[object, ...]] = rank_of
    assert leader_of(ranked + residents, residents[::-1], by_rank) is residents[0]
    assert leader_of(ranked, [], by_rank) is None
