"""Fine-tuning: the loss and its gradient are the same however the examples are padded, packed, batched and split."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.preferences_data import N_VOCAB, gradients, small_model
from torch import Tensor

from tessera.data.batches import Batch
from tessera.data.examples import Example, ExampleRows, rows_of
from tessera.errors import InputError
from tessera.objectives import OBJECTIVES, SFT
from tessera.optim import OPTIMIZERS
from tessera.train.step import Step


def examples(n: int = 9, seed: int = 0) -> list[Example]:
    """Turns of both sides in turn, of any length, up to 13 tokens."""
    draw = random.Random(seed)
    made = []
    for number in range(n):
        learned = [False]
        while len(learned) < draw.randint(4, 13):
            learned += [draw.random() < 0.5] * draw.randint(1, 4)
        learned = [*learned[:12], True]
        made.append(Example.of([draw.randrange(N_VOCAB) for _ in learned], learned, f"made up:{number}"))
    return made


def one_by_one(model: Any, data: Sequence[Example]) -> Tensor:
    """The mean over all learned tokens, of logits made one example at a time."""
    losses = []
    for each in data:
        ids = torch.from_numpy(each.ids.astype("int64"))
        losses.append(F.cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="none")[each.learned[1:]])
    return torch.cat(losses).mean()


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    rows: list[list[int]] = []
    for number, length in enumerate(lengths):
        for row in rows:
            if sum(lengths[i] for i in row) + length <= room:
                row.append(number)
                break
        else:
            rows.append([number])
    return rows


def accumulated(model: Any, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradient of a step of the training loop, in so many micro-batches."""
    objective = SFT(model=model, data=iter([]))  # type: ignore[arg-type]
    model.zero_grad()
    step = Step(objective, OPTIMIZERS["sgd"](model.parameters(), lr=0.0), None, torch.device("cpu"))
    loss = step._gradients(batches, sum(batch.n_targets for batch in batches), detail=False)[1]
    return loss, {name: each.grad.clone() for name, each in model.named_parameters()}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("split", [[9], [1] * 9, [4, 5], [2, 1, 6], [8, 1]], ids=str)
def test_whatever_the_split_the_loss_is_one(split: list[int], packed: bool) -> None:
    model, data = small_model(context=40), examples()
    expected = one_by_one(model, data)
    batches, start = [], 0
    for size in split:
        part = data[start : start + size]
        start += size
        arranged = first_fit([len(each.ids) - 1 for each in part], 40) if packed else [[i] for i in range(size)]
        batches.append(rows_of([[part[i] for i in row] for row in arranged]))
    assert packed == any(batch.documents_BT is not None for batch in batches) or split == [1] * 9
    loss, found = accumulated(model, batches)
    assert abs(loss - expected.item()) < 1e-9
    torch.testing.assert_close(found, gradients(model, expected), rtol=1e-9, atol=1e-9)


def test_in_fp32_it_is_one_within_a_millionth() -> None:
    model, data = small_model(context=40).float(), examples(24, seed=3)
    expected = one_by_one(model, data).item()
    packed = first_fit([len(each.ids) - 1 for each in data], 40)
    for rows in ([[i] for i in range(24)], packed):
        for size in (len(rows), 1, 5):
            parts = [rows_of([[data[i] for i in row] for row in rows[s : s + size]]) for s in range(0, len(rows), size)]
            assert abs(accumulated(model, parts)[0] - expected) < 1e-6


def test_the_source_gives_each_example_once_an_epoch_and_goes_on_where_it_stood() -> None:
    data = examples()
    source = ExampleRows(data, batch_size=4, context=40, seed=3, arrange=first_fit)
    seen = sum(next(source).n_targets for _ in range(source.steps_per_epoch))
    assert seen == sum(each.n_learned for each in data)
    assert (source.epoch, source.position) == (1, 0)
    next(source)
    objective = SFT(model=small_model(), data=source)
    state = json.loads(json.dumps(objective.get_extra_state()))
    other = ExampleRows(data, batch_size=4, context=40, seed=3, arrange=first_fit)
    SFT(model=small_model(), data=other).set_extra_state(state)
    for _ in range(4):
        assert torch.equal(next(source).inputs_BT, next(other).inputs_BT)
    for changed in (examples(seed=1), data[:-1]):
        with pytest.raises(InputError, match="other batches"):
            ExampleRows(changed, batch_size=4, context=40, seed=3).restore(state)


def test_it_reads_conversations() -> None:
    assert {name: each.reads for name, each in OBJECTIVES.items()} == {
        "next-token": "documents",
        "sft": "conversations",
        "distillation": "conversations",
        "reward": "pairs",
        "dpo": "pairs",
        "simpo": "pairs",
        "orpo": "pairs",
        "kto": "judged",
    }
