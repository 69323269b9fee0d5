"""Distillation: the divergences against trl's and torch's, and the objective against all logits at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.objectives import trl_losses
from tests.objectives.preferences_data import gradients, pairs, small_model

from tessera.data.batches import IGNORE
from tessera.data.examples import ExampleRows
from tessera.errors import InputError, SettingError
from tessera.objectives import Distillation
from tessera.objectives.distillation import distillation_loss


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.5), ("jsd", 0.2)])
def test_divergences_are_those_of_trl(kind: Any, beta: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    share = beta if kind == "jsd" else 0.5
    ours = distillation_loss(student, teacher, kind=kind, temperature=temperature, share=share)
    theirs = trl_losses.jsd(student, teacher, beta=beta, temperature=temperature)
    torch.testing.assert_close(ours, theirs)
    mine, expected = (torch.autograd.grad(x.sum(), student)[0] for x in (ours, theirs))
    torch.testing.assert_close(mine, expected)


def rows() -> ExampleRows:
    return ExampleRows([pair.chosen for pair in pairs(4)], batch_size=4, context=12)


def test_the_objective_is_hintons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.objectives.distillation.rows_at_once", lambda n_vocab: 3)
    model, teacher, data = small_model(), small_model(seed=1, d_model=8), rows()
    batch = next(data)
    objective = Distillation(model=model, data=data, teacher=teacher, temperature=2.0, token_weight=0.3)
    loss, metrics = objective(batch)
    learned = batch.targets_BT != IGNORE
    logits, above = model(batch.inputs_BT)[learned], teacher(batch.inputs_BT)[learned]
    soft = F.kl_div(F.log_softmax(logits / 2, -1), F.log_softmax(above / 2, -1), reduction="batchmean", log_target=True)
    hard = F.cross_entropy(logits, batch.targets_BT[learned])
    expected = 0.7 * 4 * soft + 0.3 * hard
    torch.testing.assert_close(loss, expected)
    assert float(metrics["nll"]) == pytest.approx(hard.item())
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected))


def test_the_teacher_is_neither_learned_nor_saved() -> None:
    objective = Distillation(model=small_model(), data=rows(), teacher=small_model(seed=1))
    n_own = len(list(small_model().parameters()))
    assert len(list(objective.parameters())) == n_own
    assert len(objective.state_dict()) == n_own + 1  # and the data cursor


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    model = small_model()
    for kind in ("forward", "reverse", "jsd"):
        objective = Distillation(model=model, data=rows(), teacher=small_model(), kind=kind)  # type: ignore[arg-type]
        assert abs(float(objective(next(rows()))[0].detach())) < 1e-12


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="vocabulary of 14"):
        Distillation(model=small_model(), data=rows(), teacher=small_model(n_vocab=14))
    for settings in ({"temperature": 0.0}, {"share": 1.0}, {"token_weight": 2.0}, {"kind": "backward"}):
        with pytest.raises(SettingError, match=next(iter(settings))):
            Distillation(model=small_model(), data=rows(), teacher=small_model(), **settings)  # type: ignore[arg-type]
