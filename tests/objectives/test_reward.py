"""The reward model against trl's loss and against hidden states read by hand."""

import pytest
import torch
from tests.objectives import trl_losses
from tests.objectives.preferences_data import pairs, small_model

from tessera.data.preferences import PairRows
from tessera.errors import InputError
from tessera.objectives import Reward
from tessera.objectives.reward import bradley_terry_loss


@pytest.mark.parametrize("center", [0.0, 0.01])
@pytest.mark.parametrize("margin", [False, True])
def test_the_loss_is_that_of_trl(center: float, margin: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, margins = (torch.randn(7, generator=generator).requires_grad_(i < 2) for i in range(3))
    ours = bradley_terry_loss(chosen, rejected, margins if margin else 0.0, center=center).mean()
    theirs = trl_losses.reward(chosen, rejected, margins if margin else None, center=center or None)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(*(torch.autograd.grad(x, (chosen, rejected)) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, expected)


def test_the_reward_is_read_at_the_last_token_whatever_the_padding() -> None:
    model, data = small_model(), pairs(4)
    rows = PairRows(data, batch_size=4, whole=True)
    objective = Reward(model=model, data=rows).double()
    batch = rows.batch(range(4))
    for side, name in zip(batch.sides, ("chosen", "rejected"), strict=True):
        found = objective.rewards(side)
        for i, pair in enumerate(data):
            ids = torch.from_numpy(getattr(pair, name).ids.astype("int64"))
            expected = objective.head.weight @ model.hidden(ids[None])[0, -1] + objective.head.bias
            torch.testing.assert_close(found[i], expected)
    loss, metrics = objective(batch)
    chosen, rejected = (objective.rewards(side) for side in batch.sides)
    expected = bradley_terry_loss(chosen, rejected, torch.tensor([pair.margin for pair in data])).mean()
    torch.testing.assert_close(loss, expected, check_dtype=False)
    assert metrics["accuracy"] == (chosen > rejected).double().mean()


def test_rows_without_their_last_token_are_refused() -> None:
    rows = PairRows(pairs(3), batch_size=3)
    with pytest.raises(InputError, match="whole=True"):
        Reward(model=small_model(), data=rows)(next(rows))


def test_the_head_is_learned_and_saved_with_the_model() -> None:
    rows = PairRows(pairs(3), batch_size=3, whole=True)
    objective = Reward(model=small_model(), data=rows)
    names = dict(objective.named_parameters())
    assert {"head.weight", "head.bias"} < set(names)
    assert set(objective.state_dict()) >= set(names)
