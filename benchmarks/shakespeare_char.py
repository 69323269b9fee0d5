"""Tiny Shakespeare by character: the loss over the full validation split (the last tenth), and the time.

Two things are measured. By default nanoGPT's CPU setting in Tessera (4 layers, 4 heads, width 128, context 64, batch
12, 2,000 steps, no dropout), which shows that the chain reaches what a known-good implementation reaches. With
`--fast`, what three minutes on two cores are good for: recipes/shakespeare-fast.toml over several seeds, and, with
`--nanogpt FOLDER`, a checkout of nanoGPT, its own CPU recipe for the same time after each.

The text is TESSERA_DATA/text/tinyshakespeare.txt where it is there, else the downloaded corpus.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import nanogpt, shakespeare_nanogpt
from tessera import job
from tessera.data.download import download
from tessera.recipe import Recipe, load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
UPDATES = ("data", "forward and backward", "optimizer", "learning")
"""The parts of the clock that `train.finish_minutes` counts; the NumPy engine has the last for the two before it."""


def text() -> str:
    """The text's path, or the corpus's name."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("TESSERA_DATA", beside)) / "text" / "tinyshakespeare.txt"
    return str(path) if path.exists() else "tiny-shakespeare"


def recipe_of(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.toml", [f"data.source=[{json.dumps(text())}]", *overrides])


def trained(recipe: Recipe) -> dict[str, Any]:
    """Train as the recipe says: validation loss, seconds of training, tokens a second."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = job.train(recipe, Path(folder) / "run")
        seconds = time.perf_counter() - start
        training = sum(result.seconds.get(name, 0.0) for name in UPDATES)
        tokens = result.step * recipe.train.batch_size * recipe.train.accumulate * recipe.model.context
        noted = {each.name: each for each in result.run.evaluations()}["validation_loss"]
        result.run.close()
    return {
        "validation_loss": round(noted.value, 4),
        "validation_tokens": noted.detail["tokens"],
        "steps": result.step,
        "training_seconds": round(training, 1),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / training),
    }


def measure(*, steps: int | None = None) -> dict[str, Any]:
    """nanoGPT's setting, for `steps` if given."""
    return trained(recipe_of("shakespeare-char", *([] if steps is None else [f"train.steps={steps}"])))


def measure_fast(minutes: float | None = None, *, seeds: Sequence[int], nanogpt: Path | None = None) -> dict[str, Any]:
    """The fast recipe and nanoGPT's, in turns, a run of `minutes` for each seed; the means, the worst of ours, and how
    far apart they are."""
    figures: dict[str, Any] = {}
    ours, theirs = [], []
    for seed in seeds:
        overrides = [] if minutes is None else [f"train.finish_minutes={minutes}"]
        recipe = recipe_of("shakespeare-fast", f"seed={seed}", *overrides)
        limit = recipe.train.finish_minutes
        assert limit is not None
        run = trained(recipe)
        ours.append(run["validation_loss"])
        names = {"validation_loss": "loss", "steps": "steps", "training_seconds": "seconds"}
        figures |= {f"{name}_seed{seed}": run[key] for key, name in names.items()}
        if nanogpt is not None:
            peer = shakespeare_nanogpt.train(nanogpt, _content(), seconds=60 * limit, seed=seed)
            theirs.append(peer.loss)
            figures |= {f"nanogpt_loss_seed{seed}": round(peer.loss, 4), f"nanogpt_steps_seed{seed}": peer.steps}
            figures[f"nanogpt_seconds_seed{seed}"] = round(peer.seconds, 1)
    figures["loss_mean"] = round(statistics.mean(ours), 4)
    figures["loss_worst"] = max(ours)
    if theirs:
        figures["nanogpt_loss_mean"] = round(statistics.mean(theirs), 4)
        figures["below_nanogpt"] = round(figures["nanogpt_loss_mean"] - figures["loss_mean"], 4)
    return figures


def _content() -> str:
    path = Path(text())
    if not path.exists():
        (path,) = download(str(path)).glob("*.txt")
    return path.read_text(encoding="utf-8")


def _check_nanogpt(folder: Path) -> None:
    """Before the minutes that ours take."""
    try:
        nanogpt.module(folder)
    except nanogpt.NotHereError as why:
        raise SystemExit(f"--nanogpt: {why}") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="three minutes: the fast recipe, three seeds")
    parser.add_argument(
        "--nanogpt", type=Path, metavar="FOLDER", help="with --fast: a checkout of nanoGPT to run beside"
    )
    parser.add_argument("--minutes", type=float, help="with --fast: another time than the recipe's")
    parser.add_argument("--seeds", type=int, default=3, help="with --fast: how many")
    parser.add_argument("--quick", action="store_true", help="200 steps; with --fast a tenth of a minute, one seed")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    arguments = parser.parse_args()
    if arguments.nanogpt is not None:
        _check_nanogpt(arguments.nanogpt)
    if arguments.fast:
        minutes, n_seeds = (0.1, 1) if arguments.quick else (arguments.minutes, arguments.seeds)
        figures = measure_fast(minutes, seeds=range(1, n_seeds + 1), nanogpt=arguments.nanogpt)
    else:
        figures = measure(steps=200 if arguments.quick else None)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name:<24} {value}\n")


if __name__ == "__main__":
    main()
