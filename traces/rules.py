"""The rules of a workload that hold between turns: identity, parents, drivers, order, blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from traces.strict import Place
from traces.workload import Header, Turn


def check_blocks(
    ids: tuple[int, ...], tokens: int, size: int, field: str, place: Place, *, may_lack_last: bool
) -> None:
    """Raise InputError unless the block ids cover a prompt of `tokens` in blocks of `size`.
    `may_lack_last`: the last block may have no id if it is not full."""
    most = -(-tokens // size)
    least = tokens // size if may_lack_last else most
    if not least <= len(ids) <= most:
        wanted = f"{least} or {most}" if least < most else f"{most}"
        place.fail(f"{len(ids)} ids for {tokens} tokens of {size} a block, not {wanted}", field)


class Rules:
    """What every turn of one workload must keep, checked in the order of the turns.

    Request ids are unique. Turns of a session count from 1. A parent comes before its child, so
    there is no cycle. A turn with no parent has no think time and no gap; of any other, at most one
    of `arrival_s`, `think_s` and `gap_s` is set, in open loop only `arrival_s` (none: the scenario
    has to name a law). Open loop is ordered by arrival; else sessions are, by the arrival of their
    first turn, and their rows are together. Block ids cover the prompt.
    """

    def __init__(self, header: Header, place: Place) -> None:
        self._header = header
        self._is_open = header.timing == "open"
        self._place = place
        self._ids: set[str] = set()
        self._turns: dict[str, int] = {}
        self._session = ""
        self._before = 0

    def check(self, turn: Turn) -> None:
        """Raise InputError for the first rule that the turn breaks."""
        self._identity(turn)
        is_root = turn.turn == 1 and turn.parent_id is None
        self._driver(turn, is_root=is_root)
        if (self._is_open or is_root) and turn.arrival_ns is not None:
            if turn.arrival_ns < self._before:
                self._place.fail("time runs backwards", "arrival_s")
            self._before = turn.arrival_ns
        size = self._header.block_size
        if turn.hash_ids is not None and size is not None:
            may_lack_last = self._header.may_lack_last_block
            tokens, place = turn.input_tokens, self._place
            check_blocks(
                turn.hash_ids, tokens, size, "hash_ids", place, may_lack_last=may_lack_last
            )

    def _identity(self, turn: Turn) -> None:
        if turn.request_id in self._ids:
            self._place.fail(f"{turn.request_id!r} came before", "request_id")
        if turn.parent_id is not None and turn.parent_id not in self._ids:
            self._place.fail(f"{turn.parent_id!r} does not come before", "parent_id")
        self._ids.add(turn.request_id)
        session = turn.session_id
        reached = self._turns.get(session, 0)
        if turn.turn != reached + 1:
            self._place.fail(f"{turn.turn} where {reached + 1} was due", "turn")
        if reached and not self._is_open and session != self._session:
            problem = f"{session!r} came before, its rows must be together"
            self._place.fail(problem, "session_id")
        self._turns[session] = turn.turn
        self._session = session

    def _driver(self, turn: Turn, *, is_root: bool) -> None:
        times = {"arrival_s": turn.arrival_ns, "think_s": turn.think_ns, "gap_s": turn.gap_ns}
        given = [name for name, value in times.items() if value is not None]
        if is_root:
            why = "of a turn that has no parent"
        else:
            why = "in open loop" if self._is_open else ""
        for name in given if why else ():
            if name != "arrival_s":
                self._place.fail(f"given {why}", name)
        if len(given) > 1:
            self._place.fail(f"given, and {given[0]} too: only one drives a turn", given[1])


def checked(turns: Iterable[Turn], header: Header, place: Place) -> Iterator[Turn]:
    """The turns, as long as they keep the rules. Raises InputError."""
    rules = Rules(header, place)
    for turn in turns:
        rules.check(turn)
        yield turn
