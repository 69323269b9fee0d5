"""The NumPy engine beside the eager PyTorch engine: nanoGPT's CPU setting on Tiny Shakespeare by character.

Both train by the same recipe (recipes/shakespeare-char.toml: 4 layers, 4 heads, width 128, context 64, batch 12) in the
same job, in turns, a few steps each; `numpy_vs_eager` is the ratio of the medians of tokens a second. NumPy shares a
batch among as many processes as there are cores, PyTorch runs without its compiler, with as many threads. Then NumPy
trains the whole 2,000 steps, for the validation loss and the time.

Refused where other programs take more than 5 % of the processor, unless with --anyway.
"""

import argparse
import json
import os
import statistics
import sys
from typing import Any

from benchmarks.quiet import MOST, OthersBusy
from benchmarks.shakespeare_char import recipe_of, trained
from tessera.recipe import Recipe

CORES = os.cpu_count() or 1
ENGINES = {
    "numpy": ("engine=numpy", f"train.workers={CORES}"),
    "eager": ("engine=torch", "train.compile=false", "train.precision=fp32"),
}


def recipe_for(engine: str, steps: int) -> Recipe:
    return recipe_of("shakespeare-char", *ENGINES[engine], f"train.steps={steps}")


def measure(*, rounds: int, steps: int, whole: int) -> dict[str, Any]:
    """The ratio from `rounds` of `steps` each, and `whole` steps by NumPy."""
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for number in range(rounds):
        for engine in sorted(ENGINES, reverse=number % 2 == 1):
            rates[engine].append(trained(recipe_for(engine, steps))["tokens_per_second"])
    medians = {engine: statistics.median(each) for engine, each in rates.items()}
    figures: dict[str, Any] = {"numpy_vs_eager": round(medians["numpy"] / medians["eager"], 3)}
    figures |= {f"{engine}_tokens_per_second": round(median) for engine, median in medians.items()}
    figures |= {name: value for name, value in trained(recipe_for("numpy", whole)).items() if name != "seconds"}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of 30 steps, and 60 in the place of 2,000")
    parser.add_argument("--anyway", action="store_true", help="measure beside other programs too")
    parser.add_argument("--json", action="store_true", help="the figures as one JSON object on the last line")
    arguments = parser.parse_args()
    others = OthersBusy()
    sizes = {"rounds": 1, "steps": 30, "whole": 60} if arguments.quick else {"rounds": 5, "steps": 200, "whole": 2000}
    figures = measure(**sizes)
    figures["others"] = round(others.share(), 4)
    if figures["others"] > MOST and not arguments.anyway:
        raise SystemExit(f"other programs took {figures['others']:.1%} of the processor: not a measurement (--anyway)")
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        sys.stdout.write(f"{name:<24} {value}\n")


if __name__ == "__main__":
    main()
