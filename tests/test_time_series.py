"""The example of another domain, in a short form: from numbers to a forecast, and what it is measured by."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from examples.time_series import RECIPE, WEEK, YEAR, evaluate, forecast, make_series, run

from tessera.errors import InputError
from tessera.lm import LM
from tessera.recipe import load_recipe
from tessera.tokenizers.bins import BinTokenizer

SHORT = (
    "train.steps=4",
    "train.eval_every=0",
    "train.threads=1",
    "train.device=cpu",
    "schedule.warmup=1",
    "model.d_model=16",
    "model.n_layers=1",
    "model.n_heads=2",
    "sample.sampling.max_tokens=4",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("series")
    return out, run(out, out / "plot.png", years=1, weeks=2, samples=4, overrides=SHORT)


def test_the_example_runs_from_the_series_to_the_plot(finished: tuple[Path, dict[str, float]]) -> None:
    out, figures = finished
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert set(figures) == {"model", "seasonal naive", "persistence", "best possible", "in the 80 % band"}
    assert all(math.isfinite(value) for value in figures.values())
    assert figures["best possible"] < figures["seasonal naive"] < figures["persistence"]
    assert json.loads((out / "run" / "recipe.json").read_text())["tokenizer"]["name"] == "bins"


def test_the_forecast_weeks_are_not_trained_on(finished: tuple[Path, dict[str, float]]) -> None:
    written = np.loadtxt(finished[0] / "series.txt")
    values, _ = make_series(YEAR + 2 * WEEK)
    assert written.tolist() == values[:YEAR].tolist()


def test_a_forecast_is_so_many_series_of_values(finished: tuple[Path, dict[str, float]]) -> None:
    lm = LM.load(finished[0] / "run")
    values, _ = make_series(300)
    paths = forecast(lm, values, 20, samples=3, seed=1)
    assert paths.shape == (3, 20)
    assert np.array_equal(paths, forecast(lm, values, 20, samples=3, seed=1))
    assert isinstance(lm.tokenizer, BinTokenizer)
    assert set(paths.ravel()) <= set(lm.tokenizer.centres)


def test_the_run_answers_numbers_with_numbers(finished: tuple[Path, dict[str, float]]) -> None:
    lm = LM.load(finished[0] / "run")
    answer = lm.generate("40.1 41 45.5 47", max_tokens=6, seed=3)
    assert answer.startswith(" ")
    assert len(lm.tokenizer.encode("47" + answer)) == 7
    with pytest.raises(InputError, match=r"line 1, character 6: 'warm' is no finite number"):
        lm.generate("40.1 warm")


def test_errors_are_measured_against_values_that_the_forecast_does_not_see(
    finished: tuple[Path, dict[str, float]],
) -> None:
    lm = LM.load(finished[0] / "run")
    values, steady = make_series(600)
    changed = values.copy()
    changed[500:] += 10
    first, paths = evaluate(lm, values, steady, [500], 40, samples=3)
    second, same = evaluate(lm, changed, steady, [500], 40, samples=3)
    assert np.array_equal(paths, same)
    assert first["persistence"] == pytest.approx(np.abs(values[499] - values[500:540]).mean())
    assert first["seasonal naive"] == pytest.approx(np.abs(values[444:484] - values[500:540]).mean())
    assert second["best possible"] > first["best possible"] + 5


def test_the_recipe_is_the_one_that_is_shipped() -> None:
    recipe = load_recipe(RECIPE)
    values, _ = make_series(12 * YEAR + 8 * WEEK)
    settings = recipe.tokenizer.settings
    assert settings["low"] < values.min()
    assert values.max() < settings["high"]
    assert recipe.model.context > 3 * WEEK


@pytest.mark.slow
def test_the_model_is_ahead_of_the_seasonal_naive_forecast(tmp_path: Path) -> None:
    figures = run(tmp_path, tmp_path / "plot.png")
    assert figures["model"] < figures["seasonal naive"]
    assert 0.7 < figures["in the 80 % band"] < 0.9
