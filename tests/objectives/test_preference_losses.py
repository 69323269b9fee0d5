"""DPO and its variants, KTO, SimPO and ORPO: loss and gradients of a model against those of trl's code."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.objectives import trl_losses
from tests.objectives.preferences_data import gradients, judged, padded, pairs, small_model
from torch import Tensor

from tessera.data.preferences import JudgedRows, PairRows
from tessera.errors import InputError, SettingError
from tessera.objectives import DPO, KTO, OBJECTIVES, ORPO, SimPO
from tessera.objectives.dpo import DPO_LOSSES, robust_loss, sigmoid_loss
from tessera.objectives.orpo import log_odds, odds_ratio_loss

CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def compare(ours: Tensor, theirs: Tensor, model: Any) -> None:
    """The same value, and the same gradient for every weight."""
    torch.testing.assert_close(ours.double(), theirs.double(), **CLOSE)
    mine, expected = gradients(model, ours), gradients(model, theirs)
    assert any(each.any() for each in mine.values())
    torch.testing.assert_close(mine, expected, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sigmoid", {}),
        ("hinge", {"loss": "hinge"}),
        ("ipo", {"loss": "ipo"}),
        ("robust", {"loss": "robust", "label_smoothing": 0.2}),
        ("sigmoid_norm", {"average": True}),
    ],
)
def test_dpo_is_that_of_trl(kind: str, settings: dict[str, Any]) -> None:
    model, data = small_model(), pairs(5)
    rows = PairRows(data, batch_size=5)
    rows.reference_N2 = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).sub(8).numpy()
    ours, metrics = DPO(model=model, data=rows, beta=0.3, **settings)(rows.batch(range(5)))
    ids, mask = padded([pair.chosen for pair in data] + [pair.rejected for pair in data])
    smoothing = settings.get("label_smoothing", 0.0)
    reference = torch.from_numpy(rows.reference_N2)
    theirs = trl_losses.dpo(model, ids, mask, reference, kind=kind, beta=0.3, smoothing=smoothing)
    compare(ours, theirs, model)
    assert metrics["loss"] == pytest.approx(ours.item())


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.15), ("hinge", 0.0), ("ipo", 0.0)])
def test_without_a_reference_it_is_cpo(kind: str, smoothing: float) -> None:
    """trl's DPO has no label smoothing any more; its CPO is DPO with a reference of 0."""
    chosen, rejected = (torch.randn(6, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (1, 2))
    more = {"label_smoothing": smoothing} if smoothing else {}
    ours = DPO_LOSSES[kind](chosen, rejected, beta=0.7, **more)
    theirs = trl_losses.cpo(chosen, rejected, kind=kind, beta=0.7, gamma=0.0, smoothing=smoothing)
    torch.testing.assert_close(ours, theirs)
    for mine, expected in zip(*(torch.autograd.grad(x.sum(), (chosen, rejected)) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, expected)


def test_robust_is_unbiased_for_flipped_labels() -> None:
    a, b, e = torch.tensor([0.3, -1.0]), torch.tensor([-0.2, 0.5]), 0.2
    settings = {"beta": 0.5, "label_smoothing": e}
    flipped = (1 - e) * robust_loss(a, b, **settings) + e * robust_loss(b, a, **settings)
    torch.testing.assert_close(flipped, sigmoid_loss(a, b, beta=0.5))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_simpo_is_that_of_trl(smoothing: float) -> None:
    model, data = small_model(), pairs(5)
    rows = PairRows(data, batch_size=5)
    ours, _ = SimPO(model=model, data=rows, beta=2.5, gamma=0.8, label_smoothing=smoothing)(rows.batch(range(5)))
    means = mean_logps(model, data)
    theirs = trl_losses.cpo(*means, kind="simpo", beta=2.5, gamma=0.8, smoothing=smoothing).mean()
    compare(ours, theirs, model)


def test_orpo_is_that_of_trl() -> None:
    """With the mean of each chosen answer, as in the paper; trl takes the mean over the tokens of all of them."""
    model, data = small_model(), pairs(5)
    rows = PairRows(data, batch_size=5)
    ours, _ = ORPO(model=model, data=rows, beta=0.4)(rows.batch(range(5)))
    chosen, rejected = mean_logps(model, data)
    theirs = (-chosen - trl_losses.orpo(chosen, rejected, beta=0.4)).mean()
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=1e-5, atol=1e-6)
    mine, expected = gradients(model, ours), gradients(model, theirs)
    torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def mean_logps(model: Any, data: Any) -> list[Tensor]:
    """The mean log-probability of each answer, one answer at a time."""
    sides: list[list[Tensor]] = [[], []]
    for pair in data:
        for side, each in zip(sides, (pair.chosen, pair.rejected), strict=True):
            ids, learned = torch.from_numpy(each.ids.astype("int64")), torch.from_numpy(each.learned[1:])
            logps = F.log_softmax(model(ids[None])[0, :-1], dim=-1)
            side.append(logps.gather(1, ids[1:, None])[:, 0][learned].mean())
    return [torch.stack(side) for side in sides]


def test_the_odds_are_exact_at_both_ends() -> None:
    logps = torch.tensor([-1e-5, -0.01, -0.69, -0.7, -30.0], dtype=torch.float64, requires_grad=True)
    expected = logps - torch.log(-torch.expm1(logps))
    torch.testing.assert_close(log_odds(logps), expected)
    torch.testing.assert_close(
        torch.autograd.grad(log_odds(logps).sum(), logps), torch.autograd.grad(expected.sum(), logps)
    )
    certain = torch.tensor([0.0, -200.0], requires_grad=True)
    loss = odds_ratio_loss(certain, certain.flip(0)).sum()
    assert torch.isfinite(loss)
    assert torch.autograd.grad(loss, certain)[0].isfinite().all()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6)])
