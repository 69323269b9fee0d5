"""The demonstration: Python's own standard library -> a small model that writes Python, in minutes, on any machine.

Every machine that runs Python has the text (about 10 MB), so that nothing is downloaded. The number of steps is fixed,
which makes the final figure the same on every machine; one that is too slow for it in the time given does fewer, and
says so.
"""

import math
import statistics
import time
from typing import Any

import torch

from tessera.building import build_model, build_optimizer, pick_device
from tessera.config import assign, check
from tessera.evaluate.syntax import python_share
from tessera.generate.engine import Engine
from tessera.generate.sampling import Sampling
from tessera.job import Result
from tessera.model.presets import PRESETS
from tessera.objectives import NextToken
from tessera.optim.clip import clip_grad_norm
from tessera.recipe import Recipe

MINUTES = 5.0

RECIPE: dict[str, Any] = {
    "name": "demo",
    "data": {"source": ["python-stdlib"], "validation": 0.1, "batches": "epoch"},
    "tokenizer": {"name": "bpe", "vocab_size": 4096, "pattern": "gpt4"},
    "model": PRESETS["demo"],
    "optimizer": {
        "name": "muon",
        "lr": 4e-3,
        "lr_scale": {"embedding": 32},
        "betas": [0.9, 0.95],
        "weight_decay": 0.1,
    },
    "schedule": {"name": "wsd", "warmup": 20, "floor": 0.0, "cooldown": 0.6, "curve": "linear"},
    "train": {
        "steps": 1300,
        "batch_size": 8,
        "context_ramp": {"name": "doubling", "start": 64, "steps": 650},
        "eval_every": 130,
        "eval_tokens": 8192,
        "eval_overlap": 0.25,
        "save_every": 434,
    },
    "sample": {
        "prompts": ["import os\nimport sys\n\n\ndef", "import os\nimport sys\n\n\nclass", ""],
        "sampling": {"temperature": 0.7, "top_p": 0.95, "max_tokens": 120},
    },
}

_MODULE = "import os\nimport sys\n\n\n"
_FUNCTION = _MODULE + "def main(path, name=None):\n    path = os.path.join(path, name)\n   "
SNIPPET_PROMPTS = (
    *("import os\n" + start for start in ("import", "from")),
    *(_MODULE + start for start in ("def", "class", "if", "_")),
    *(_FUNCTION + start for start in (" if", " for", " return", " raise", " name =", " with")),
)
"""A module, and the beginning of a line in it. No space at the end: a token begins with the space before its word."""
SNIPPETS_A_PROMPT = 8
SNIPPETS = Sampling(temperature=0.7, top_p=0.95, max_tokens=64, seed=0, stop=("\n",))

_OVERHEAD = 42.0
"""Seconds that are not updates, at the most: text, tokenizer, shards, validation, evaluation, samples, report."""


def demo_recipe(minutes: float | None, *, seed: int = 1337) -> tuple[Recipe, str]:
    """The recipe for the time given, and a sentence on how it was fitted to this machine.

    Without `minutes` it is the fixed number of steps, or what fits into five minutes. With `minutes`, what fits.
    """
    recipe = check(Recipe, assign(RECIPE, {"seed": seed}))
    budget = 60 * (MINUTES if minutes is None else minutes)
    step = measure_step(recipe)
    updates = 0.95 * budget - min(_OVERHEAD, 0.4 * budget)
    fits = max(20, math.floor(0.97 * updates / step))
    steps = fits if minutes is not None else min(fits, recipe.train.steps)
    said = f"a step takes {1000 * step:.0f} ms here: {steps:,} steps"
    if minutes is None and steps < recipe.train.steps:
        said += f", not {recipe.train.steps:,}, to be done in {MINUTES:g} minutes"
    values = {
        "train.steps": steps,
        "train.finish_minutes": updates / 60,
        "schedule.warmup": min(int(recipe.schedule.settings["warmup"]), max(1, steps // 10)),
        "train.eval_every": math.ceil(steps / 10),
        "train.save_every": math.ceil(steps / 3),
        "train.context_ramp.steps": math.ceil(steps / 2),
    }
    return check(Recipe, assign(RECIPE, {"seed": seed} | values)), said


def measure_step(recipe: Recipe, *, rounds: int = 5) -> float:
    """Seconds of a training step on random tokens on this machine: the median of `rounds`, after two to warm up."""
    n_vocab = int(recipe.tokenizer.settings["vocab_size"])
    device = pick_device(recipe.train.device)
    model = build_model(recipe, n_vocab).to(device)
    optimizer = build_optimizer(recipe, NextToken(model=model, data=None))  # type: ignore[arg-type]  # not trained on any
    shape = (recipe.train.batch_size, recipe.model.context)
    times = []
    for _ in range(rounds + 2):
        ids_BT = torch.randint(n_vocab, shape, device=device)
        start = time.perf_counter()
        model.loss(model.hidden(ids_BT), ids_BT).backward()
        float(clip_grad_norm(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def measure_python_share(result: Result) -> None:
    """Of lines that the model completes, the share that `ast.parse` accepts: into the run's evaluations."""
    engine = Engine(result.model, result.tokenizer)
    snippets = [
        prompt + text
        for prompt in SNIPPET_PROMPTS
        for text in engine.generate(prompt, SNIPPETS, n=SNIPPETS_A_PROMPT, truncate=True)
    ]
    share = python_share(snippets)
    result.run.add_evaluation(result.step, "python_share", share, {"snippets": len(snippets)})
    result.extra["python_share"] = share
    result.extra["snippets"] = len(snippets)
