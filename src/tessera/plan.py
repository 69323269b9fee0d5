"""What a recipe will need, before it starts: parameters, memory, tokens, and how long.

The sizes are counted, not measured: the model is built on the `meta` device, which takes no memory. The time is an
estimate from the usual 6 FLOPs a parameter and token (Kaplan et al. 2020, "Scaling Laws for Neural Language Models",
section 2.1), with the attention's own part added, over a measured matrix product on this machine.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature

import torch

from tessera.model.decoder import Decoder
from tessera.optim import groups
from tessera.recipe import Recipe, build_optimizer, pick_device
from tessera.tokenizers import TOKENIZERS
from tessera.tokenizers.bins import BinTokenizer

TRAINING_EFFICIENCY = 0.4  # of the measured product peak, as small models reach it on CPUs; an estimate needs no more


@dataclass(frozen=True)
class Plan:
    """The needs of a run. Sizes in bytes, time in seconds."""

    n_vocab: int
    n_params: int
    n_embedding_params: int
    tokens_per_step: int
    tokens: int
    weights: int
    optimizer: int
    gradients: int
    activations: int
    seconds: float
    device: str

    @property
    def memory(self) -> int:
        """Everything at once, at the worst moment of a step."""
        return self.weights + self.optimizer + self.gradients + self.activations


def make_plan(recipe: Recipe, *, n_vocab: int | None = None) -> Plan:
    """The plan of `recipe`; without `n_vocab`, what the tokenizer's settings promise."""
    n_vocab = expected_vocabulary(recipe) if n_vocab is None else n_vocab
    with torch.device("meta"):
        model = Decoder.from_settings(recipe.model, n_vocab=n_vocab)
    train, shape = recipe.train, recipe.model
    tokens_per_step = train.batch_size * train.accumulate * shape.context
    embedding = n_vocab * shape.d_model
    width = 4
    device = pick_device(train.device)
    attention_flops = 12 * shape.n_layers * shape.d_model * shape.context // 2
    flops_per_token = 6 * (model.n_params - (0 if shape.tied else embedding)) + attention_flops
    tokens = tokens_per_step * train.steps
    return Plan(
        n_vocab=n_vocab,
        n_params=model.n_params,
        n_embedding_params=embedding,
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        weights=width * model.n_params,
        gradients=width * model.n_params,
        optimizer=width * _optimizer_numbers(recipe, model),
        activations=width * train.batch_size * shape.context * _activations_per_token(recipe, n_vocab),
        seconds=tokens * flops_per_token / (TRAINING_EFFICIENCY * product_flops(device)),
        device=str(device),
    )


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


def _optimizer_numbers(recipe: Recipe, model: Decoder) -> int:
    """How many numbers the optimizer keeps for `model`, found by one step on a small weight of each kind."""
    shapes = {"matrix": (2, 2), "embedding": (2, 2), "vector": (2,)}
    small = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})
    optimizer = build_optimizer(recipe, small)  # type: ignore[arg-type]
    for parameter in small.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = {
        group["kind"]: sum(
            value.shape == parameter.shape
            for value in optimizer.state[parameter].values()
            if isinstance(value, torch.Tensor)
        )
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return sum(kept[group["kind"]] * sum(p.numel() for p in group["params"]) for group in groups(model))


def _activations_per_token(recipe: Recipe, n_vocab: int) -> int:
    """Numbers kept for the backward pass, per token: a round count of each block's inputs and outputs.

    Residual and norms 6 x width, attention 5 x width (q, k, v, mixed, out), feed-forward 3 x its inner width; logits
    only a chunk at a time.
    """
    shape = recipe.model
    d_ff = shape.d_ff or 4 * shape.d_model
    return shape.n_layers * (11 * shape.d_model + 3 * d_ff) + 2 * shape.d_model


def product_flops(device: torch.device, *, size: int = 1024, rounds: int = 3) -> float:
    """FLOP/s of an fp32 matrix product of `size` on `device`: the best of a few rounds, after one to warm up."""
    a = torch.ones(size, size, device=device)
    best = float("inf")
    for round in range(rounds + 1):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        if round:
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
