"""The benchmark on characters of Shakespeare: the fast recipe beside a peer, in seconds and on a small text."""

import math
from pathlib import Path

import pytest
import torch
from benchmarks import shakespeare_char, shakespeare_nanogpt
from tests.nanogpt_form import make_nanogpt

LINES = "ROMEO:\nBut soft, what light through yonder window breaks?\n\nJULIET:\nAy me!\n\n"


@pytest.fixture
def small_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "tinyshakespeare.txt"
    path.write_text(LINES * 100)
    monkeypatch.setattr(shakespeare_char, "text", lambda: str(path))
    return path


def test_both_are_trained_for_the_time_given_and_the_figures_are_flat(small_text: Path, tmp_path: Path) -> None:
    figures = shakespeare_char.measure_fast(0.02, seeds=(1, 2), nanogpt=make_nanogpt(tmp_path / "peer"))
    assert all(isinstance(value, int | float) for value in figures.values())
    for seed in (1, 2):
        assert figures[f"steps_seed{seed}"] >= 1
        assert 0 < figures[f"loss_seed{seed}"] < math.log(65)
        assert figures[f"nanogpt_steps_seed{seed}"] > 1
        assert figures[f"nanogpt_seconds_seed{seed}"] == pytest.approx(1.2, abs=0.6)
    ours = [figures["loss_seed1"], figures["loss_seed2"]]
    assert figures["loss_mean"] == pytest.approx(sum(ours) / 2, abs=1e-4)
    assert figures["loss_worst"] == max(ours)
    assert figures["below_nanogpt"] == pytest.approx(figures["nanogpt_loss_mean"] - figures["loss_mean"], abs=2e-4)


def test_the_whole_of_the_held_out_text_counts_each_character_once() -> None:
    class Certain:
        """Its loss at a place is the place."""

        def eval(self) -> None:
            pass

        def __call__(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> tuple[None, torch.Tensor]:
            assert inputs_BT.shape[1] <= shakespeare_nanogpt.CONTEXT
            assert torch.equal(inputs_BT + 1, targets_BT)
            return None, targets_BT.double().mean()

    for n in (2, 64, 65, 66, 200):
        assert shakespeare_nanogpt.full_loss(Certain(), torch.arange(n)) == pytest.approx(n / 2)


def test_nanogpts_rate_goes_up_and_comes_down_to_a_tenth() -> None:
    rates = [shakespeare_nanogpt.rate(step, 500) for step in range(501)]
    assert rates[:100] == sorted(rates[:100])
    assert rates[100] == max(rates) == pytest.approx(1e-3)
    assert rates[300] == pytest.approx(5.5e-4)
    assert rates[500] == pytest.approx(1e-4)


def test_the_fast_recipe_is_three_minutes_on_characters() -> None:
    recipe = shakespeare_char.recipe_of("shakespeare-fast")
    assert (recipe.tokenizer.name, recipe.data.validation, recipe.train.finish_minutes) == ("char", 0.1, 3)
    ramp = recipe.train.ramp("context_ramp")
    assert ramp(recipe.train.steps // 2, recipe.model.context) == recipe.model.context, "in time on a slower machine"
