"""What a recipe will need of torch: the model is built on the `meta` device, which takes no memory, and counted.

Of a mixture of experts a token costs those parameters only that it meets.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tessera.adapt import ADAPTERS, base_bytes
from tessera.building import build_optimizer, pick_device
from tessera.config import build
from tessera.model.attention import GroupedQueryAttention
from tessera.model.decoder import Decoder
from tessera.model.linear import Linear
from tessera.model.moe import MixtureOfExperts
from tessera.optim.averaged import Averaged
from tessera.plan import TRAINING_EFFICIENCY, Plan
from tessera.recipe import Recipe
from tessera.train.compile import Checkpointing


def needs(recipe: Recipe, *, n_vocab: int, row: int, speed: Callable[[torch.device], float] | None) -> Plan:
    """The plan, as `tessera.plan.make_plan` gives it."""
    with torch.device("meta"):
        model = Decoder.from_settings(recipe.model, n_vocab=n_vocab)
        lora = None if recipe.adapt is None else build(ADAPTERS, recipe.adapt, path="adapt")
        learned = model if lora is None else lora.learned(model)
    train = recipe.train
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
