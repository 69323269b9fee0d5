"""The same numbers: from the same weights, the loss curve in fp32 is that of every peer that is installed."""

import importlib.util

import pytest
from benchmarks.train_ours import decoder, tessera
from benchmarks.train_peers import peers
from benchmarks.train_shapes import SHAPES


@pytest.mark.parametrize("size", ["quick S", "quick M"])
@pytest.mark.parametrize("name", ["transformers", "litgpt", "llms_from_scratch"])
def test_twenty_steps_have_the_losses_of(name: str, size: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    peer = peers()[name]
    shape = peer.twin(SHAPES[size])
    ours, theirs = tessera(shape), peer.step(shape, decoder(shape).state_dict())
    curves = [(ours(rows), theirs(rows)) for rows in map(shape.batch, [number % 3 for number in range(20)])]
    assert curves[-1][0] < curves[0][0] - 0.2  # three batches over and over: it learns them
    assert max(abs(mine - other) for mine, other in curves) <= 1e-4
