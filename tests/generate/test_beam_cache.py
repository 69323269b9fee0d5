"""Beams over a cache in blocks: what transformers finds, what is found without a cache, and no block is leaked."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.generate.test_engine import BYTES, small
from tests.generate.test_scheduler import Reader, said_after

from tessera.errors import InputError, SettingError
from tessera.formats import open_model
from tessera.generate.beam import beam_search
from tessera.generate.beam_cache import BeamCache, blocks_needed
from tessera.generate.blocks import Blocks
from tessera.generate.engine import Engine
from tessera.generate.logits import log_softmax
from tessera.generate.sampling import Sampling
from tessera.generate.torch_step import TorchStep


@pytest.mark.parametrize("size", [1, 3, 4, 16])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_each_beam_reads_what_it_has_said(size: int, width: int) -> None:
    """Over a backend whose logits say what it has read."""

    def uncached(prefixes: list[list[int]], rows: list[int]) -> np.ndarray:
        return log_softmax(np.stack([said_after(prefix) for prefix in prefixes]).astype(np.float64))

    for prompt in ([7], list(range(8)), list(range(11))):
        settings = {"beams": width, "max_tokens": 10, "ends": [BYTES.end_id], "n": width}
        n_blocks = blocks_needed(len(prompt), 10, width, size)
        blocks = Blocks(n_blocks=n_blocks, size=size)
        with BeamCache(Reader(n_blocks, size=size), blocks, prompt, width=width, max_tokens=10) as score:

            def checked(prefixes, rows, score=score, blocks=blocks, n_blocks=n_blocks):
                found = score(prefixes, rows)
                blocks.check(score._tables)
                assert blocks.promised + len({block for table in score._tables for block in table}) == n_blocks
                return found

            found = beam_search(checked, prompt, **settings)
        blocks.check([])
        assert blocks.promised == 0
        expected = beam_search(uncached, prompt, **settings)
        assert [beam.ids for beam in found] == [beam.ids for beam in expected]


def test_what_cannot_be() -> None:
    blocks = Blocks(n_blocks=6, size=4)
    with pytest.raises(InputError, match="model's context is 24: beams cannot go past it"):
        BeamCache(Reader(), blocks, [1] * 20, width=2, max_tokens=6)
    with pytest.raises(InputError, match="3 beams may need 36 positions of the cache, and 24 are free"):
        BeamCache(Reader(), blocks, [1] * 4, width=3, max_tokens=9)
    for settings in ({"width": 0, "max_tokens": 1}, {"width": 1, "max_tokens": 0}):
        with pytest.raises(SettingError):
            BeamCache(Reader(), blocks, [1], **settings)
        with pytest.raises(SettingError):
            Engine(small(), BYTES).beam("a", **settings)
    with pytest.raises(RuntimeError), BeamCache(Reader(), blocks, [1] * 9, width=1, max_tokens=9):
        assert blocks.promised == 5 - 2
        raise RuntimeError
    assert (blocks.promised, blocks.n_held) == (0, 0)


@pytest.mark.parametrize("attention", ["gqa", "mla"])
def test_beside_other_requests_of_an_engine(attention: str) -> None:
    model = small(context=64, attention=attention)
    alone = Engine(model, BYTES)
    engine = Engine(TorchStep(model, n_blocks=40, block_size=8, n_vocab=BYTES.n_vocab), BYTES)
    prompt = "a beginning that is long enough"
    expected = alone.beam(prompt, width=3, n=3, max_tokens=20)
    stream = engine.stream(prompt, Sampling(temperature=0, max_tokens=30))
    text = "".join(next(stream) for _ in range(4))
    found = engine.beam(prompt, width=3, n=3, max_tokens=20)
    assert [(each.ids, each.text, each.finish) for each in found] == [
        (each.ids, each.text, each.finish) for each in expected
    ]
    assert [each.score for each in found] == pytest.approx([each.score for each in expected], abs=1e-5)
    assert text + "".join(stream) == alone.generate(prompt, Sampling(temperature=0, max_tokens=30))[0]
    assert engine._desk.scheduler.blocks.n_held == 0
    (greedy,) = alone.beam(prompt, width=1, max_tokens=12)
    assert greedy.ids == alone.complete(prompt, Sampling(temperature=0, max_tokens=12))[0].ids


@pytest.fixture(scope="module")
def theirs() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=BYTES.n_vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=BYTES.end_id,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():  # so that answers end now and then
        model.lm_head.weight[BYTES.end_id] = model.lm_head.weight[:256].mean(dim=0) * 20
    return model


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_equals_transformers(
    theirs: transformers.LlamaForCausalLM, early_stopping: bool | str, length_penalty: float, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    engine = Engine(open_model(tmp_path).build().eval(), BYTES)
    ended = set()
    for prompt, width in ((b"the capital", 2), (b"a", 5), (b"To be or not to be, that", 4)):
        found = engine.beam(
            list(prompt),
            width=width,
            n=width,
            max_tokens=14,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
        )
        expected = theirs.generate(
            torch.tensor([list(prompt)]),
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=14,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            return_dict_in_generate=True,
            output_scores=True,
        )
        scores = expected.sequences_scores.tolist()
        for beam, ids, score in zip(found, expected.sequences.tolist(), scores, strict=True):
            answer = ids[len(prompt) :]
            end = answer.index(BYTES.end_id) if BYTES.end_id in answer else len(answer)
            assert beam.ids == answer[:end]
            assert beam.score == pytest.approx(score, abs=1e-4)
            ended.add(beam.finish)
    assert "end" in ended
