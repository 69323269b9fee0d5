"""What a recipe will need, before it starts: parameters, memory, tokens, and how long.

The sizes are counted, not measured: the model is built on the `meta` device, which takes no memory. The time is an
estimate from the usual 6 FLOPs a parameter and token (Kaplan et al. 2020, "Scaling Laws for Neural Language Models",
section 2.1), with the attention's own part added, over a measured matrix product on this machine. Of a mixture of
experts a token costs those parameters only that it meets.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.adapt import ADAPTERS, base_bytes
from tessera.config import build
from tessera.model.attention import GroupedQueryAttention
from tessera.model.decoder import Decoder
from tessera.model.linear import Linear
from tessera.model.moe import MixtureOfExperts
from tessera.optim.averaged import Averaged
from tessera.recipe import Recipe, build_optimizer, pick_device
from tessera.tokenizers import TOKENIZERS
from tessera.tokenizers.bins import BinTokenizer
from tessera.train.compile import Checkpointing
from tessera.train.room import check_disk, check_memory

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
    speed: Callable[[torch.device], float] | None = None,
) -> Plan:
    """The plan of `recipe`; without `n_vocab`, what the tokenizer's settings promise.

    `row` is the most tokens that a row of a batch has, where that is known; `speed` gives a device's FLOP/s, and is
    measured unless said.
    """
    n_vocab = recipe.n_vocab or (expected_vocabulary(recipe) if n_vocab is None else n_vocab)
    with torch.device("meta"):
        model = Decoder.from_settings(recipe.model, n_vocab=n_vocab)
        lora = None if recipe.adapt is None else build(ADAPTERS, recipe.adapt, path="adapt")
        learned = model if lora is None else lora.learned(model)
    train, row = recipe.train, row or tokens_in_row(recipe)
    tokens_per_step = train.batch_size * train.accumulate * row
    width = 4
    device = pick_device(train.device)
    tokens = tokens_per_step * train.steps
    optimizer: Any = build_optimizer(recipe, learned)  # type: ignore[arg-type]
    own, state = width * _count(learned), optimizer.memory()
    weights = own if lora is None else own + int(base_bytes(model, lora.base))
    is_averaged = train.ema is not None or isinstance(optimizer, Averaged)
    flops_a_second = (product_flops if speed is None else speed)(device)
    return Plan(
        n_vocab=n_vocab,
        n_params=model.n_params,
        n_active_params=active_params(model) - active_params(model.future),
        n_embedding_params=_count(model.embedding),
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        weights=weights,
        gradients=own,
        optimizer=state,
        average=0 if train.ema is None else own,
        activations=width * train.batch_size * row * _activations_per_token(model, train.checkpointing),
        update=optimizer.update_memory(),
        checkpoint=own + state + (own if is_averaged else 0),
        seconds=tokens * training_flops(model) / (TRAINING_EFFICIENCY * flops_a_second),
        device=str(device),
    )


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
        torch.device(plan.device),
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


def active_params(module: nn.Module) -> int:
    """The parameters that one token meets: of each mixture of experts, those that are chosen for it."""
    mixtures = [part for part in module.modules() if isinstance(part, MixtureOfExperts)]
    idle = sum(
        _count(mixture.experts) * (mixture.n_experts - mixture.n_active) // mixture.n_experts for mixture in mixtures
    )
    return _count(module) - idle


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def training_flops(model: Decoder) -> float:
    """Of one token, forward and backward: 6 for each weight that it is multiplied by, and what its attention costs.

    Tables that are looked up multiply nothing. Each further head is one more product with the output table.
    """
    head = model.head_weight.numel() if model.head is None else 0  # a tied table is looked up, and multiplied
    looked_up = _count(model.positions) + _count(model.embedding) - head
    weights = active_params(model) - looked_up + len(model.future) * model.head_weight.numel()
    return 6 * weights + sum(_attention_flops(block.attention, model.context) for block in _blocks(model))


def _attention_flops(attention: Any, context: int) -> float:
    """Of the scores and of the sums of values: 6 for each number of a query, and of what is gathered, and each key."""
    window = context
    if isinstance(attention, GroupedQueryAttention) and attention.window is not None:
        window = min(context, attention.window + attention.window_keeps)
    # Token t sees min(t, window) tokens, itself included: the mean over a context that begins empty.
    keys = window - window * (window - 1) / (2 * context)
    return 6 * keys * (attention.query.weight.shape[0] + attention.output.weight.shape[1])


def _activations_per_token(model: Decoder, checkpointing: Checkpointing = None) -> int:
    """Numbers kept for the backward pass, per token: a round count of each block's inputs and outputs.

    With `checkpointing` they are those that stay, and those of what is made again at a time. Logits only a chunk at a
    time.
    """
    d_model = model.embedding.weight.shape[1]
    blocks = [_block_numbers(block, d_model) for block in model.blocks]
    further = sum(_block_numbers(block, d_model) for block in model.future) + 2 * d_model * (1 + len(model.future))
    if checkpointing is None:
        return sum(blocks) + further
    if checkpointing == "selective":
        return sum(_dear_numbers(block, d_model) for block in model.blocks) + max(blocks) + further
    segments = [sum(blocks[start : start + checkpointing]) for start in range(0, len(blocks), checkpointing)]
    return len(segments) * d_model + max(segments) + further


def _block_numbers(block: Any, d_model: int) -> int:
    """Residual and norms 7 x width, and what the products of attention and feed-forward read and write."""
    return 7 * d_model + _between(block.attention) + _feed_forward_numbers(block.feed_forward)


def _dear_numbers(block: Any, d_model: int) -> int:
    """What a block keeps that makes only the cheap again: what its products write, and its own input."""
    written = sum(part.weight.shape[0] for part in block.modules() if isinstance(part, Linear))
    mixed = block.attention.output.weight.shape[1]
    moe = _feed_forward_numbers(block.feed_forward) if isinstance(block.feed_forward, MixtureOfExperts) else 0
    return d_model + written + mixed + moe


def _feed_forward_numbers(feed_forward: nn.Module) -> int:
    if not isinstance(feed_forward, MixtureOfExperts):
        return _between(feed_forward)
    n_experts, d_expert, d_model = feed_forward.experts.gate.weight.shape
    each = 3 * d_expert + 2 * d_model  # gate, input and their product; the token's copy, and what the expert says
    shared = 0 if feed_forward.shared is None else _between(feed_forward.shared)
    return feed_forward.n_active * each + shared + 3 * n_experts


def _between(layer: nn.Module) -> int:
    """The numbers between a layer's input and its output: what its maps write, and what the last of them reads."""
    maps = {name: part.weight.shape for name, part in layer.named_children() if isinstance(part, Linear)}
    return sum(shape[0] for name, shape in maps.items() if name != "output") + maps["output"][1]


def _blocks(model: Decoder) -> list[Any]:
    return [*model.blocks, *model.future]


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
