"""Pages with names: rules R1 to R5 of docs/vllm_v1.md, by hand and against a plain model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.errors import InvariantError, OutOfBlocks
from policy.pools.named import NamedPool


def test_nameless_blocks_are_handed_out_last_freed_first_and_named_ones_after_them() -> None:
    pool = NamedPool("device", 6)
    first, second = pool.take(2), pool.take(2)
    pool.name_block(first[0], "a")
    pool.name_block(first[1], "ab")
    pool.free(reversed(first))
    pool.free(reversed(second))
    assert pool.num_free == 6
    assert pool.nameless == [5, 4, *second]
    # R3: the tail of `second` went first, so to the front; untouched ones follow; R2: "ab" goes before "a".
    assert pool.take(4) == [*reversed(second), 4, 5]
    assert pool.find(["a", "ab"]) == first
    assert pool.take(1) == [first[1]]
    assert pool.find(["a", "ab"]) == [first[0]]
    assert pool.num_evicted == 1


def test_a_named_block_that_is_shared_again_leaves_the_free_ones_and_keeps_its_name() -> None:
    pool = NamedPool("device", 2)
    (block,) = pool.take(1)
    pool.name_block(block, "a")
    pool.free([block])
    assert pool.num_idle([block]) == 1
    pool.share([block])
    pool.share([block])
    assert (pool.num_free, pool.num_idle([block])) == (1, 0)
    pool.free([block])
    assert pool.num_free == 1
    pool.free([block])
    assert (pool.num_free, pool.find(["a"])) == (2, [block])


def test_of_equal_blocks_the_one_named_first_is_found_and_the_next_when_that_is_gone() -> None:
    pool = NamedPool("device", 3)
    blocks = pool.take(3)
    for block in blocks:
        pool.name_block(block, "a")
    assert pool.find(["a"]) == blocks[:1]
    pool.free([blocks[0]])
    assert pool.take(1) == [blocks[0]]  # it loses its name
    assert pool.find(["a"]) == [blocks[1]]
    pool.free([blocks[2]])
    pool.take(1)
    assert pool.find(["a"]) == [blocks[1]]
    pool.free([blocks[1]])
    pool.take(1)
    assert pool.find(["a"]) == []


def test_more_blocks_than_are_free_are_refused_and_nothing_changes() -> None:
    pool = NamedPool("device", 2)
    with pytest.raises(OutOfBlocks, match="3 blocks wanted, 2 free"):
        pool.take(3)
    assert pool.take(2) == [0, 1]


def test_equal_states_are_told_by_names_and_not_by_places() -> None:
    one, other = NamedPool("device", 3), NamedPool("device", 3)
    blocks = one.take(1)
    one.free(blocks)
    assert one.state() == other.state()
    block = one.take(1)[0]
    one.name_block(block, "a")
    one.free([block])
    assert one.state() != other.state()


def broken(pool: NamedPool, table: list[int]) -> str:
    with pytest.raises(InvariantError) as caught:
        pool.check([table])
    return str(caught.value)


def test_each_law_of_the_pool_is_broken_once() -> None:
    pool = NamedPool("device", 3)
    table = pool.take(2)
    pool.check([table])
    assert "block 0 is in 0 tables, 1 holders counted" in broken(pool, [1])
    pool._nameless.append(0)
    assert "not those that nobody holds" in broken(pool, table)
    pool._nameless.pop()
    pool._name[2] = "x"
    assert "has a name among the nameless" in broken(pool, table)
    pool._name[2] = None
    pool._name[1] = "y"
    assert "not the named ones" in broken(pool, table)


class Plain:
    """R1 to R5 with one list of free blocks and no index."""

    def __init__(self, count: int) -> None:
        self.free = list(range(count))
        self.names: dict[int, int] = {}
        self.age: dict[int, int] = {}
        self.holders = dict.fromkeys(range(count), 0)
        self.clock = 0

    def find(self, names: list[int]) -> list[int]:
        found = []
        for name in names:
            alike = [block for block, other in self.names.items() if other == name]
            if not alike:
                break
            found.append(min(alike, key=self.age.__getitem__))
        return found

    def take(self, count: int) -> list[int]:
        taken, self.free = self.free[:count], self.free[count:]
        for block in taken:
            self.names.pop(block, None)
            self.holders[block] = 1
        return taken

    def share(self, blocks: list[int]) -> None:
        for block in blocks:
            if not self.holders[block]:
                self.free.remove(block)
            self.holders[block] += 1

    def name(self, block: int, name: int) -> None:
        self.clock += 1
        self.names[block], self.age[block] = name, self.clock

    def release(self, blocks: list[int]) -> None:
        gone = []
        for block in blocks:
            self.holders[block] -= 1
            if not self.holders[block]:
                gone.append(block)
        self.free = (
            [b for b in gone if b not in self.names]
            + self.free
            + [b for b in gone if b in self.names]
        )


@given(st.data())
def test_it_does_what_a_plain_model_does(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    pool, plain = NamedPool("device", count), Plain(count)
    tables: list[list[int]] = []
    for _ in range(data.draw(st.integers(1, 40))):
        move = data.draw(st.sampled_from(["take", "free", "name"]))
        if move == "take":
            names = data.draw(st.lists(st.integers(0, 3), max_size=3))
            hits = pool.find(names)
            assert hits == plain.find(names)
            hits = list(dict.fromkeys(hits))
            pool.share(hits)
            plain.share(hits)
            wanted = data.draw(st.integers(0, min(3, pool.num_free)))
            taken = pool.take(wanted)
            assert taken == plain.take(wanted)
            tables.append(hits + taken)
        elif tables and move == "free":
            table = tables.pop(data.draw(st.integers(0, len(tables) - 1)))
            pool.free(reversed(table))
            plain.release(table[::-1])
        elif tables:
            table = data.draw(st.sampled_from(tables))
            nameless = [block for block in table if block not in plain.names]
            if nameless:
                name = data.draw(st.integers(0, 3))
                pool.name_block(nameless[0], name)
                plain.name(nameless[0], name)
        pool.check(tables)
        assert pool.num_free == len(plain.free)
        for name in range(4):
            assert pool.holds(name) == (name in plain.names.values())


@pytest.mark.parametrize(
    "harm",
    [
        lambda pool, table: table.pop(),
        lambda pool, table: table.append(table[0]),
        lambda pool, table: pool._holders.__setitem__(0, 3),
        lambda pool, table: pool._nameless.pop(),
        lambda pool, table: pool._nameless.append(table[0]),
        lambda pool, table: pool._named.popitem(),
        lambda pool, table: pool._name.__setitem__(pool._nameless[0], "z"),
        lambda pool, table: pool._oldest.pop("a"),
        lambda pool, table: pool._oldest.__setitem__("a", table[-1]),
        lambda pool, table: pool._others["a"].pop(),
    ],
)
def test_whatever_changes_after_the_law_held_is_looked_at_again(
    harm: Callable[[NamedPool, list[int]], object],
) -> None:
    pool = NamedPool("device", 8)
    table, gone = pool.take(3), pool.take(2)
    for block, name in ((table[0], "a"), (table[1], "a"), (gone[0], "b")):
        pool.name_block(block, name)
    pool.free(gone)
    for _ in range(2):
        pool.check([table])
    harm(pool, table)
    for _ in range(2):
        with pytest.raises(InvariantError, match="device: "):
            pool.check([table])
