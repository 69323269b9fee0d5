"""The demonstration's own part: how it is fitted to the machine, and what it measures."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tessera import demo
from tessera.config import assign, check
from tessera.evaluate.syntax import is_python, with_body
from tessera.generate.sampling import Sampling
from tessera.job import train
from tessera.lm import LM
from tessera.recipe import Recipe

TINY: dict[str, Any] = {
    "tokenizer.vocab_size": 270,
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "model.context": 32,
    "train.batch_size": 2,
    "train.threads": 1,
    "train.device": "cpu",
    "sample.sampling.max_tokens": 4,
}


@pytest.fixture
def step_seconds(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How long a step is said to take."""
    said = {"seconds": 0.1}
    monkeypatch.setattr(demo, "measure_step", lambda recipe: said["seconds"])
    return said


def test_on_a_fast_machine_the_steps_are_the_recipes(step_seconds: dict[str, float]) -> None:
    step_seconds["seconds"] = 0.05
    recipe, said = demo.demo_recipe(None)
    expected = check(Recipe, demo.RECIPE)
    assert recipe.train.steps == expected.train.steps == demo.RECIPE["train"]["steps"]
    assert (recipe.model, recipe.optimizer, recipe.data) == (expected.model, expected.optimizer, expected.data)
    assert recipe.data.source == ["python-stdlib"]
    assert "50 ms" in said


def test_a_slow_machine_does_fewer_and_says_so(step_seconds: dict[str, float]) -> None:
    step_seconds["seconds"] = 2.0
    recipe, said = demo.demo_recipe(None)
    assert recipe.train.steps * 2.0 < 60 * demo.MINUTES
    assert recipe.train.steps < demo.RECIPE["train"]["steps"]
    assert f"{recipe.train.steps:,} steps" in said
    assert f"not {demo.RECIPE['train']['steps']:,}" in said


@pytest.mark.parametrize("minutes", [0.2, 1.0, 3.0, 5.0, 30.0])
@pytest.mark.parametrize("seconds", [0.01, 0.2, 5.0])
def test_the_time_given_is_kept(step_seconds: dict[str, float], minutes: float, seconds: float) -> None:
    step_seconds["seconds"] = seconds
    recipe, _ = demo.demo_recipe(minutes, seed=5)
    assert recipe.seed == 5
    assert recipe.train.finish_minutes is not None
    assert recipe.train.finish_minutes <= minutes
    assert recipe.train.steps == 20 or recipe.train.steps * seconds <= 60 * minutes
    assert int(recipe.schedule.settings["warmup"]) <= max(1, recipe.train.steps // 10)
    assert recipe.train.steps % recipe.train.eval_every <= recipe.train.steps // 9
    ramp = recipe.train.ramp("context_ramp")
    assert ramp(math.ceil(recipe.train.steps / 2), recipe.model.context) == recipe.model.context
    assert recipe.train.steps < 8 or ramp(0, recipe.model.context) < recipe.model.context


def test_more_time_is_used(step_seconds: dict[str, float]) -> None:
    steps = [demo.demo_recipe(minutes)[0].train.steps for minutes in (1, 2, 5, 20)]
    assert steps == sorted(steps)
    assert len(set(steps)) == len(steps)


def test_a_step_is_measured_and_costs_no_random_state() -> None:
    recipe = check(Recipe, assign(demo.RECIPE, TINY))
    assert 0 < demo.measure_step(recipe, rounds=2) < 5


def test_the_share_of_python_is_what_ast_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SNIPPETS", Sampling(temperature=0.0, max_tokens=12, stop=("\n",)))
    monkeypatch.setattr(demo, "SNIPPET_PROMPTS", ("import a\nx", "def (\nx"))
    lm = LM.new("x\n", d_model=16, n_heads=2, n_layers=1, context=32)
    lm.fit(["x\nx\nx\nx\n"] * 4, epochs=20, lr=0.02)
    recorded: list[tuple[Any, ...]] = []
    run = SimpleNamespace(add_evaluation=lambda *values: recorded.append(values))
    result = SimpleNamespace(model=lm.model, tokenizer=lm.tokenizer, run=run, step=9, extra={})
    demo.measure_python_share(result)  # type: ignore[arg-type]
    ((step, name, share, detail),) = recorded
    assert (step, name, share) == (9, "python_share", 0.5)  # all of the first prompt's, none of the second's
    assert detail == {"snippets": 2 * demo.SNIPPETS_A_PROMPT}
    assert result.extra == {"python_share": 0.5, "snippets": 2 * demo.SNIPPETS_A_PROMPT}


def test_the_prompts_can_begin_python() -> None:
    endings = (
        "f(x): pass",
        "a",
        "a import b",
        "    pass\n",
        "x in y: pass",
        "    pass\nfinally: pass",
        "f\ndef g(): 0",
    )
    for prompt in demo.SNIPPET_PROMPTS:
        assert any(is_python(with_body(prompt + ending)) for ending in endings), prompt


def test_the_whole_demo_on_a_small_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "text.py"
    source.write_text("".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(200)), encoding="utf-8")
    small = assign(demo.RECIPE, {**TINY, "data.source": [str(source)], "train.steps": 6})
    monkeypatch.setattr(demo, "RECIPE", small)
    monkeypatch.setattr(demo, "SNIPPETS", Sampling(max_tokens=4, seed=0))
    recipe, _ = demo.demo_recipe(None)
    result = train(recipe, tmp_path / "run", measure=demo.measure_python_share)
    with result.run as run:
        assert {e.name for e in run.evaluations()} == {
            "validation_loss",
            "bits_per_byte",
            "xz -9e",
            "bz2 -9",
            "python_share",
        }
    assert result.summary()["snippets"] == len(demo.SNIPPET_PROMPTS) * demo.SNIPPETS_A_PROMPT
    assert "of the lines it completes are Python" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
