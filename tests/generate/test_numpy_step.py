"""Steps in NumPy: those of PyTorch with the same weights, and the same answers in any batch."""

import random

import numpy as np
import pytest
import torch
from tests.generate.test_continuous_step import steps

from tessera.config import check
from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine
from tessera.generate.numpy_step import NumpyStep
from tessera.generate.requests import StepRows
from tessera.generate.sampling import Sampling
from tessera.model.decoder import Decoder
from tessera.model.settings import DecoderSettings
from tessera.scratch.decoder import Decoder as NumpyDecoder
from tessera.tokenizers import TOKENIZERS

BYTES = TOKENIZERS["byte"]()
KINDS = {
    "llama": {"attention": {"name": "gqa", "n_kv_heads": 2, "qk_norm": True}},
    "a window": {"attention": {"name": "gqa", "window": 5}},
    "learned positions, biases": {"position": "learned", "norm": "layer", "feed_forward": "gelu", "bias": True},
    "alibi, capped": {"position": "alibi", "logit_cap": 5.0, "tied": True, "placement": "post"},
}


def both(kind: str) -> tuple[Decoder, NumpyDecoder]:
    """The same model twice."""
    torch.manual_seed(0)
    content = {"context": 32, "d_model": 32, "n_layers": 2, "n_heads": 4, "init": {"name": "normal", "std": 0.2}}
    settings = check(DecoderSettings, content | KINDS[kind])
    theirs = Decoder.from_settings(settings, n_vocab=BYTES.n_vocab).eval()
    shape = {name: getattr(settings, name) for name in DecoderSettings.model_fields}
    ours = NumpyDecoder(n_vocab=BYTES.n_vocab, **shape)
    ours.load({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    return theirs, ours


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_whole_text_in_pytorch(kind: str) -> None:
    """Chunks of any size, mixed anyhow, in blocks in any order."""
    theirs, ours = both(kind)
    draws = random.Random(kind)
    texts = [[draws.randrange(256) for _ in range(n)] for n in (1, 7, 12, 12, 19, 32)]
    for found, text in zip(steps(NumpyStep(ours, n_blocks=40, block_size=4), texts, draws), texts, strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([text]))[0].numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5 * max(1.0, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_engine_gives_the_answers_of_pytorch_alone_and_together(temperature: float) -> None:
    theirs, ours = both("llama")
    sampling = Sampling(temperature=temperature, max_tokens=40)
    prompts, seeds = ["a beginning that is shared", "a beginning that is shared too", "b", ""], [1, 2, 3, 4]
    found = Engine(ours, BYTES).complete_many(prompts, sampling, seeds=seeds)
    assert found == Engine(theirs, BYTES).complete_many(prompts, sampling, seeds=seeds)
    assert found == [
        Engine(ours, BYTES).complete_many([prompt], sampling, seeds=[seed])[0]
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    beams = [Engine(model, BYTES).beam("a", width=3, max_tokens=9)[0].ids for model in (ours, theirs)]
    assert beams[0] == beams[1]


def test_what_cannot_be() -> None:
    _, ours = both("llama")
    with pytest.raises(InputError, match="1 blocks of 4, and 5 positions"):
        NumpyStep(ours, n_blocks=3, block_size=4).step(StepRows([1] * 5, [0] * 5, range(5), [4]), [[2]])
    with pytest.raises(SettingError, match="cache = 'int8'"):
        Engine(ours, BYTES, cache="int8").generate("a")
