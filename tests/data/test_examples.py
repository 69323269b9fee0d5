"""Examples to batches: nothing is lost or learned twice, packed or alone, and a cursor gives the same batches again."""

import json
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.data.batch import IGNORE
from tessera.data.examples import (
    ARRANGEMENTS,
    Example,
    ExampleRows,
    Fitting,
    Shuffled,
    fit,
    fit_groups,
    packed,
    rows_of,
)
from tessera.errors import InputError, SettingError

EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=2, max_size=9), min_size=1, max_size=12
)


def example(*flags: int, first: int = 1, where: str = "f:1") -> Example:
    return Example.of([first + i for i in range(len(flags))], [bool(flag) for flag in flags], where)


def made(drawn: list[list[tuple[int, bool]]]) -> list[Example]:
    """The last token of each is learned."""
    return [
        Example.of([id for id, _ in each], [*[own for _, own in each[:-1]], True], f"f:{n}")
        for n, each in enumerate(drawn)
    ]


def test_rows_written_out() -> None:
    one, other = example(0, 1, 0, 1), example(1, 0, 1, first=7)
    batch = rows_of([[one], [other]])
    assert batch.inputs_BT.tolist() == [[1, 2, 3], [7, 8, 0]]
    assert batch.targets_BT.tolist() == [[2, IGNORE, 4], [IGNORE, 9, IGNORE]]
    assert batch.documents_BT is None
    batch = rows_of([[one, other], [other]])
    assert batch.inputs_BT.tolist() == [[1, 2, 3, 7, 8], [7, 8, 0, 0, 0]]
    assert batch.targets_BT.tolist() == [[2, IGNORE, 4, IGNORE, 9], [IGNORE, 9, IGNORE, IGNORE, IGNORE]]
    assert batch.documents_BT is not None
    assert batch.documents_BT.tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    whole = rows_of([[one], [other]], whole=True)
    assert whole.inputs_BT.tolist() == [[1, 2, 3, 4], [7, 8, 9, 0]]
    assert whole.targets_BT.tolist() == [[2, IGNORE, 4, IGNORE], [IGNORE, 9, IGNORE, IGNORE]]


@settings(max_examples=80, deadline=None)
@given(EXAMPLES, st.integers(1, 5), st.sampled_from(sorted(ARRANGEMENTS)))
def test_each_example_is_there_once_an_epoch_whole_and_by_itself(drawn: Any, batch_size: int, arrange: str) -> None:
    examples = made(drawn)
    source = ExampleRows(examples, batch_size=batch_size, context=8, arrange=ARRANGEMENTS[arrange])
    expected = sorted(
        (
            each.ids[:-1].tolist(),
            [id if own else IGNORE for id, own in zip(each.ids[1:].tolist(), each.learned[1:], strict=True)],
        )
        for each in examples
    )
    for batches in (list(islice(iter(source.__next__, None), source.steps_per_epoch)), source.in_order()):
        seen = []
        for batch in batches:
            assert batch.inputs_BT.shape[1] <= 8
            numbers_BT = torch.zeros_like(batch.inputs_BT) if batch.documents_BT is None else batch.documents_BT
            for inputs, targets, numbers in zip(batch.inputs_BT, batch.targets_BT, numbers_BT, strict=True):
                for number in numbers.unique():
                    own = numbers == number
                    learned = (targets[own] != IGNORE).nonzero()
                    if len(learned):
                        n = int(learned[-1]) + 1  # the last token of each is learned, so what follows is padding
                        seen.append((inputs[own][:n].tolist(), targets[own][:n].tolist()))
        assert sorted(seen) == expected
    assert sum(batch.n_targets for batch in source.in_order()) == sum(each.n_learned for each in examples)


def test_packing_takes_few_rows() -> None:
    assert packed([3, 5, 2, 4], 7) == [[1, 2], [0, 3]]
    assert packed([], 7) == []
    assert packed([0, 7], 7) == [[1], [0]]
    lengths = [5, 1] * 40
    rows = packed(lengths, 12)
    assert len(rows) == 20
    assert sorted(i for row in rows for i in row) == list(range(80))
    with pytest.raises(SettingError, match="from 1 to the capacity, 4"):
        packed(lengths, 4)


