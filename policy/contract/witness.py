"""Decisions under the eyes of the contract suite: shown read-only views, asked twice, their answers
checked. Each raises ConfigError, in words, for what its decision does wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, NoReturn

from policy.choices.displacement import Displacement, Place
from policy.choices.host_eviction import HostEviction
from policy.choices.overlap import Choice, Overlap
from policy.choices.preemption import Parking, Preemption
from policy.choices.rates import PrefillTime
from policy.choices.victim import Key, Stake, Victim
from policy.errors import ConfigError
from policy.orders.guard import view_of
from policy.views import HostCopy, RequestView


class _Subject:
    """A decision of some kind, and how to speak of it."""

    def __init__(self, kind: str, decision: Any) -> None:
        self._name = f"{kind} {getattr(decision, 'name', type(decision).__name__)}"
        self._decision = decision

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Its answer. Whatever it raises is told in words."""
        try:
            answer = getattr(self._decision, method)(*arguments, **named)
            return list(answer) if isinstance(answer, Iterator) else answer
        except Exception as error:
            raise ConfigError(
                f"{self._name}: {method} raised {type(error).__name__}: {error}"
            ) from error

    def ask_twice(self, method: str, fresh: Callable[[], tuple[Any, ...]]) -> Any:
        """One answer to one question, asked twice with fresh arguments."""
        answer, again = (self.ask(method, *fresh()) for _ in range(2))
        if answer != again:
            self.fail(
                f"asked twice for {method} at one moment, it said {answer} and then {again};"
                " proposing must change nothing"
            )
        return answer

    def read(self, attribute: str, kind: type) -> Any:
        """An attribute that it must have."""
        found = getattr(self._decision, attribute, None)
        if not isinstance(found, kind):
            self.fail(f"{attribute} is {found!r}, not a {kind.__name__}")
        return found

    def fail(self, problem: str) -> NoReturn:
        """Say it."""
        raise ConfigError(f"{self._name}: {problem}")

    def numbers(self, method: str, key: Any) -> Place:
        """A tuple of numbers, or a complaint."""
        if not isinstance(key, tuple) or any(
            not isinstance(part, (int, float)) or part != part  # noqa: PLR0124
            for part in key
        ):
            self.fail(f"{method} returned {key!r}, which is not a tuple of numbers")
        return key


class WitnessedDisplacement:
    """See the module."""

    def __init__(self, displacement: Displacement) -> None:
        self._subject = _Subject("displacement", displacement)
        self.name: str = self._subject.read("name", str)
        self.by_rank: bool = self._subject.read("by_rank", bool)

    def key(self, request: RequestView) -> Place:
        """As the displacement says."""
        key = self._subject.ask_twice("key", lambda: (view_of(request),))
        return self._subject.numbers("key", key)


class WitnessedPreemption:
    """See the module."""

    def __init__(self, preemption: Preemption) -> None:
        self._subject = _Subject("preemption mode", preemption)
        self.name: str = self._subject.read("name", str)
        self.at_any_cost: bool = self._subject.read("at_any_cost", bool)

    def swaps(self, parking: Parking) -> bool:
        """As the mode says."""
        answer = self._subject.ask_twice("swaps", lambda: (parking,))
        if not isinstance(answer, bool):
            self._subject.fail(f"swaps returned {answer!r}, neither True nor False")
        return answer


class WitnessedVictim:
    """See the module."""

    def __init__(self, victim: Victim) -> None:
        self._subject = _Subject("victim", victim)
        self.reads_prefills: bool = self._subject.read("reads_prefills", bool)

    def key(self, stake: Stake, prefill: PrefillTime) -> Key:
        """As the choice says."""
        key = self._subject.ask_twice("key", lambda: (stake, prefill))
        return self._subject.numbers("key", key)


class WitnessedOverlap:
    """See the module."""

    def __init__(self, overlap: Overlap) -> None:
        self._subject = _Subject("overlap", overlap)
        self.name: str = self._subject.read("name", str)
        self.waits_for_stores: bool = self._subject.read("waits_for_stores", bool)

    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Choice:
        """As the overlap says."""
        answer = self._subject.ask_twice("choose", lambda: (running, loading, load_ns, step_ns))
        if not isinstance(answer, Choice) or not isinstance(answer.wait, bool):
            self._subject.fail(f"choose returned {answer!r}, which is no Choice")
        return answer


class _Shown(NamedTuple):
    """A host copy that cannot be changed."""

    number: int
    owner: RequestView
    host_blocks: int


class WitnessedEviction(HostEviction):
    """See the module."""

    def __init__(self, eviction: HostEviction) -> None:
        self._subject = _Subject("host eviction", eviction)
        self.name = self._subject.read("name", str)

    def key(self, owner: RequestView) -> Place:
        """As the eviction says."""
        key = self._subject.ask_twice("key", lambda: (view_of(owner),))
        return self._subject.numbers("key", key)

    def nominate(self, wanted_by: RequestView, copies: Iterable[HostCopy]) -> Iterator[HostCopy]:
        """As the eviction says, if it names what it was shown."""
        listed = list(copies)
        views = [view_of(copy.owner) for copy in listed]

        def fresh() -> tuple[RequestView, list[_Shown]]:
            shown = [
                _Shown(index, views[index], copy.host_blocks) for index, copy in enumerate(listed)
            ]
            return wanted, shown

        wanted = view_of(wanted_by)
        named = self._subject.ask_twice("nominate", fresh)
        if not isinstance(named, Iterable):
            self._subject.fail(f"nominate returned {named!r}, which are no copies")
        for shown in named:
            if not isinstance(shown, _Shown):
                self._subject.fail(f"it nominated {shown!r}, which it was not shown")
            yield listed[shown.number]

    def returned(self, request: RequestView, *, hit: bool) -> None:
        """Passed on."""
        self._subject.ask("returned", view_of(request), hit=hit)

    def given_up(self, owner: RequestView, blocks: int) -> None:
        """Passed on."""
        self._subject.ask("given_up", view_of(owner), blocks)
