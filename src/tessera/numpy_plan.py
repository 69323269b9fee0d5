"""What a recipe will need of the NumPy engine: the layers that differ are built, and the others counted like them."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tessera.config import build
from tessera.numpy_building import skeleton, smallest
from tessera.plan import TRAINING_EFFICIENCY, Plan
from tessera.recipe import Recipe
from tessera.scratch.optimizer import OPTIMIZERS
from tessera.scratch.parameter import Parameter

WIDTH = 4
"""Bytes of a number in fp32."""
DEVICE = "cpu"


def needs(recipe: Recipe, *, n_vocab: int, row: int, speed: Callable[[Any], float] | None) -> Plan:
    """The plan, as `tessera.plan.make_plan` gives it."""
    shape, train = recipe.model, recipe.train
    model = smallest(shape)
    n_rows = math.ceil(n_vocab / shape.vocab_multiple) * shape.vocab_multiple
    table = n_rows * shape.d_model
    positions = sum(_count(each.parameters.values()) for each in model.positions)
    blocks = [_turn(model.blocks, shape.pattern(slot)) for slot in ("attention", "feed_forward")]
    attentions = [blocks[0][i % len(blocks[0])].attention for i in range(shape.n_layers)]
    feed_forwards = [blocks[1][i % len(blocks[1])].feed_forward for i in range(shape.n_layers)]
    first = model.blocks[0]
    norms = _count(first.parameters.values()) - _count_of(first.attention) - _count_of(first.feed_forward)
    inner = sum(map(_count_of, attentions)) + sum(map(_count_of, feed_forwards)) + shape.n_layers * norms
    n_params = inner + table * (1 if shape.tied else 2) + positions + _count(model.final_norm.parameters.values())
    tokens_per_step = train.batch_size * train.accumulate * row
    n_kept = len(build(OPTIMIZERS, recipe.optimizer, path="optimizer", params=skeleton(shape)).keeps)
    # Of a token: residual and norms, what the products of both sublayers read and write, and every weight of attention.
    each = shape.n_layers * (7 * shape.d_model + 2 * shape.n_heads * row) + _written([*attentions, *feed_forwards])
    flops = 6 * (inner + table) + 6 * row * shape.n_layers * shape.d_model
    flops_a_second = (product_flops if speed is None else speed)(DEVICE)
    tokens = tokens_per_step * train.steps
    return Plan(
        n_vocab=n_vocab,
        n_params=n_params,
        n_active_params=n_params,
        n_embedding_params=table,
        tokens_per_step=tokens_per_step,
        tokens=tokens,
        weights=WIDTH * n_params,
        gradients=WIDTH * n_params * (1 + (train.workers if train.workers > 1 else 0)),
        optimizer=n_kept * WIDTH * n_params,
        average=0,
        activations=WIDTH * train.batch_size * row * (each + 3 * n_vocab),
        update=WIDTH * max(parameter.size for parameter in model.parameters.values()),
        checkpoint=(1 + n_kept) * WIDTH * n_params,
        seconds=tokens * flops / (TRAINING_EFFICIENCY * flops_a_second),
        device=DEVICE,
    )


def _turn(blocks: list[Any], pattern: tuple[Any, ...]) -> list[Any]:
    """The blocks that have each entry of a pattern once."""
    return blocks[: len(pattern)]


def _count(parameters: Iterable[Parameter]) -> int:
    return sum(parameter.size for parameter in parameters)


def _count_of(piece: Any) -> int:
    return _count(piece.parameters.values())


def _written(pieces: Iterable[Any]) -> int:
    """The numbers that the products of these pieces write for a token, and read."""
    matrices = [each for piece in pieces for each in piece.parameters.values() if len(each.shape) == 2]
    return sum(sum(matrix.shape) for matrix in matrices)


def product_flops(device: Any, *, size: int = 512, rounds: int = 3) -> float:
    """FLOP/s of an fp32 matrix product of `size`: the best of a few rounds, after one to warm up."""
    a = np.ones((size, size), np.float32)
    best = math.inf
    for round in range(rounds + 1):
        start = time.perf_counter()
        a @ a
        if round:
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
