"""Fine-tuning: the loss and its gradient are the same however the examples are padded, packed, batched and split."""

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.objectives.preferences_data import N_VOCAB, gradients, small_model
from torch import Tensor

from tessera.data.batch import Batch
from tessera.data.examples import ARRANGEMENTS, Example, ExampleRows, packed, rows_of
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


def batches_of(data: Sequence[Example], split: Sequence[int], arrange: str) -> list[Batch]:
    """The examples in so many micro-batches; the rows of each are arranged so."""
    batches, start = [], 0
    for size in split:
        part = data[start : start + size]
        start += size
        rows = ARRANGEMENTS[arrange]([len(each.ids) - 1 for each in part], 40)
        batches.append(rows_of([[part[i] for i in row] for row in rows]))
    return batches


def accumulated(model: Any, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """The loss and the gradient of a step of the training loop, in so many micro-batches."""
    step = step_of(model)
    model.zero_grad()
    losses, loss, _, norm = step._measure(batches, sum(batch.n_targets for batch in batches), detail=False)
    found = {name: each.grad.clone() for name, each in model.named_parameters()}
    assert len(losses) == len(batches)
    assert norm == pytest.approx(torch.stack([each.norm() for each in found.values()]).norm().item(), rel=1e-6)
    return loss, found


def step_of(model: Any, lr: float = 0.0) -> Step:
    objective = SFT(model=model, data=iter([]))  # type: ignore[arg-type]
    return Step(objective, OPTIMIZERS["sgd"](model.parameters(), lr=lr), None, torch.device("cpu"))


@pytest.mark.parametrize("arrange", ARRANGEMENTS)
@pytest.mark.parametrize("split", [[9], [1] * 9, [4, 5], [2, 1, 6], [8, 1]], ids=str)
def test_whatever_the_split_the_loss_is_one(split: list[int], arrange: str) -> None:
    model, data = small_model(context=40), examples()
    expected = one_by_one(model, data)
    batches = batches_of(data, split, arrange)
    is_packed = any(batch.documents_BT is not None for batch in batches)
    assert is_packed == (arrange == "packed" and split != [1] * 9)
    loss, found = accumulated(model, batches)
    assert abs(loss - expected.item()) < 1e-9
    torch.testing.assert_close(found, gradients(model, expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [{"position": "rope"}, {"position": "alibi"}, {"position": "learned"}], ids=str)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_split_of_any_examples(shape: dict[str, Any], data: st.DataObject) -> None:
    """The loss and each gradient, with each kind of position, to 1e-9 in fp64."""
    n, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 99))
    made, split = examples(n, seed), []
    while sum(split) < n:
        split.append(data.draw(st.integers(1, n - sum(split))))
    model = small_model(context=40, **shape)
    expected = one_by_one(model, made)
    gradient = gradients(model, expected)
    for arrange in ARRANGEMENTS:
        loss, found = accumulated(model, batches_of(made, split, arrange))
        assert abs(loss - expected.item()) < 1e-9
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-9)


def test_in_fp32_it_is_one_within_a_millionth() -> None:
    data = examples(24, seed=3)
    model = small_model(context=40).float()
    expected = one_by_one(model, data)
    gradient = gradients(model, expected)
    for arrange in ARRANGEMENTS:
        for split in ([24], [1] * 24, [5, 5, 5, 5, 4], [1, 23], [23, 1]):
            loss, found = accumulated(model, batches_of(data, split, arrange))
            assert abs(loss - expected.item()) < 1e-6
            torch.testing.assert_close(found, gradient, rtol=0, atol=1e-6)


def test_a_step_updates_by_that_gradient_and_says_that_loss() -> None:
    for split, arrange in (([9], "alone"), ([2, 1, 6], "packed")):
        model, data = small_model(context=40), examples()
        expected = one_by_one(model, data)
        gradient = gradients(model, expected)
        before = {name: each.detach().clone() for name, each in model.named_parameters()}
        model.zero_grad(set_to_none=True)
        taken = step_of(model, lr=0.5).take(batches_of(data, split, arrange), step=1, rate=0.2, detail=True)
        assert taken.is_made
        assert taken.n_targets == sum(each.n_learned for each in data)
        assert abs(taken.loss - expected.item()) < 1e-9
        for name, each in model.named_parameters():
            torch.testing.assert_close(each, before[name] - 0.1 * gradient[name], rtol=1e-9, atol=1e-9)


def test_the_source_gives_each_example_once_an_epoch_and_goes_on_where_it_stood() -> None:
    data = examples()
    source = ExampleRows(data, batch_size=4, context=40, seed=3, arrange=packed)
    seen = sum(next(source).n_targets for _ in range(source.steps_per_epoch))
    assert seen == sum(each.n_learned for each in data)
    assert (source.epoch, source.position) == (1, 0)
    next(source)
    objective = SFT(model=small_model(), data=source)
    state = json.loads(json.dumps(objective.get_extra_state()))
    other = ExampleRows(data, batch_size=4, context=40, seed=3, arrange=packed)
    SFT(model=small_model(), data=other).set_extra_state(state)
    for _ in range(4):
        assert torch.equal(next(source).inputs_BT, next(other).inputs_BT)
    for changed in (examples(seed=1), data[:-1]):
        with pytest.raises(InputError, match="other batches"):
            ExampleRows(changed, batch_size=4, context=40, seed=3).restore(state)


def test_it_reads_conversations() -> None:
    assert OBJECTIVES["sft"] is SFT
    assert SFT.reads == "conversations"
