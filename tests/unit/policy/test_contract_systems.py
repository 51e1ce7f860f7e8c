"""One suite for every system and every small decision; each way to break it is told in words."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from policy.choices.displacement import ByOrder
from policy.choices.host_eviction import HostEviction
from policy.choices.overlap import Adaptive, Choice
from policy.choices.preemption import ByCost, Parking
from policy.choices.rates import PrefillTime
from policy.choices.victim import Stake
from policy.contract import check_system, system_violations
from policy.contract import crowd as served
from policy.contract.systems import ORDERS
from policy.errors import ConfigError, InvariantError, ReleaseVerdict
from policy.plan import Plan
from policy.scheduler import Scheduler
from policy.systems import CHOICES, SYSTEMS, System
from policy.views import HostCopy, RequestView

FASTSWITCH = SYSTEMS["fastswitch"]


def made(system: System, switch: str) -> Any:
    """The choice that a system makes."""
    part = system.options if hasattr(system.options, switch) else system.transport
    return getattr(part, switch)


def catalogue() -> dict[str, System]:
    """Every named system, and every choice of every switch that none of them makes."""
    found = dict(SYSTEMS)
    for switch, choices in CHOICES.items():
        for choice in choices:
            if not any(made(system, switch) == choice for system in SYSTEMS.values()):
                changed: dict[str, Any] = {switch: choice}
                name = f"{switch}={choice}"
                found[name] = FASTSWITCH.but(name, **changed)
    return found


CATALOGUE = catalogue()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_system_and_every_choice_keeps_the_contract(name: str) -> None:
    check_system(CATALOGUE[name])


def test_the_catalogue_leaves_no_choice_out() -> None:
    for switch, choices in CHOICES.items():
        assert {made(system, switch) for system in CATALOGUE.values()} == set(choices)
    assert len(CATALOGUE) > len(SYSTEMS)


def test_every_decision_is_asked_and_the_host_is_short() -> None:
    """The suite would be worth little if nobody had to decide."""
    asked: set[str] = set()

    class Eviction(HostEviction):
        def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> list[HostCopy]:
            asked.add("nominate")
            return list(copies)

        def returned(self, request: RequestView, *, hit: bool) -> None:
            asked.add(f"hit {hit}")

        def given_up(self, owner: RequestView, blocks: int) -> None:
            asked.add("given up")

    class Mode(ByCost):
        def swaps(self, parking: Parking) -> bool:
            asked.add(f"swaps {super().swaps(parking)}")
            return super().swaps(parking)

    check_system(FASTSWITCH, eviction=lambda: Eviction(48), preemption=Mode, displacement=Backwards)
    assert asked == {"nominate", "hit True", "hit False", "given up", "swaps True", "swaps False"}


class Backwards(ByOrder):
    """Bad and legal: the youngest first, whatever the order says. Slow, not wrong."""

    name = "backwards"
    by_rank = False

    def key(self, request: RequestView) -> tuple[int, ...]:
        return (-request.arrival_ns,)


# ---------------------------------------------------------------------- decisions that break it


class Mutates(HostEviction):
    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Iterable[HostCopy]:
        for copy in copies:
            copy.owner.priority = 0  # type: ignore[misc]
        return copies


class Resizes(HostEviction):
    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Iterable[HostCopy]:
        for copy in copies:
            copy.host_blocks = 0  # type: ignore[misc]
        return copies


class ForgetsWhatItProposed(HostEviction):
    """Trap T18."""

    def __init__(self) -> None:
        super().__init__(48)
        self.proposed: set[str] = set()

    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Iterator[HostCopy]:
        for copy in copies:
            if copy.owner.request_id not in self.proposed:
                self.proposed.add(copy.owner.request_id)
                yield copy


class Invents(HostEviction):
    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Any:
        return ["a copy"]


class Silent(HostEviction):
    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Any:
        return None


class ByIdOfCopy(HostEviction):
    def key(self, owner: RequestView) -> tuple[int, ...]:
        return (hash(owner.session_id),)


class Named(HostEviction):
    def key(self, owner: RequestView) -> Any:
        return owner.session_id


class Fails(HostEviction):
    def given_up(self, owner: RequestView, blocks: int) -> None:
        raise LookupError("who was that?")


class Chance(ByOrder):
    by_rank = False

    def key(self, request: RequestView) -> tuple[float, ...]:
        return (random.random(),)


class ByHash(ByOrder):
    by_rank = False

    def key(self, request: RequestView) -> tuple[int, ...]:
        return (hash(request.request_id),)


class NotANumber(ByOrder):
    by_rank = False

    def key(self, request: RequestView) -> tuple[float, ...]:
        return (math.nan,)


class Touches(ByOrder):
    by_rank = False

    def key(self, request: RequestView) -> tuple[int, ...]:
        request.arrival_ns = 0  # type: ignore[misc]
        return ()


class Undecided(ByCost):
    def swaps(self, parking: Parking) -> Any:
        return None


class AcrossRuns(ByCost):
    numbers = itertools.count()

    def __init__(self) -> None:
        self.number = next(self.numbers)

    def swaps(self, parking: Parking) -> bool:
        return bool(self.number % 2)


class Flips(ByCost):
    answer = False

    def swaps(self, parking: Parking) -> bool:
        self.answer = not self.answer
        return self.answer


class Rewrites(ByCost):
    def swaps(self, parking: Parking) -> bool:
        parking.store_ns = 0  # type: ignore[misc]
        return True


class Nameless:
    at_any_cost = True

    def swaps(self, parking: Parking) -> bool:
        return True


class NoChoice(Adaptive):
    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Any:
        return True


class Raises(Adaptive):
    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Choice:
        raise ZeroDivisionError("no step was ever timed")


def eviction(kind: type[HostEviction]) -> Callable[[], HostEviction]:
    return lambda: kind(48)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"eviction": eviction(Mutates)}, "nominate raised .*changed a request's priority"),
        ({"eviction": eviction(Resizes)}, "nominate raised AttributeError: can't set attribute"),
        ({"eviction": ForgetsWhatItProposed}, "asked twice for nominate .*proposing must change"),
        ({"eviction": eviction(Invents)}, "it nominated 'a copy', which it was not shown"),
        ({"eviction": eviction(Silent)}, "nominate returned None, which are no copies"),
        ({"eviction": eviction(ByIdOfCopy)}, "not deterministic under .*hash"),
        ({"eviction": eviction(Named)}, "key returned 'c.*', which is not a tuple of numbers"),
        ({"eviction": eviction(Fails)}, "given_up raised LookupError: who was that"),
        ({"eviction": Fails}, "eviction: making it raised TypeError"),
        ({"displacement": Chance}, "displacement order: asked twice for key"),
        ({"displacement": ByHash}, "not deterministic under .*plan .* was .* and then "),
        ({"displacement": NotANumber}, r"key returned \(nan,\), which is not a tuple of numbers"),
        ({"displacement": Touches}, "it changed a request's arrival_ns; a view is read-only"),
        ({"preemption": Undecided}, "preemption mode cost: swaps returned None, neither"),
        (
            {"preemption": AcrossRuns},
            "not deterministic under .* by recompute.* and then .* by swap",
        ),
        ({"preemption": Flips}, "asked twice for swaps at one moment, it said True and then False"),
        ({"preemption": Rewrites}, "swaps raised AttributeError: can't set attribute"),
        ({"preemption": Nameless}, "name is None, not a str"),
        ({"overlap": NoChoice}, "choose returned True, which is no Choice"),
        ({"overlap": Raises}, "choose raised ZeroDivisionError: no step was ever timed"),
    ],
)
def test_a_broken_decision_is_refused_in_words(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as found:
        check_system(FASTSWITCH, **parts)
    assert len(str(found.value).splitlines()) <= 5


# ---------------------------------------------------------------------- planners that break it


def test_progress_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "MAX_PLANS", 20)
    found = system_violations(FASTSWITCH)
    assert len(found) == len(ORDERS)
    for order, problem in zip(ORDERS, found, strict=True):
        assert f"system fastswitch: progress is lost under {order}: after 20 plans" in problem


def test_safety_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Scheduler) -> None:
        raise InvariantError("3 blocks are nobody's")

    monkeypatch.setattr(served, "check_integrity", fails)
    with pytest.raises(ConfigError, match="safety is lost under fcfs: 3 blocks are nobody's"):
        check_system(FASTSWITCH)


def test_parkings_are_counted_unless_the_system_switches_the_cap_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An allowance of nothing, and nobody keeps it but who need not."""
    monkeypatch.setattr(served, "SPARE_PARKINGS", -100)
    assert any("rule 10 allows" in problem for problem in system_violations(FASTSWITCH))
    assert not system_violations(SYSTEMS["fastswitch-no-cap"])


