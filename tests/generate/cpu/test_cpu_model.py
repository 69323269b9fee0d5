"""The CPU engine against PyTorch and against its own arithmetic in NumPy: and a row is a row, whatever is beside it."""

import numpy as np
import pytest
import torch
from tests.generate.cpu.cpu_reference import Reference

from tessera.errors import InputError, SettingError
from tessera.generate.cpu.model import CpuModel, StepRows
from tessera.model.decoder import Decoder

STORAGES = ["fp32", "bf16", "q8_0", "q4_0", "q4_1"]
SHAPES = {
    "grouped": {"n_heads": 4, "d_head": 16, "attention": {"name": "gqa", "n_kv_heads": 2}},
    "tied and odd": {"n_heads": 3, "d_head": 16, "d_model": 72, "d_ff": 80, "tied": True, "n_vocab": 77},
    "biases": {"n_heads": 4, "d_head": 32, "bias": True, "attention": {"name": "gqa", "n_kv_heads": 1}},
    "norms of queries": {"n_heads": 2, "d_head": 32, "attention": {"name": "gqa", "qk_norm": True, "n_kv_heads": 1}},
    "many share": {"n_heads": 12, "d_head": 16, "attention": {"name": "gqa", "n_kv_heads": 1}},
    "in part": {"n_heads": 2, "d_head": 32, "position": {"name": "rope", "share": 0.5}, "embedding_scale": 3.0},
}


def make(shape: str = "grouped", **settings) -> Decoder:
    torch.manual_seed(0)
    chosen = {"n_vocab": 64, "context": 64, "d_model": 64, "n_layers": 2, "d_ff": 96} | SHAPES[shape] | settings
    model = Decoder(**chosen).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(model: Decoder, n: int) -> list[int]:
    return torch.randint(0, model.n_vocab, (n,), generator=torch.Generator().manual_seed(1)).tolist()


def whole(model: CpuModel, ids: list[int], slot: int = 0) -> torch.Tensor:
    model.free(slot)
    n = len(ids)
    return model.step(StepRows(ids, [slot] * n, range(n), range(n)))


def made(model: Decoder, storage: str, **settings) -> CpuModel:
    return CpuModel.from_source(model, storage, **({"n_slots": 3, "n_threads": 1, "check": False} | settings))


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_floats_give_the_logits_of_pytorch(shape: str) -> None:
    model = make(shape)
    ids = tokens(model, 37)
    found = whole(made(model, "fp32"), ids)
    torch.testing.assert_close(found, model(torch.tensor([ids]))[0], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_neighbours_turned_as_pytorch_turns_them() -> None:
    model = make(position={"name": "rope", "layout": "interleaved"})
    ids = tokens(model, 20)
    torch.testing.assert_close(whole(made(model, "fp32"), ids), model(torch.tensor([ids]))[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_arithmetic_is_what_it_says(storage: str, shape: str) -> None:
    model = make(shape)
    ids = tokens(model, 19)
    found = whole(made(model, storage, cache="fp16"), ids).numpy()
    expected = Reference(model, storage, "fp16").logits(ids)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("storage", STORAGES)
def test_alone_is_in_a_batch_is_in_chunks(storage: str) -> None:
    """Bit for bit: one by one, in chunks beside other sequences, with one thread and with two."""
    model = make()
    ids, other = tokens(model, 40), tokens(model, 40)[::-1]
    one, two = made(model, storage), made(model, storage, n_threads=2)
    expected = whole(one, ids)
    assert torch.equal(whole(two, ids, slot=1), expected)
    for i, id in enumerate(ids):
        assert torch.equal(one.step(StepRows([id], [2], [i], [0]))[0], expected[i])
    two.free(0)
    place = 0
    for size in (1, 2, 3, 5, 8, 13, 8):
        chunk = range(place, place + size)
        beside = [(other[i], 2, i) for i in chunk]
        rows = [*beside[: size // 2], *((ids[i], 0, i) for i in chunk), *beside[size // 2 :]]
        found = two.step(StepRows(*zip(*rows, strict=True), range(size // 2, size // 2 + size)))
        assert torch.equal(found, expected[place : place + size])
        place += size
    two.close()


@torch.inference_mode()
def test_more_rows_than_a_call_takes() -> None:
    model = make(context=600)
    ids = tokens(model, 530)
    found = made(model, "fp32").step(StepRows(ids, [1] * 530, range(530), [0, 255, 256, 529]))
    expected = model(torch.tensor([ids]))[0, [0, 255, 256, 529]]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_shared_beginning_is_copied() -> None:
    model = make()
    ids, engine = tokens(model, 30), made(model, "q8_0")
    expected = whole(engine, ids)
    engine.copy(0, 1, 21)
    found = engine.step(StepRows(ids[21:], [1] * 9, range(21, 30), range(9)))
    assert torch.equal(found, expected[21:])
    assert engine.length(1) == 30


def test_a_slot_that_is_freed_remembers_nothing() -> None:
    model = make()
    ids, engine = tokens(model, 30), made(model, "bf16")
    expected = whole(engine, ids[:7])
    whole(engine, tokens(model, 30)[::-1])
    assert torch.equal(whole(engine, ids[:7]), expected)


def test_nothing_wanted_and_what_is_not_finite() -> None:
    model = make()
    engine = made(model, "q8_0")
    assert engine.step(StepRows([1, 2], [0, 0], [0, 1], [])).shape == (0, 64)
    with torch.no_grad():
        model.blocks[1].attention_norm.weight[3] = float("nan")
    assert whole(made(model, "q8_0"), [1, 2]).isnan().all()


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (StepRows([64], [0], [0], [0]), "token id 64: expected from 0 to 63"),
        (StepRows([1], [3], [0], [0]), "slot 3"),
        (StepRows([1], [0], [64], [0]), "position 64"),
        (StepRows([1], [0], [2], [0]), "slot 0 holds 0 tokens, and the next has position 2"),
        (StepRows([1, 1], [0, 0], [0, 2], [0]), "slot 0: position 2 after 0"),
        (StepRows([1, 1], [0], [0, 1], [0]), "2 ids, 1 sequences"),
        (StepRows([1], [0], [0], [1]), "wanted rows"),
    ],
)
def test_a_wrong_row_is_an_error_and_changes_nothing(rows: StepRows, what: str) -> None:
    engine = made(make(), "fp32")
    with pytest.raises(InputError, match=what):
        engine.step(rows)
    assert engine.length(0) == 0


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"storage": "q2"}, "storage = 'q2'"), ({"context": 65}, "context"), ({"n_slots": 0}, "n_slots")],
)
def test_wrong_settings(settings: dict, what: str) -> None:
    with pytest.raises(SettingError, match=what):
        CpuModel.from_source(make(), check=False, **settings)


def test_helpers_go_home() -> None:
    import threading

    before = threading.active_count()
    engine = made(make(), "fp32", n_threads=3)
    assert threading.active_count() == before + 2
    whole(engine, [1, 2, 3])
    del engine
    assert threading.active_count() == before