@pytest.mark.parametrize("arrange", ARRANGEMENTS.values(), ids=ARRANGEMENTS)
def test_a_cursor_gives_the_same_batches_again(arrange: Any) -> None:
    examples = made([[(i + j + 1, (i + j) % 3 == 0) for j in range(2 + i % 6)] for i in range(23)])
    settings: dict[str, Any] = {"batch_size": 4, "context": 8, "arrange": arrange}
    source = ExampleRows(examples, seed=5, **settings)
    for n in range(3 * source.steps_per_epoch):
        other = ExampleRows(examples, seed=5, **settings)
        other.restore(json.loads(json.dumps(source.state())))
        assert (other.epoch, other.position) == (n // source.steps_per_epoch, n % source.steps_per_epoch * 4)
        for _ in range(2):
            following = next(other)
            if _ == 0:
                now = next(source)
                assert torch.equal(now.inputs_BT, following.inputs_BT)
                assert torch.equal(now.targets_BT, following.targets_BT)
    state = source.state()
    changed = [*examples[:-1], example(0, 1, 1)]
    flipped = [*examples[:-1], Example(examples[-1].ids, ~examples[-1].learned | (examples[-1].ids > 0), "f")]
    for others, seed in ((changed, 5), (examples[::-1], 5), (flipped, 5), (examples, 6)):
        with pytest.raises(InputError, match="the data cursor belongs to other batches"):
            ExampleRows(others, seed=seed, **settings).restore(state)
    with pytest.raises(InputError, match="other batches"):
        Shuffled(source.n, batch_size=4, seed=5, identity=source.identity).restore(state)


def test_an_epoch_has_each_number_once_and_the_next_another_order() -> None:
    source = Shuffled(10, batch_size=4, seed=1, identity="x")
    epochs = [[source.draw() for _ in range(source.steps_per_epoch)] for _ in range(2)]
    orders = [[i for drawn in epoch for i in drawn] for epoch in epochs]
    assert [[len(drawn) for drawn in epoch] for epoch in epochs] == [[4, 4, 2]] * 2
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(10))
    assert orders[0] != orders[1]


def test_what_cannot_be_a_source() -> None:
    with pytest.raises(InputError, match="there is no example to learn from"):
        ExampleRows([], batch_size=1, context=8)
    with pytest.raises(InputError, match=r"^f:7: 9 tokens do not fit a context of 7"):
        ExampleRows([example(*[1] * 9, where="f:7")], batch_size=1, context=7)
    with pytest.raises(InputError, match=r"^f:7: nothing of it is learned"):
        ExampleRows([example(1, 0, where="f:7")], batch_size=1, context=7)
    with pytest.raises(SettingError, match="batch_size = 0"):
        ExampleRows([example(0, 1)], batch_size=0, context=7)


def test_what_follows_the_last_learned_token_is_left_out() -> None:
    (kept,), told = fit([example(0, 1, 1, 0, 0)], max_tokens=3)
    assert kept.ids.tolist() == [1, 2, 3]
    assert (told.n_examples, told.n_learned) == (1, 2)
    (kept,), told = fit([example(0, 1, 0, 0, 1)], max_tokens=4, too_long="cut")
    assert kept.ids.tolist() == [1, 2]
    assert told.describe() == ["1 examples, 1 learned tokens", "1 were cut by 1 tokens to fit: f:1"]


def test_the_first_token_of_all_cannot_be_learned() -> None:
    with pytest.raises(InputError, match=r"^f:1: nothing of its first 8 tokens is learned"):
        fit([example(1, 0)], max_tokens=8)


def test_a_group_stays_together() -> None:
    good, bad = example(0, 1), example(0, 0, where="f:2")
    long = example(0, *[1] * 9, where="f:3")
    groups = [(good, good), (good, bad), (long, good), (good, long)]
    numbers, kept, told = fit_groups(groups, max_tokens=4, too_long="skip", unlearned="skip")
    assert numbers == [0] and [len(each) for each in kept] == [2]
    assert (told.too_long, told.unlearned) == (["f:3", "f:1"], ["f:1"])
    numbers, kept, told = fit_groups(groups, max_tokens=4, too_long="cut", unlearned="skip")
    assert numbers == [0, 2, 3]
    assert told.n_tokens_cut == 12


def test_wrong_settings_and_nothing_left() -> None:
    for name, value in (("max_tokens", 1), ("too_long", "drop"), ("unlearned", "drop")):
        with pytest.raises(SettingError, match=f"{name} = {value!r}"):
            fit([example(0, 1)], **({"max_tokens": 4} | {name: value}))  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=r"there is nothing to learn from: 0 examples.* 5 too long, left out: a:0, a:1, a:2, "
    ):
        fit([example(0, 1, 1, where=f"a:{i}") for i in range(5)], max_tokens=2, too_long="skip")
    assert Fitting(n_examples=1234, n_learned=5678).describe() == ["1,234 examples, 5,678 learned tokens"]
