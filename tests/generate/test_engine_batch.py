"""Many prompts at once: each answer is what it is alone, cached or not, whenever the others end."""

import pytest
import torch
from tests.generate.test_engine import BYTES, small

from tessera.errors import InputError, SettingError
from tessera.generate.engine import Engine
from tessera.generate.requests import StepRows
from tessera.generate.sampling import Sampling, prompt_seeds, row_generators, sample
from tessera.generate.torch_step import TorchStep
from tessera.model.decoder import Decoder

PROMPTS = ["ab", "c", "de", "fgh", "ij", "k"]
SEEDS = [3, 1, 4, 1, 5, 9]


def ending() -> Decoder:
    """A model that often says the end token, at different times."""
    model = small(context=32)
    with torch.no_grad():
        model.head_weight[BYTES.end_id] = model.head_weight[:256].max(dim=0).values
    return model


@pytest.mark.parametrize("position", ["rope", "learned"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_as_alone(position: str, temperature: float) -> None:
    """Past the window too: 40 tokens in a context of 16."""
    engine = Engine(small(position=position), BYTES)
    many = engine.complete_many(PROMPTS, Sampling(temperature=temperature, max_tokens=40), n=3, seeds=SEEDS)
    for prompt, seed, found in zip(PROMPTS, SEEDS, many, strict=True):
        alone = Sampling(temperature=temperature, max_tokens=40, seed=seed)
        assert found == engine.complete(prompt, alone, n=3)
    assert len({tuple(each.ids) for found in many for each in found}) >= (18 if temperature else 4)


@pytest.mark.parametrize("attention", ["gqa", "mla"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_equals_uncached_while_others_end(attention: str, temperature: float) -> None:
    model = ending() if attention == "gqa" else small(context=32, attention=attention)
    sampling = Sampling(temperature=temperature, max_tokens=20)
    many = Engine(model, BYTES).complete_many(PROMPTS, sampling, n=4, seeds=SEEDS)
    lengths = set()
    for prompt, seed, found in zip(PROMPTS, SEEDS, many, strict=True):
        for completion, generator in zip(found, row_generators(seed, 4), strict=True):
            ids = BYTES.encode(prompt)
            end = None
            for _ in range(20):
                with torch.no_grad():
                    logits = model(torch.tensor([ids]))[:, -1, : BYTES.n_vocab].numpy()
                id = int(sample(logits, sampling, [generator])[0])
                if id == BYTES.end_id:
                    end = id
                    break
                ids.append(id)
            assert completion.ids == ids[len(prompt) :]
            assert (completion.end, completion.finish) == (end, "length" if end is None else "end")
            lengths.add(len(completion.ids))
    assert attention == "mla" or not temperature or len(lengths) > 3  # they end at different times


def counting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[StepRows]:
    """The rows of each step that the model makes from now on."""
    steps: list[StepRows] = []
    step = TorchStep.step
    monkeypatch.setattr(TorchStep, "step", lambda self, rows, tables: steps.append(rows) or step(self, rows, tables))
    return steps


def test_a_prompt_is_read_once_but_for_its_end_and_an_ended_row_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(context=64)
    with torch.no_grad():
        model.head_weight[BYTES.end_id] = model.head_weight[:256].max(dim=0).values
    engine = Engine(model, BYTES)
    steps = counting(engine, monkeypatch)
    prompt = "a prompt of thirty-five letters ..."
    found = engine.complete_many([prompt], Sampling(seed=1, max_tokens=20), n=8)
    lengths = [len(each.ids) + (each.end is not None) for each in found[0]]
    assert [len(rows.ids) for rows in steps[:2]] == [35, 1 + 7 * 3 - (lengths[0] == 1)]
    assert sum(len(rows.ids) for rows in steps) == 35 + 7 * 3 + sum(lengths) - 8
    assert min(lengths) < max(lengths)


def test_no_more_at_once_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(small(), BYTES)
    sampling = Sampling(seed=5, max_tokens=6)
    whole = engine.complete_many(PROMPTS, sampling, n=2)
    monkeypatch.setattr("tessera.generate.engine.ROWS", 3)
    steps = counting(engine, monkeypatch)
    assert engine.complete_many(PROMPTS, sampling, n=2) == whole
    assert max(len(set(rows.sequences)) for rows in steps) == 3


def test_seeds() -> None:
    engine = Engine(small(), BYTES)
    sampling = Sampling(seed=7, max_tokens=8)
    expected = engine.complete_many(["a", "a"], sampling, seeds=prompt_seeds(7, 2))
    assert engine.complete_many(["a", "a"], sampling) == expected
    assert expected[0] != expected[1]
    assert engine.complete_many(["a", "b", "c"], sampling)[0] == expected[0]
    assert engine.complete_many([], sampling) == []
    assert engine.complete_many(["a"], Sampling(max_tokens=0))[0][0].ids == []
    with pytest.raises(InputError, match="1 seeds for 2 prompts"):
        engine.complete_many(["a", "b"], sampling, seeds=[1])
    with pytest.raises(SettingError, match="n = 0"):
        engine.complete_many(["a"], sampling, n=0)
