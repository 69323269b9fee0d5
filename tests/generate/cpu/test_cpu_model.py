"""The CPU engine against PyTorch and against its own arithmetic in NumPy: and a row is a row, whatever is beside it."""

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.generate.cpu.cpu_reference import Reference

from tessera.config import check
from tessera.errors import InputError, SettingError
from tessera.generate.cpu.angles import cosines_and_sines
from tessera.generate.cpu.model import CpuModel
from tessera.generate.cpu.plan import Word
from tessera.generate.cpu.pool import CACHES
from tessera.generate.requests import StepRows
from tessera.generate.sampling import Sampling
from tessera.generate.scheduler import Scheduler
from tessera.generate.torch_step import TorchStep
from tessera.model.decoder import Decoder
from tessera.model.plain import plain_decoder
from tessera.model.settings import DecoderSettings
from tessera.tokenizers import TOKENIZERS

BYTES = TOKENIZERS["byte"]()
STORAGES = ["fp32", "bf16", "q8_0", "q4_0", "q4_1"]
SHAPES = {
    "grouped": {"n_heads": 4, "d_head": 16, "attention": {"name": "gqa", "n_kv_heads": 2}},
    "tied and odd": {"n_heads": 3, "d_head": 16, "d_model": 72, "d_ff": 80, "tied": True, "n_vocab": 77},
    "biases": {"n_heads": 4, "d_head": 32, "bias": True, "attention": {"name": "gqa", "n_kv_heads": 1}},
    "norms of queries": {"n_heads": 2, "d_head": 32, "attention": {"name": "gqa", "qk_norm": True, "n_kv_heads": 1}},
    "many share": {"n_heads": 12, "d_head": 16, "attention": {"name": "gqa", "n_kv_heads": 1}},
    "in part": {"n_heads": 2, "d_head": 32, "position": {"name": "rope", "share": 0.5}, "embedding_scale": 3.0},
}