def test_the_releases_own_verdict_is_an_end_under_fcfs_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serve = served.Machine.serve

    def stops(machine: served.Machine) -> None:
        serve(machine)
        raise ReleaseVerdict("it aborts here")

    monkeypatch.setattr(served.Machine, "serve", stops)
    found = system_violations(SYSTEMS["vllm-0.3.3"])
    assert [order for order in ORDERS if any(f"under {order}" in one for one in found)] == [
        "random",
        "vtc",
    ]


def test_fewer_plans_the_second_time_are_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    serve = served.Machine.serve

    def forgets(machine: served.Machine) -> None:
        serve(machine)
        if not machine._checks:
            machine.plans.pop()

    monkeypatch.setattr(served.Machine, "serve", forgets)
    problem = system_violations(FASTSWITCH)[0]
    assert "not deterministic under fcfs" in problem and "and then none; a decision" in problem


def test_plans_are_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []
    execute = served.Machine._execute

    def watched(machine: served.Machine, plan: Plan) -> Any:
        plans.append(plan)
        return execute(machine, plan)

    monkeypatch.setattr(served.Machine, "_execute", watched)
    check_system(SYSTEMS["fastswitch-cost"])
    for kind in ("preempt", "copies", "wait_for", "prefill", "cancel"):
        assert any(getattr(plan, kind) for plan in plans), kind
    assert {mode.value for plan in plans for _, mode in plan.preempt} == {"swap", "recompute"}


class Youngest:
    """A user's own victim: the one with least to lose and most to give."""

    reads_prefills = False

    def key(self, stake: Stake, prefill: PrefillTime) -> tuple[int, ...]:
        return (stake.gained - stake.computed,)


class NoKey(Youngest):
    def key(self, stake: Stake, prefill: PrefillTime) -> Any:
        return stake.gained


def test_a_users_own_victim_and_displacement_plug_into_v1() -> None:
    check_system(SYSTEMS["vllm-v1"], victim=Youngest)
    check_system(SYSTEMS["vllm-v1+displace"], displacement=Backwards)
    with pytest.raises(ConfigError, match=r"victim NoKey: key returned .*not a tuple of numbers"):
        check_system(SYSTEMS["vllm-v1"], victim=NoKey)
