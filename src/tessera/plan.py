"""What a recipe will need, before it starts: parameters, memory, tokens, and how long.

The sizes are counted, not measured. The time is an estimate from the usual 6 FLOPs a parameter and token (Kaplan et al.
2020, "Scaling Laws for Neural Language Models", section 2.1), with the attention's own part added, over a measured
matrix product on this machine. Each engine counts its own: `tessera.torch_plan`, `tessera.numpy_plan`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

from tessera.recipe import Recipe
from tessera.tokenizers import TOKENIZERS
from tessera.tokenizers.bins import BinTokenizer
from tessera.train.room import check_disk, check_memory

PLANNERS = {"torch": "tessera.torch_plan", "numpy": "tessera.numpy_plan"}
"""Engine -> the module whose `needs` counts."""
TRAINING_EFFICIENCY = 0.4  # of the measured product peak, as small models reach it on CPUs; an estimate needs no more


@dataclass(frozen=True)
class Plan:
    """The needs of a run. Sizes in bytes, time in seconds."""

    n_vocab: int
    n_params: int
    n_active_params: int
    """Those that a generated token meets: without the experts that it is not sent to, and further heads."""
    n_embedding_params: int
    tokens_per_step: int
    tokens: int
    weights: int
    optimizer: int
    gradients: int
    average: int
    """The second set of weights that `train.ema` keeps."""
    activations: int
    update: int
    """What the optimizer's update takes for itself; the activations are gone by then."""
    checkpoint: int
    """On the disk: weights and optimizer, and the other set of weights where the run averages them."""
    seconds: float
    device: str

    @property
    def fixed(self) -> int:
        """The memory that is needed whatever the batch is."""
        return self.weights + self.optimizer + self.gradients + self.average

    @property
    def memory(self) -> int:
        """Everything at once, at the worst moment of a step.

        An optimizer that averages the weights itself holds a third set while the averages are looked at; there are no
        gradients then.
        """
        return self.fixed + max(self.activations, self.update)


def make_plan(
    recipe: Recipe,
    *,
    n_vocab: int | None = None,
    row: int | None = None,
    speed: Callable[[Any], float] | None = None,
) -> Plan:
    """The plan of `recipe`; without `n_vocab`, what the tokenizer's settings promise.

    `row` is the most tokens that a row of a batch has, where that is known; `speed` gives a device's FLOP/s, and is
    measured unless said.
    """
    n_vocab = recipe.n_vocab or (expected_vocabulary(recipe) if n_vocab is None else n_vocab)
    needs = import_module(PLANNERS[recipe.engine]).needs
    return needs(recipe, n_vocab=n_vocab, row=row or tokens_in_row(recipe), speed=speed)


def tokens_in_row(recipe: Recipe) -> int:
    """The most tokens that a row of a batch has: of a pair, those of both answers."""
    most = recipe.model.context
    if recipe.reads != "documents":
        most = min(recipe.data.examples.max_tokens or most, most)
    return 2 * most if recipe.reads in ("pairs", "judged") else most


def check_room(
    recipe: Recipe,
    path: Path,
    *,
    say: Callable[[str], None],
    n_vocab: int | None = None,
    row: int | None = None,
    kept: int = 0,
) -> None:
    """Say what is worth saying about memory and disk before a run in the folder `path` starts; raise if it cannot fit.

    `kept` is how many checkpoints are there already.
    """
    plan, train = (
        make_plan(recipe, n_vocab=n_vocab, row=row, speed=lambda device: math.inf),
        recipe.train,
    )  # time is not asked
    lines = check_memory(
        plan.device,
        fixed=plan.fixed,
        certain=plan.weights + plan.gradients,
        per_row=plan.activations // train.batch_size,
        batch_size=train.batch_size,
        accumulate=train.accumulate,
        update=plan.update,
    )
    one = 2 * plan.checkpoint if recipe.store == "sqlite" else plan.checkpoint  # the log is written first, then copied
    stay = train.keep + 1 + (kept > 0)  # the newest, the best, and the one that the run was resumed from
    more = max(0, stay - kept) * plan.checkpoint
    for line in lines + check_disk(path, one=one, certain=plan.weights, more=more):
        say(line)


def expected_vocabulary(recipe: Recipe) -> int:
    """The vocabulary size that the tokenizer's settings ask for; that of bytes where only the text decides it."""
    kind, settings = TOKENIZERS[recipe.tokenizer.name], recipe.tokenizer.settings
    specials = {"specials": settings["specials"]} if "specials" in settings else {}
    if kind is BinTokenizer:
        n_bins = settings.get("n_bins", signature(kind.train).parameters["n_bins"].default)
        return BinTokenizer(edges=range(n_bins + 1), missing=settings.get("missing", "error"), **specials).n_vocab
    asked = signature(kind.train).parameters.get("vocab_size")
    size = settings.get("vocab_size", asked.default if asked else None)
    if size is None:
        return TOKENIZERS["byte"].train([], **specials).n_vocab
    given = specials.get("specials", ())
    ids = [id for id in given.values() if id is not None] if isinstance(given, Mapping) else []
    return max(size, *(id + 1 for id in ids), 1)