@dataclass
class Held:
    """A decoder of PyTorch, as a source of weights."""

    model: Decoder
    settings: DecoderSettings
    path: Path = Path("model")
    blocks: None = None

    @property
    def n_vocab(self) -> int:
        return self.model.n_vocab

    def array(self, name: str) -> np.ndarray:
        return self.model.state_dict()[name].numpy()

    @property
    def angles(self) -> tuple[np.ndarray, np.ndarray]:
        return cosines_and_sines(plain_decoder(self.settings, n_vocab=self.n_vocab), self.settings.context)

    def logits(self, ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return self.model(torch.tensor([ids]))[0].numpy()


def make(shape: str = "grouped", **settings) -> Held:
    torch.manual_seed(0)
    chosen = {"n_vocab": 64, "context": 64, "d_model": 64, "n_layers": 2, "d_ff": 96} | SHAPES[shape] | settings
    n_vocab = chosen.pop("n_vocab")
    checked = check(DecoderSettings, chosen)
    model = Decoder.from_settings(checked, n_vocab=n_vocab).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return Held(model, checked)


def tokens(model: Held, n: int) -> list[int]:
    return torch.randint(0, model.n_vocab, (n,), generator=torch.Generator().manual_seed(1)).tolist()


TABLES = [[0, 1, 2, 3], [9, 4, 10, 5], [6, 11, 8, 7]]
"""The blocks of three sequences: in order, and in none."""


def rows_of(ids: list[int], sequence: int, start: int = 0) -> StepRows:
    n = len(ids)
    return StepRows(ids, [sequence] * n, range(start, start + n), range(n))


def whole(model: CpuModel, ids: list[int], sequence: int = 0) -> np.ndarray:
    return model.step(rows_of(ids, sequence), TABLES)


def made(model: Held, storage: str, **settings) -> CpuModel:
    return CpuModel.from_source(model, storage, **({"n_blocks": 12, "n_threads": 1, "check": False} | settings))


@pytest.mark.parametrize("shape", SHAPES)
def test_floats_give_the_logits_of_pytorch(shape: str) -> None:
    model = make(shape)
    ids = tokens(model, 37)
    found = whole(made(model, "fp32"), ids)
    np.testing.assert_allclose(found, model.logits(ids), atol=1e-4, rtol=0)


def test_neighbours_turned_as_pytorch_turns_them() -> None:
    model = make(position={"name": "rope", "layout": "interleaved"})
    ids = tokens(model, 20)
    np.testing.assert_allclose(whole(made(model, "fp32"), ids), model.logits(ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_arithmetic_is_what_it_says(storage: str, shape: str) -> None:
    model = make(shape)
    ids = tokens(model, 19)
    found = whole(made(model, storage, cache="fp16"), ids)
    expected = Reference(model.model, storage, "fp16", model.angles).logits(ids)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cache_of_8_bits(shape: str) -> None:
    """Bit by bit what NumPy does, and not far from single precision."""
    model = make(shape)
    ids = tokens(model, 37)
    found = whole(made(model, "fp32", cache="int8"), ids)
    np.testing.assert_allclose(
        found, Reference(model.model, "fp32", "int8", model.angles).logits(ids), atol=1e-5, rtol=1e-5
    )
    exact = whole(made(model, "fp32"), ids)
    assert 0 < (found - exact).std() < 0.05 * exact.std()


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("storage", STORAGES)
def test_alone_is_in_a_batch_is_in_chunks(storage: str, cache: str) -> None:
    """Bit for bit: one by one, in chunks beside other sequences, in other blocks, with one thread and with two."""
    model = make()
    ids, other = tokens(model, 40), tokens(model, 40)[::-1]
    one, two = made(model, storage, cache=cache), made(model, storage, cache=cache, n_threads=2)
    expected = whole(one, ids)
    np.testing.assert_array_equal(whole(two, ids, 1), expected)
    for i, id in enumerate(ids):
        np.testing.assert_array_equal(one.step(rows_of([id], 2, i), TABLES)[0], expected[i])
    place = 0
    for size in (1, 2, 3, 5, 8, 13, 8):
        chunk = range(place, place + size)
        beside = [(other[i], 2, i) for i in chunk]
        rows = [*beside[: size // 2], *((ids[i], 0, i) for i in chunk), *beside[size // 2 :]]
        found = two.step(StepRows(*zip(*rows, strict=True), range(size // 2, size // 2 + size)), TABLES)
        np.testing.assert_array_equal(found, expected[place : place + size])
        place += size
    two.close()


@pytest.mark.parametrize("n_before", [0, 3])
def test_more_rows_than_a_call_takes(n_before: int) -> None:
    """In several calls, of which one begins in the middle of a sequence."""
    model = make(context=600)
    ids, wanted = tokens(model, 530), [0, 255, 256, 529]
    engine = made(model, "fp32", n_blocks=40)
    rows = rows_of([*ids[:n_before], *ids], 0)
    rows = StepRows(
        rows.ids,
        [1] * n_before + [0] * 530,
        [*range(n_before), *range(530)],
        [n_before + i for i in wanted],
    )
    found = engine.step(rows, [list(range(1, 35)), [39]])
    np.testing.assert_allclose(found, model.logits(ids)[wanted], atol=1e-4, rtol=0)


def test_a_beginning_is_shared() -> None:
    model = make()
    ids, engine = tokens(model, 40), made(model, "q8_0")
    expected = whole(engine, ids)
    found = engine.step(rows_of(ids[32:], 0, 32), [[*TABLES[0][:2], 7]])
    np.testing.assert_array_equal(found, expected[32:])


def test_what_was_guessed_wrong_is_written_again() -> None:
    """And nothing of another sequence that had the block before is seen."""
    model = make()
    ids, engine = tokens(model, 30), made(model, "bf16")
    expected = whole(engine, ids)
    whole(engine, ids[::-1])
    np.testing.assert_array_equal(whole(engine, ids[:20]), expected[:20])
    np.testing.assert_array_equal(engine.step(rows_of(ids[20:], 0, 20), TABLES), expected[20:])


def test_the_scheduler_has_the_answers_of_the_torch_path() -> None:
    """Greedy in single precision: requests that come and go, begin alike, and slide past the window."""
    model = make(n_vocab=BYTES.n_vocab + 3, context=48)
    cpu = made(model, "fp32", n_blocks=9, n_vocab=BYTES.n_vocab, n_threads=2)
    torch_step = TorchStep(model.model, n_blocks=9, n_vocab=BYTES.n_vocab)
    prompts = [list(b"a beginning that is long enough" + more) for more in (b"", b" one", b" other", b"?")]
    found, shared = [], []
    for backend in (cpu, torch_step):
        scheduler, answers = Scheduler(backend, BYTES, step_rows=20), {}
        for number, prompt in enumerate([*prompts, [1], [2, 3]]):
            scheduler.add(prompt, Sampling(temperature=0.0, max_tokens=5 + 9 * number))
        while scheduler.busy:
            answers |= {event.request: event.completion for event in scheduler.step() if event.last}
            scheduler.check()
        found.append(answers)
        shared.append(scheduler.n_shared)
    assert found[0] == found[1]
    assert shared[0] == shared[1] > 0
    cpu.close()


def test_ids_of_a_padded_head_are_left_out() -> None:
    model = make()
    engine, cut = made(model, "fp32"), made(model, "fp32", n_vocab=61)
    assert cut.n_vocab == 61
    np.testing.assert_array_equal(whole(cut, [1, 63, 3]), whole(engine, [1, 63, 3])[:, :61])


def test_the_cache_is_as_large_as_it_says() -> None:
    model = make()
    sizes = {cache: made(model, "fp32", n_blocks=10, cache=cache).cache_bytes for cache in CACHES}
    n_numbers = 2 * 2 * 2 * 160 * 16  # keys and values, layers, heads, positions, width
    assert sizes == {"fp32": 4 * n_numbers, "fp16": 2 * n_numbers, "int8": n_numbers + n_numbers // 8}


def test_nothing_wanted_and_what_is_not_finite() -> None:
    model = make()
    engine = made(model, "q8_0")
    assert engine.step(StepRows([1, 2], [0, 0], [0, 1], []), TABLES).shape == (0, 64)
    assert engine.step(StepRows([], [], [], []), TABLES).shape == (0, 64)
    with torch.no_grad():
        model.model.blocks[1].attention_norm.weight[3] = float("nan")
    for cache in CACHES:
        assert np.isnan(whole(made(model, "q8_0", cache=cache), [1, 2])).all()


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (StepRows([64], [0], [0], [0]), "token id 64: expected from 0 to 63"),
        (StepRows([1], [3], [0], [0]), "sequence 3"),
        (StepRows([1], [0], [64], [0]), "position 64"),
        (StepRows([1, 1], [0], [0, 1], [0]), "2 ids, 1 sequences"),
        (StepRows([1], [0], [0], [1]), "wanted rows"),
        (StepRows([1, 2], [0, 0], [0, 1], [1, 0]), "one after the other"),
        (StepRows([1], [0], [32], [0]), "sequence 0 has 2 blocks of 16, and position 32"),
        (StepRows([1], [1], [0], [0]), "a block outside of the 12"),
        (StepRows([1], [2], [0], [0]), "a block outside of the 12"),
    ],
)
def test_a_wrong_row_is_an_error_and_changes_nothing(rows: StepRows, what: str) -> None:
    engine = made(make(), "fp32")
    before = [engine._table.arrays[place].copy() for place in (Word.KEYS, Word.VALUES)]
    with pytest.raises(InputError, match=what):
        engine.step(rows, [[0, 1], [12], [-1]])
    for place, memory in zip((Word.KEYS, Word.VALUES), before, strict=True):
        np.testing.assert_array_equal(engine._table.arrays[place], memory)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"storage": "q2"}, "storage = 'q2'"),
        ({"context": 65}, "context"),
        ({"n_blocks": 0}, "n_blocks"),
        ({"n_vocab": 65}, "n_vocab"),
        ({"n_threads": 0}, "n_threads"),
        ({"cache": "int4"}, "cache = 'int4'"),
    ],
)
def test_wrong_settings(settings: dict, what: str) -> None:
    with pytest.raises(SettingError, match=what):
        CpuModel.from_source(make(), check=False, **settings)


def test_helpers_go_home() -> None:
    before = threading.active_count()
    engine = made(make(), "fp32", n_threads=3)
    assert threading.active_count() == before + 2
    whole(engine, [1, 2, 3])
    del engine
    assert threading.active_count() == before
