"""A forecast by a language model: make a series, train on it by recipes/time-series.toml, forecast, draw the plot.

    python examples/time_series.py [--out runs/time-series] [--plot forecast.png]

The series is made up, so that what can be known of it is known: a value every three hours, with a slow trend, a yearly
swing, a daily season that is smaller at weekends, and noise that lasts a while (an autoregression). The last weeks are
in no file that the training reads. For each of them the model sees the two weeks before it and goes on for 56 tokens,
many times over; the median of these samples is the forecast, and their 10 % and 90 % quantiles are the 80 % band.

Its mean absolute error stands beside that of the seasonal naive forecast (the week before, again), of persistence (the
last value, again), and of the best that anybody could do: the mean of the process that made the values.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from tessera import LM, Sampling, job
from tessera.recipe import load_recipe
from tessera.tokenizers.bins import BinTokenizer

RECIPE = Path(__file__).parents[1] / "recipes" / "time-series.toml"
DAY, WEEK, YEAR = 8, 56, 2922  # in steps of three hours
PERSISTS = 0.5  # of the noise, from one step to the next


def make_series(n: int, *, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """`n` values, and the part of each that is no noise."""
    step = np.arange(n)
    hour = 2 * np.pi * (step % DAY) / DAY
    daily = -np.cos(hour) + 0.4 * np.sin(2 * hour)
    weekend = step % WEEK >= 5 * DAY
    steady = 48 + step / YEAR / 3 - 4 * np.cos(2 * np.pi * step / YEAR) + np.where(weekend, 4, 9) * daily
    noise = np.zeros(n)
    shocks = np.random.default_rng(seed).normal(scale=1.5, size=n)
    for i in range(1, n):
        noise[i] = PERSISTS * noise[i - 1] + shocks[i]
    return np.round(steady + noise, 2), steady


def forecast(lm: LM, history: np.ndarray, horizon: int, *, samples: int, seed: int) -> np.ndarray:
    """`samples` ways in which `history` goes on, (samples, horizon). What the context has room for of it is seen."""
    assert isinstance(lm.tokenizer, BinTokenizer)
    ids = lm.tokenizer.encode_values(history[-(lm.model.context - horizon) :])
    drawn = lm.engine.complete(ids.tolist(), Sampling(max_tokens=horizon, seed=seed), n=samples)
    return np.stack([lm.tokenizer.decode_values(completion.ids) for completion in drawn])


def evaluate(
    lm: LM, values: np.ndarray, steady: np.ndarray, origins: Sequence[int], horizon: int, *, samples: int
) -> tuple[dict[str, float], np.ndarray]:
    """The mean errors of all forecasts, and the samples of the first one.

    A forecast begins at each of `origins` and sees nothing from there on.
    """
    errors: dict[str, list[float]] = {name: [] for name in ("model", "seasonal naive", "persistence", "best possible")}
    covered, first = [], np.zeros((0, 0))
    for number, origin in enumerate(origins):
        history, truth = values[:origin], values[origin : origin + horizon]
        paths = forecast(lm, history, horizon, samples=samples, seed=number)
        first = paths if number == 0 else first
        fades = PERSISTS ** np.arange(1, horizon + 1) * (values[origin - 1] - steady[origin - 1])
        guesses = {
            "model": np.median(paths, axis=0),
            "seasonal naive": values[origin - WEEK : origin - WEEK + horizon],
            "persistence": np.full(horizon, values[origin - 1]),
            "best possible": steady[origin : origin + horizon] + fades,
        }
        for name, guess in guesses.items():
            errors[name].append(float(np.abs(guess - truth).mean()))
        low, high = np.quantile(paths, (0.1, 0.9), axis=0)
        covered.append(float(((low <= truth) & (truth <= high)).mean()))
    figures = {name: float(np.mean(error)) for name, error in errors.items()}
    return {**figures, "in the 80 % band": float(np.mean(covered))}, first


def draw(values: np.ndarray, origin: int, paths: np.ndarray, title: str) -> Figure:
    """History, truth, median and 80 % band around the place `origin`."""
    horizon = paths.shape[1]
    start = max(0, origin - WEEK)
    low, median, high = np.quantile(paths, (0.1, 0.5, 0.9), axis=0)
    days = np.arange(start - origin, horizon) / DAY
    past, ahead = days[: origin - start], days[origin - start :]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(past, values[start:origin], color="0.35", linewidth=1.2, label="history")
    axes.plot(ahead, values[origin : origin + horizon], color="black", linewidth=1.2, label="truth")
    axes.fill_between(ahead, low, high, color="tab:blue", alpha=0.25, linewidth=0, label="80 % of the samples")
    axes.plot(ahead, median, color="tab:blue", linewidth=1.6, label="median of the samples")
    axes.axvline(-0.5 / DAY, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_xlabel("days from the beginning of the forecast")
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, ncols=4, loc="upper left")
    axes.margins(x=0.01, y=0.15)
    return figure


def run(
    out: Path, plot: Path, *, years: float = 12, weeks: int = 8, samples: int = 64, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Everything: the series into `out`/series.txt, the run into `out`/run, the plot; returns the errors."""
    values, steady = make_series(round(years * YEAR) + weeks * WEEK)
    origins = [len(values) - WEEK * k for k in range(weeks, 0, -1)]
    out.mkdir(parents=True, exist_ok=True)
    series = out / "series.txt"
    series.write_text("\n".join(map(str, values[: origins[0]].tolist())) + "\n", encoding="utf-8")
    recipe = load_recipe(RECIPE, overrides, sources=[str(series)])
    result = job.train(recipe, out / "run")
    result.run.close()
    horizon = min(WEEK, recipe.model.context // 2)
    figures, paths = evaluate(LM.load(out / "run"), values, steady, origins, horizon, samples=samples)
    title = (
        f"{horizon // DAY} days ahead; mean absolute error over {weeks} held-out weeks: model {figures['model']:.2f}, "
        f"seasonal naive {figures['seasonal naive']:.2f}, best possible {figures['best possible']:.2f}"
    )
    draw(values, origins[0], paths, title).savefig(plot, dpi=110)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="a.b=c changes a setting of the recipe")
    parser.add_argument("--out", type=Path, default=Path("runs/time-series"), help="where series and run are written")
    parser.add_argument("--plot", type=Path, default=Path("forecast.png"))
    parser.add_argument("--weeks", type=int, default=8, help="how many held-out weeks are forecast")
    parser.add_argument("--samples", type=int, default=64, help="how many samples a forecast is made of")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object")
    given = parser.parse_args()
    figures = run(given.out, given.plot, weeks=given.weeks, samples=given.samples, overrides=given.overrides)
    if given.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name:<18} {value:.3f}\n")


if __name__ == "__main__":
    main()
