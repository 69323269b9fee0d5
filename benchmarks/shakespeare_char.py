"""nanoGPT's CPU setting on tiny Shakespeare, by character: the loss over the full validation split, and the time.

4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, no dropout. nanoGPT's own training, measured elsewhere
over the same full split, reached 1.919. The text is TESSERA_DATA/text/tinyshakespeare.txt where it is there, else the
downloaded corpus.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tessera import job
from tessera.recipe import load_recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "shakespeare-char.toml"


def text() -> str:
    """The text's path, or the corpus's name."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("TESSERA_DATA", beside)) / "text" / "tinyshakespeare.txt"
    return str(path) if path.exists() else "tiny-shakespeare"


def measure(*, steps: int | None = None) -> dict[str, Any]:
    """Train as the recipe says (for `steps` if given): validation loss, seconds of training, tokens a second."""
    overrides = [f"data.source=[{json.dumps(text())}]"] + ([] if steps is None else [f"train.steps={steps}"])
    recipe = load_recipe(RECIPE, overrides)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = job.train(recipe, Path(folder) / "run")
        seconds = time.perf_counter() - start
        parts = ("data", "forward and backward", "optimizer")
        training = sum(result.seconds[name] for name in parts)
        tokens = recipe.train.steps * recipe.train.batch_size * recipe.train.accumulate * recipe.model.context
        assert result.loss is not None
        result.run.close()
    return {
        "validation_loss": round(result.loss.mean, 4),
        "validation_tokens": result.loss.n_tokens,
        "steps": recipe.train.steps,
        "training_seconds": round(training, 1),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / training),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 steps")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    arguments = parser.parse_args()
    figures = measure(steps=200 if arguments.quick else None)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name:<20} {value}\n")


if __name__ == "__main__":
    main()
