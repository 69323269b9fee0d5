"""The accounts of blocks: by hand, and under any order of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import SettingError
from tessera.generate.blocks import Blocks, block_key


def promised(blocks: Blocks, n: int) -> list[int]:
    assert blocks.admits(n)
    blocks.promised += n
    return [blocks.take() for _ in range(n)]


def test_a_key_means_a_text_from_its_beginning() -> None:
    first = block_key(b"", [1, 2])
    assert first == block_key(b"", [1, 2])
    assert (
        len({first, block_key(b"", [2, 1]), block_key(first, [1, 2]), block_key(block_key(b"", [3, 4]), [1, 2])}) == 4
    )


def test_what_is_released_is_kept_until_it_is_needed_and_the_longest_unused_goes_first() -> None:
    blocks = Blocks(n_blocks=4, size=2)
    keys = [block_key(b"", [i]) for i in range(4)]
    table = promised(blocks, 3)
    for block, key in zip(table, keys, strict=False):
        blocks.publish(block, key)
    blocks.release(table)
    blocks.check([])
    assert (blocks.n_available, blocks.n_unused) == (4, 3)
    assert blocks.known(keys) == table
    (fresh,) = promised(blocks, 1)
    assert fresh not in table, "what is free goes before what may be of use"
    (again,) = promised(blocks, 1)
    assert again == table[2], "the end of a text goes before its beginning"
    assert blocks.known(keys) == table[:2]
    blocks.check([[fresh], [again]])


def test_a_shared_block_is_free_when_the_last_one_has_released_it() -> None:
    blocks = Blocks(n_blocks=2, size=2)
    key = block_key(b"", [1, 2])
    (block,) = promised(blocks, 1)
    blocks.publish(block, key)
    blocks.promised += 1
    blocks.share(block)
    blocks.release([block])
    assert (blocks.n_held, blocks.n_unused) == (1, 0)
    blocks.release([block])
    assert (blocks.n_held, blocks.n_unused) == (0, 1)


def test_what_is_shared_counts_once() -> None:
    blocks = Blocks(n_blocks=4, size=2)
    table = promised(blocks, 3)
    for i, block in enumerate(table):
        blocks.publish(block, block_key(b"", [i]))
    assert not blocks.admits(2)
    assert blocks.admits(4, shared=table)
    blocks.release(table)
    assert blocks.admits(4, shared=table)
    assert not blocks.admits(5, shared=table)


def test_the_second_of_two_equal_blocks_is_not_known() -> None:
    blocks = Blocks(n_blocks=2, size=2)
    key = block_key(b"", [1, 2])
    first, second = promised(blocks, 2)
    blocks.publish(first, key)
    blocks.publish(second, key)
    assert blocks.known([key]) == [first]
    blocks.release([first, second])
    assert blocks.n_unused == 1
    blocks.check([])


@pytest.mark.parametrize("settings", [{"n_blocks": 0, "size": 2}, {"n_blocks": 2, "size": 0}])
def test_no_room(settings: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="at least 1"):
        Blocks(**settings)


@given(st.lists(st.tuples(st.sampled_from(["take", "publish", "share", "release"]), st.integers(0, 5)), max_size=60))
def test_no_block_is_lost(events: list[tuple[str, int]]) -> None:
    blocks = Blocks(n_blocks=5, size=2)
    tables: list[list[int]] = []
    keys = [block_key(b"", [i]) for i in range(6)]
    for event, number in events:
        if event == "take" and blocks.admits(1):
            tables.append(promised(blocks, 1))
        elif event == "publish" and tables:
            blocks.publish(tables[number % len(tables)][0], keys[number])
        elif event == "share" and (known := blocks.known(keys[number : number + 1])) and blocks.admits(1, known):
            blocks.promised += 1
            blocks.share(known[0])
            tables.append(known)
        elif event == "release" and tables:
            blocks.release(tables.pop(number % len(tables)))
        blocks.check(tables)
        assert blocks.n_held <= 5
