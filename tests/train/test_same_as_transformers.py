"""The same numbers: from the same weights, the loss curve in fp32 is that of transformers' GPT-2 and Llama."""

from dataclasses import replace

import pytest
from benchmarks.train_peers import SHAPES, tessera, transformers

pytest.importorskip("transformers")


@pytest.mark.parametrize("name", ["quick S", "quick M"])
def test_twenty_steps_have_the_losses_of_transformers(name: str) -> None:
    shape = replace(SHAPES[name], bias=True)
    ours, theirs = tessera(shape), transformers(shape)
    curves = [(ours(batch), theirs(batch)) for batch in map(shape.batch, [number % 3 for number in range(20)])]
    assert curves[-1][0] < curves[0][0] - 0.2  # three batches over and over: it learns them
    assert max(abs(mine - other) for mine, other in curves) <= 1e-4
