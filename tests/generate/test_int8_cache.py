"""Keys and values in 8 bits: what is lost is bounded, and the same however a text was cut into steps."""

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.generate.test_continuous_step import KINDS, steps
from tests.generate.test_engine import BYTES, GREEDY, small

from tessera.errors import SettingError
from tessera.generate.engine import Engine
from tessera.generate.requests import StepRows
from tessera.generate.torch_step import TorchStep
from tessera.model.cache import LayerCache
from tessera.model.decoder import Decoder
from tessera.model.paged import SCALED, CodedRows, PagedLayer

FLIPPED = 0.01
"""Of the spread of the logits: what a number between two codes does that falls to the other side, as its last bit says.
"""
LOST = 0.03
"""Of the spread of the logits: what 8 bits may cost (root mean square). The weights here are large: attention is sharp,
where it costs most."""


def whole(model: Decoder, text: Sequence[int]) -> np.ndarray:
    """The logits after each token of a text that is alone and goes in one step."""
    backend = TorchStep(model, n_blocks=-(-len(text) // 4), block_size=4, cache="int8")
    every = range(len(text))
    return backend.step(StepRows(text, [0] * len(text), every, every), [range(backend.n_blocks)])


@pytest.mark.parametrize("kind", KINDS)
def test_batched_and_chunked_are_as_alone_and_whole_and_near_to_uncached(kind: str) -> None:
    draws = random.Random(kind)
    model = small(context=32, **KINDS[kind])
    texts = [[draws.randrange(256) for _ in range(n)] for n in (1, 7, 12, 12, 19, 32)]
    backend = TorchStep(model, n_blocks=40, block_size=4, cache="int8")
    for found, text in zip(steps(backend, texts, draws), texts, strict=True):
        with torch.no_grad():
            uncached = model(torch.tensor([text]))[0].numpy()
        spread = uncached.std(ddof=1)
        np.testing.assert_allclose(found, whole(model, text), atol=FLIPPED * spread, rtol=0)
        assert np.sqrt(np.square(found - uncached).mean()) < LOST * spread


def test_greedy_answers_are_the_same_in_any_batch() -> None:
    model = small(context=64)
    prompts = [[5], [9, 200, 31, 7], list(range(40, 60))]

    def answers(prompts: list[list[int]]) -> list[str]:
        backend = TorchStep(model, n_blocks=24, block_size=8, n_vocab=BYTES.n_vocab, cache="int8")
        return [each.text for (each,) in Engine(backend, BYTES).complete_many(prompts, GREEDY)]

    assert answers(prompts) == [answers([prompt])[0] for prompt in prompts]


def test_a_number_is_off_by_half_a_level_of_its_neighbours() -> None:
    like = LayerCache(batch_size=1, n_kv_heads=2, length=1, d_key=64, d_value=20, dtype=torch.float32, device="cpu")
    layer = PagedLayer(like, 10, CodedRows)
    x_NGK = torch.randn(4, 2, 64, generator=torch.Generator().manual_seed(0))
    x_NGK[:, :, 3] *= 40  # an outlier channel: its neighbours lose by it, those further off do not
    x_NGK[1, 1] = 0
    places = torch.tensor([7, 2, 0, 9])
    layer.keys.write(places, x_NGK)
    off_NGKB = (layer.keys.read(places) - x_NGK).abs().unflatten(2, (-1, SCALED))
    largest_NGK = x_NGK.unflatten(2, (-1, SCALED)).abs().amax(dim=3)
    assert bool((off_NGKB.amax(dim=3) <= largest_NGK / 127 * 0.51).all())
    assert float(off_NGKB[:, :, 1].max()) < 0.02
    assert torch.equal(layer.keys.read(torch.tensor([2])), layer.keys.read(slice(2, 3)))
    assert torch.equal(layer.keys.read(slice(10, 11)), torch.zeros(1, 2, 64))  # what fills up
    assert layer.n_bytes == 11 * 2 * (64 + 2 * 2 + 20 + 2)


def test_it_takes_little_more_than_a_quarter_of_the_memory() -> None:
    model = Decoder(n_vocab=256, context=32, d_model=128, n_heads=2, n_layers=1)
    floats, codes = (TorchStep(model, n_blocks=8, cache=kept).cache.n_bytes for kept in ("float", "int8"))
    assert codes / floats == (32 + 2) / (32 * 4)


def test_half_precision_stays_half_precision() -> None:
    model = small(context=32).to(torch.bfloat16)
    backend = TorchStep(model, n_blocks=4, block_size=4, cache="int8")
    logits = backend.step(StepRows([1, 2, 3], [0] * 3, range(3), [2]), [range(4)])
    assert backend.cache.layers[0].keys.read(slice(0, 1)).dtype == torch.bfloat16
    assert logits.dtype == np.float32


def test_another_kind_is_an_error() -> None:
    with pytest.raises(SettingError, match=r"'int4'.*int8"):
        TorchStep(small(), n_blocks=1, cache="int4")
