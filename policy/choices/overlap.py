"""Does the step wait for its copies? FastSwitch's swap manager chooses per step
(docs/sources.md#fastswitch-swap)."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Choice(NamedTuple):
    """`wait` for the loads of this plan; the two costs where a rule weighed them."""

    wait: bool
    wait_cost: int | None = None
    overlap_cost: int | None = None


class Overlap(Protocol):
    """When a step waits. `waits_for_stores`: whether it waits for copies to the host too."""

    name: str
    waits_for_stores: bool

    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Choice:
        """`running` requests could run now, `loading` would join if the step waited `load_ns`."""


class Sync:
    """Every copy stalls the step, as in vLLM 0.3.3."""

    name = "sync"
    waits_for_stores = True

    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Choice:  # noqa: ARG002
        """Always wait."""
        return Choice(wait=True)


class Async:
    """No copy stalls a step unless a block conflict forces it."""

    name = "async"
    waits_for_stores = False

    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Choice:  # noqa: ARG002
        """Never wait."""
        return Choice(wait=False)


class Adaptive:
    """Wait when that costs less request time than running without the newcomers.

    Waiting makes `running` requests idle for `load_ns`. Not waiting makes `loading` requests miss
    the step that could have started now. Few, short running requests make waiting the better deal
    (recalled of FastSwitch; the rule that worked, docs/traps.md, M15).
    """

    name = "adaptive"
    waits_for_stores = False

    def choose(self, running: int, loading: int, load_ns: int, step_ns: int) -> Choice:
        """Wait iff running * load_ns < loading * step_ns."""
        wait_cost = running * load_ns
        overlap_cost = loading * step_ns
        return Choice(wait_cost < overlap_cost, wait_cost, overlap_cost)


OVERLAPS: dict[str, type[Sync] | type[Async] | type[Adaptive]] = {
    "sync": Sync,
    "async": Async,
    "adaptive": Adaptive,
}