def test_kto_is_that_of_trl(weights: tuple[float, float]) -> None:
    model, data = small_model(), judged(6)
    rows = JudgedRows(data, batch_size=6)
    rows.reference_N2 = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).sub(14).numpy()
    settings = {"good_weight": weights[0], "bad_weight": weights[1]}
    ours, metrics = KTO(model=model, data=rows, beta=0.3, **settings)(rows.batch(range(6)))
    ids, mask = padded([each.example for each in data])
    with torch.no_grad():
        other, other_mask = padded([each.mismatched for each in data])
        labels = other.masked_fill(other_mask == 0, -100)[:, 1:]
        mismatched = -F.cross_entropy(model(other)[:, :-1].transpose(1, 2), labels, reduction="none").sum(1)
    is_good, reference = torch.tensor([each.is_good for each in data]), torch.from_numpy(rows.reference_N2)
    theirs = trl_losses.kto(model, ids, mask, mismatched, reference, is_good, beta=0.3, weights=weights)
    assert float(metrics["kl"]) > 0
    compare(ours, theirs, model)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dpo", {"beta": 0.0}, "beta = 0.0: expected a number above 0"),
        ("dpo", {"loss": "sigmoyd"}, "loss has no 'sigmoyd'; did you mean 'sigmoid'?"),
        ("dpo", {"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing = 0.1: expected 0 for the loss 'ipo'"),
        ("dpo", {"label_smoothing": 0.5}, "below 0.5"),
        ("dpo", {"chosen_weight": -1.0}, "chosen_weight"),
        ("simpo", {"gamma": -1.0}, "gamma"),
        ("orpo", {"beta": float("nan")}, "beta"),
        ("kto", {"bad_weight": -1.0}, "bad_weight"),
    ],
)
def test_settings_that_make_no_sense(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError) as raised:
        OBJECTIVES[name](model=small_model(), data=PairRows(pairs(2), batch_size=2), **settings)
    assert message in str(raised.value)


def test_the_chosen_answer_may_be_learned_as_well() -> None:
    model, data = small_model(), pairs(3)
    rows = PairRows(data, batch_size=3)
    rows.reference_N2 = torch.zeros(3, 2).numpy()
    plain, with_it = (DPO(model=model, data=rows, chosen_weight=w)(rows.batch(range(3)))[0] for w in (0.0, 0.5))
    torch.testing.assert_close(with_it - plain, -0.5 * mean_logps(model, data)[0].mean(), check_dtype=False, **CLOSE)


def test_a_reference_has_to_come_from_somewhere() -> None:
    rows = PairRows(pairs(2), batch_size=2)
    with pytest.raises(InputError, match="reference's log-probabilities"):
        DPO(model=small_model(), data=rows)(next(rows))
