"""Steps in static shapes: the numbers of `TorchStep`, on a CPU computed and on a GPU replayed from captured graphs."""

import gc
import random
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.decode_gpu import measure
from tests.generate.test_continuous_step import KINDS, steps
from tests.generate.test_engine import BYTES, small

from tessera.adapt import Lora
from tessera.errors import InputError
from tessera.generate.graph_step import GraphStep, Shape, power_of_two, why_not
from tessera.generate.quantize import Quantization, quantize_model
from tessera.generate.requests import Completion, StepRows
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler
from tessera.generate.speculative import PromptLookup
from tessera.generate.torch_step import TorchStep
from tessera.model.decoder import Decoder

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: graphs are captured on CUDA alone")
DEVICES = ["cpu", pytest.param("cuda", marks=gpu)]
SHARES = {"cpu": 1e-5, "cuda": 1e-4}
"""Of the largest logit, that another order of summation may make."""


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if these models, whose context is short, were worth shapes of several lengths."""
    monkeypatch.setattr("tessera.generate.graph_step.SHORTEST", 4)


def texts(lengths: tuple[int, ...], draws: random.Random) -> list[list[int]]:
    return [[draws.randrange(256) for _ in range(n)] for n in lengths]


def both(model: Decoder, **options: Any) -> tuple[GraphStep, TorchStep, list[torch.Size]]:
    """The two ways, and the shapes of the steps that the first one has computed or replayed."""
    graphs, plain = (kind(model, n_blocks=40, block_size=4, **options) for kind in (GraphStep, TorchStep))
    seen, run = [], graphs._run
    graphs._run = lambda inputs_NC: seen.append(inputs_NC.shape) or run(inputs_NC)
    return graphs, plain, seen


def as_plain(model: Decoder, seed: str, *, share: float | None = None, **options: Any) -> list[torch.Size]:
    """Both ways give the same logits for the same steps, to a share of the largest."""
    share = SHARES[model.device.type] if share is None else share
    graphs, plain, seen = both(model, **options)
    asked = texts((1, 7, 12, 12, 19, 32), random.Random(seed))
    results = [steps(each, asked, random.Random(f"{seed}, in steps")) for each in (graphs, plain)]
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=share * np.abs(theirs).max(), rtol=0)
    return seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_logits_are_those_of_a_plain_step(device: str, kind: str) -> None:
    seen = as_plain(small(context=32, **KINDS[kind]).to(device), kind)
    assert not seen if kind == "experts" else len(set(seen)) > 4


@pytest.mark.parametrize("kind", ["plain", "latent"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_cache_in_8_bits(device: str, kind: str) -> None:
    # A number in the middle of two codes may be rounded either way.
    assert as_plain(small(context=32, **KINDS[kind]).to(device), kind, share=5e-3, cache="int8")


@pytest.mark.parametrize("device", DEVICES)
def test_weights_in_codes(device: str) -> None:
    model = small(context=32)
    quantize_model(model, Quantization(to="int8"))
    assert as_plain(model.to(device), "codes")


@pytest.mark.parametrize("device", DEVICES)
def test_an_adapter_on_weights_in_codes(device: str) -> None:
    model = small(context=32)
    Lora(rank=2, base="nf4")(model)
    for path, weights in model.named_parameters():
        if path.endswith(".up"):
            torch.nn.init.normal_(weights, std=0.1)
    assert as_plain(model.to(device), "adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_why_a_model_cannot_be_captured(kind: str) -> None:
    reason = why_not(small(context=32, **KINDS[kind]))
    if kind == "experts":
        assert reason is not None and "MixtureOfExperts was not to be computed without numbers" in reason
    else:
        assert reason is None


def test_the_model_is_as_it_was_after_it_was_tried() -> None:
    model = small(context=32, attention=["gqa", "mla"], position=["rope", "rope"], dropout=0.1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert why_not(model) is None
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def answers(backend: TorchStep, *, guesser: PromptLookup | None = None) -> dict[int, Completion]:
    """Of greedy requests, every other step a new one, of which every fifth is cancelled after some steps."""
    scheduler = Scheduler(backend, BYTES, n_sequences=6, step_rows=32, guesser=guesser)
    draws = random.Random(3)
    found: dict[int, Completion] = {}
    n_steps, joined = 0, 0
    while joined < 15 or scheduler.busy:
        if n_steps % 2 == 0 and joined < 15:
            text = b"abcabcab" * draws.randint(1, 4) + bytes(draws.choices(range(256), k=draws.choice([1, 5])))
            sampling = Sampling(temperature=0, max_tokens=draws.choice([1, 9, 40]), ignore_eos=True)
            joined = 1 + scheduler.add(list(text), sampling)
        if n_steps % 10 == 9:
            scheduler.cancel(joined - 2)
        found |= {event.request: event.completion for event in scheduler.step() if event.completion is not None}
        scheduler.check()
        n_steps += 1
    assert scheduler.n_shared > 0 and (guesser is None or scheduler.n_right > 0)
    return found


@pytest.mark.parametrize("guesser", [None, PromptLookup(3)], ids=["plain", "guesses"])
@pytest.mark.parametrize("attention", ["gqa", "mla"])
@pytest.mark.parametrize("device", DEVICES)
def test_requests_that_join_and_leave_have_their_answers(
    device: str, attention: str, guesser: PromptLookup | None
) -> None:
    graphs, plain, seen = both(small(context=64, attention=attention).to(device), n_vocab=BYTES.n_vocab)
    found = answers(graphs, guesser=guesser)
    assert found == answers(plain, guesser=guesser)
    assert 8 < len(found) < 15 and len(set(seen)) > 4


def test_no_number_of_others_is_read_or_written() -> None:
    graphs, plain, _ = both(small(context=32, embedding={"name": "ngram", "rows": 64}))
    for layer in graphs.cache.layers:
        for rows in (layer.keys, layer.values):
            rows.numbers_PGK[:-1] = torch.nan
    asked = texts((5, 6, 9), random.Random(0))
    for ours, theirs in zip(*(steps(each, asked, random.Random(1)) for each in (graphs, plain)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1.3e-6, atol=1e-5)
    written = torch.stack([~layer.keys.numbers_PGK.isnan().flatten(1).any(dim=1) for layer in graphs.cache.layers])
    # What fills rows up is at the first place of the last block, and at the one behind it what fills keys up.
    assert written[:, 4 * 40].all() and written[:, -1].all()
    assert written[:, : 4 * 40].sum(dim=1).tolist() == [5 + 6 + 9] * 2


def test_what_is_filled_up_to_what(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = GraphStep(small(context=1000), n_blocks=500, block_size=16)

    def shape(*lengths: int, each: int = 1) -> Shape | None:
        """Of a step with the last `each` rows of sequences of these lengths."""
        places = [(i, p) for i, length in enumerate(lengths) for p in range(length - each, length)]
        return graphs.shape_for(StepRows([7] * len(places), [i for i, _ in places], [p for _, p in places], []))

    assert shape(1) == (1, 1) and shape(16) == (1, 1) and shape(17) == (1, 2) and shape(33, 5, 9) == (4, 4)
    assert shape(1000) == (1, 63), "no more than the context has"
    monkeypatch.setattr("tessera.generate.graph_step.SHORTEST", 64)
    assert shape(1) == (1, 4)
    assert shape(300, each=40) == (64, 32) and shape(1001) is None
    monkeypatch.setattr("tessera.generate.graph_step.FEW", 0)
    assert shape(300, each=40) is None, "a prompt, all of whose rows have the same keys"
    assert shape(900, *[10] * 31) is None, "one long sequence among short ones"
    assert shape(*[257] * 33) == (64, 32), "what powers of two make of it is no reason"


def test_powers_of_two() -> None:
    assert [power_of_two(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 4, 8, 16]


def test_beyond_the_context_is_an_error() -> None:
    graphs = GraphStep(small(context=6), n_blocks=4, block_size=4)
    graphs.step(StepRows([1] * 6, [0] * 6, range(6), [5]), [[0, 1]])
    with pytest.raises(InputError, match="7 tokens are longer than the model's context of 6"):
        graphs.step(StepRows([1], [0], [6], [0]), [[0, 1]])


def test_the_benchmark_measures_both_ways() -> None:
    found = measure(small(context=64), 3, 8, 2, 1)
    assert {name.rpartition("_")[2] for name in found} == {"graphs", "kernels", "3"}
    assert all(figure > 0 for figure in found.values())


@gpu
def test_replayed_steps_are_the_same_and_take_no_memory() -> None:
    model = small(context=128).to("cuda")
    graphs, plain, seen = both(model)
    tables = [list(range(20)), list(range(20, 40))]
    draws, taken = random.Random(0), set()
    for position in range(64):
        rows = StepRows([draws.randrange(256), draws.randrange(256)], [0, 1], [position, position], [0, 1])
        first, again, other = (each.step(rows, tables) for each in (graphs, graphs, plain))
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(first, other, atol=SHARES["cuda"] * np.abs(other).max(), rtol=0)
        if position > 32:
            gc.collect()
            taken.add(torch.cuda.memory_allocated())
    assert [blocks for rows, blocks in dict.fromkeys(seen)] == [2 + n for n in (1, 2, 4, 8, 16)]
    assert len(taken) == 1
