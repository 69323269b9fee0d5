"""Rollouts: what the model said, as data: computed once, learned from in batches, and the same after a restart."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.objectives.small_tasks import (
    TOKENIZER,
    largest,
    logprobs_by_hand,
    model_of,
    objective_of,
    repeat_me,
    rows_of,
    tensors_of,
    train,
    trainer_of,
)

from tessera.adapt.adapted import disabled
from tessera.adapt.lora import Lora
from tessera.data.batch import IGNORE
from tessera.errors import InputError, SettingError
from tessera.objectives.rollout import Said, as_rows
from tessera.store.run import Run
from tessera.train.memory import cut, n_rows

KINDS = ("grpo", "ppo")
STEPS = 10


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[Callable[[str], Run]]:
    made: list[Run] = []

    def make(name: str) -> Run:
        made.append(Run.create(tmp_path / name, recipe={}, tokenizer_json="{}", vocabulary=[], store="files"))
        return made[-1]

    yield make
    for run in made:
        run.close()


def test_what_is_learned_is_what_was_said() -> None:
    inputs, targets = as_rows([Said([1, 2, 3], [4, 5], True, 1.0), Said([6], [7, 8], False, 0.0)], 5)
    assert inputs.tolist() == [[1, 2, 3, 4, 0], [6, 7, 0, 0, 0]]
    no = IGNORE
    assert targets.tolist() == [[no, no, 4, 5, no], [7, 8, no, no, no]]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_ratio_is_one(kind: str, temperature: float) -> None:
    """And the log-probabilities are those of the whole softmax, although the model has dropout."""
    objective = objective_of(kind, temperature=temperature, shape={"dropout": 0.3})
    objective.train()
    batch = next(objective.batches())
    expected = logprobs_by_hand(objective.model, batch.inputs_BT, batch.targets_BT, temperature)
    torch.testing.assert_close(batch.old_BT.double(), expected, atol=1e-5, rtol=0)
    assert (batch.old_BT != 0).sum() == batch.mask.sum() > 0
    _, metrics = objective(batch)
    assert float(metrics["clipped"]) == 0
    assert abs(float(metrics["kl_old"])) < 1e-9
    assert abs(float(metrics["kl"])) < 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_is_learned_from_once_an_epoch(kind: str) -> None:
    objective = objective_of(kind)
    drawn = objective.batches()
    batches = [next(drawn) for _ in range(5)]
    assert [n_rows(batch) for batch in batches] == [7, 5, 7, 5, 7]
    assert objective.get_extra_state()["rollout"] == 2

    def rows(pair: list) -> list[str]:
        return [str((i.tolist(), t.tolist())) for each in pair for i, t in zip(*padded(each), strict=True)]

    def padded(batch) -> tuple:
        width = objective.rollout.get_buffer("inputs").shape[1] - batch.inputs_BT.shape[1]
        pad = torch.nn.functional.pad
        return pad(batch.inputs_BT, (0, width)), pad(batch.targets_BT, (0, width), value=IGNORE)

    first, second = rows(batches[:2]), rows(batches[2:4])
    assert sorted(first) == sorted(second)
    assert first != second  # in another order


@pytest.mark.parametrize("kind", KINDS)
def test_draws_come_from_the_seed_alone(kind: str) -> None:
    def answers(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        objective = objective_of(kind, model=model_of())
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        next(objective.batches())
        assert torch.equal(torch.get_rng_state(), before)
        return objective.rollout.get_buffer("inputs").clone()

    assert torch.equal(answers(1), answers(2))


@pytest.mark.parametrize("average", ["answers", "tokens", "constant"])
def test_a_batch_in_parts_has_the_same_gradient(average: str) -> None:
    objective = objective_of("grpo", average=average, minibatch=12, judge=largest)
    train(objective, lr=3e-3, steps=1)
    batch = next(objective.batches())
    assert batch.n_targets == (int(batch.mask.sum()) if average == "tokens" else 12)

    def gradient(parts: list) -> torch.Tensor:
        objective.zero_grad()
        for part in parts:
            (objective(part)[0] * part.n_targets / batch.n_targets).backward()
        return torch.cat([p.grad.flatten() for p in objective.parameters()])

    whole, in_parts = gradient([batch]), gradient(cut(batch, 5))
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(in_parts, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_in_the_middle_of_a_rollout_it_ends_bit_for_bit_the_same(
    make_run: Callable[[str], Run], kind: str
) -> None:
    """Rollouts of four updates: every position is cut at, also that after the last."""
    settings = {"kl_target": 0.01, "kl_horizon": 50} if kind == "ppo" else {"redraw": 1}
    whole = objective_of(kind, **settings)
    run = make_run("whole")
    trainer_of(whole, lr=1e-2, steps=STEPS, store=run.checkpoints).run()
    expected = tensors_of(whole)
    assert int(expected["rollout.number"]) == 3
    for step in range(1, STEPS):
        resumed = objective_of(kind, **settings)
        trainer = trainer_of(resumed, lr=1e-2, steps=STEPS, store=run.checkpoints)
        torch.manual_seed(99 + step)
        trainer.resume(step)
        assert resumed.get_extra_state()["position"] == (step - 1) % 4 + 1
        trainer.checkpoints = None
        trainer.run()
        found = tensors_of(resumed)
        assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
        assert resumed.get_extra_state() == whole.get_extra_state()


def test_after_a_rewind_there_is_a_new_rollout() -> None:
    objective = objective_of("grpo")
    drawn = objective.batches()
    next(drawn)
    old, cursor = tensors_of(objective), objective.get_extra_state()
    for _ in range(4):
        next(drawn)
    later = objective.get_extra_state()
    assert (cursor["rollout"], later["rollout"], later["position"]) == (1, 2, 1)
    objective.load_state_dict({**old, "_extra_state": cursor})
    objective.set_extra_state(later)  # as the trainer does: older tensors, and what follows the newer cursor
    next(drawn)
    assert int(objective.rollout.number) == objective.get_extra_state()["rollout"] == 3
    assert objective.get_extra_state()["data"] != later["data"]


def test_held_out_answers_are_the_most_probable_and_change_nothing() -> None:
    objective = objective_of("grpo")
    next(objective.batches())
    before, state, generators = tensors_of(objective), objective.get_extra_state(), torch.get_rng_state()
    rows = rows_of(["7", "89", "0"])
    found = objective.held_out(rows)
    with torch.no_grad():
        said = [int(objective.model(torch.tensor([prompt]))[0, -1].argmax()) for prompt in rows.prompts]
    right = sum(id == prompt[0] for id, prompt in zip(said, rows.prompts, strict=True)) / 3
    assert (found["reward"], found["loss"]) == (right, -right)
    assert 0 <= found["ended"] <= 1 <= found["length"] <= 3
    after = tensors_of(objective)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert objective.get_extra_state() == state
    assert torch.equal(torch.get_rng_state(), generators)


def test_the_base_of_adapters_is_the_reference() -> None:
    model = model_of()
    Lora(rank=2)(model)
    objective = objective_of("grpo", model=model, judge=largest, reference=None, base_only=lambda: disabled(model))
    train(objective, lr=5e-2, steps=5)
    batch = next(objective.batches())
    expected = logprobs_by_hand(model_of(), batch.inputs_BT, batch.targets_BT)
    torch.testing.assert_close(batch.reference_BT.double(), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(batch.reference_BT, batch.old_BT, atol=1e-3)


def test_what_is_not_learned_is_not_saved() -> None:
    objective = objective_of("ppo", judge=torch.nn.Linear(2, 2))
    names = {name.split(".")[0] for name in objective.state_dict()}
    assert names == {"model", "value_head", "rollout", "_extra_state"}
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"model", "value_head"}


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(SettingError, match="max_tokens = 10: expected at most 9"):
        objective_of("grpo", max_tokens=10)
    with pytest.raises(SettingError, match="minibatch = 13"):
        objective_of("ppo", minibatch=13)
    with pytest.raises(SettingError, match="epochs = 0"):
        objective_of("ppo", epochs=0)
    with pytest.raises(InputError, match="there is no reference"):
        objective_of("grpo", reference=None)
    bad = objective_of("grpo", judge=lambda answers: [float("nan")] * len(answers))
    with pytest.raises(InputError, match="expected a finite number"):
        next(bad.batches())
    few = objective_of("grpo", judge=lambda answers: repeat_me(answers)[1:])
    with pytest.raises(InputError, match="for 12 answers"):
        next(few.batches())
    with pytest.raises(InputError, match="other batches"):
        objective_of("grpo").set_extra_state({"data": rows_of(["5"]).state(), "rollout": 1, "position": 0})
    assert TOKENIZER.end_id is not None
