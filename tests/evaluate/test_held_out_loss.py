"""Held-out loss against torch's cross entropy, and bits per byte against the compressors themselves."""

import math
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F

from tessera.data.batches import IGNORE, Batch
from tessera.errors import InputError
from tessera.evaluate.loss import HeldOutLoss, compressor_bits_per_byte, held_out_loss, perplexity
from tessera.model.decoder import Decoder

TEXT = b"".join(b"%d: the quick brown fox jumps over %d lazy dogs\n" % (i, i * i % 87) for i in range(200))


def made(**settings: float) -> tuple[Decoder, list[Batch]]:
    torch.manual_seed(1)
    model = Decoder(n_vocab=30, context=8, d_model=16, n_layers=1, n_heads=2, **settings)  # type: ignore[arg-type]
    batches = [Batch(torch.randint(30, (n, 8)), torch.randint(30, (n, 8))) for n in (3, 2, 1)]
    batches[1].targets_BT[0, 5:] = IGNORE
    return model, batches


def direct(model: Decoder, batches: list[Batch]) -> tuple[float, int]:
    logits = torch.cat([model(batch.inputs_BT).flatten(0, 1) for batch in batches])
    targets = torch.cat([batch.targets_BT.flatten() for batch in batches])
    nats = F.cross_entropy(logits.double(), targets, ignore_index=-100, reduction="sum")
    return nats.item(), int((targets != -100).sum())


def test_it_is_torchs_cross_entropy_over_all_targets() -> None:
    model, batches = made()
    loss = held_out_loss(model, batches)
    nats, n_tokens = direct(model, batches)
    assert loss.n_tokens == n_tokens == 45
    assert loss.nats == pytest.approx(nats, rel=1e-6)
    assert loss.mean == pytest.approx(nats / n_tokens, rel=1e-6)


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    model, batches = made(dropout=0.5)
    model.train()
    first, second = held_out_loss(model, batches), held_out_loss(model, batches)
    assert model.training
    assert first == second
    model.eval()
    assert first.nats == pytest.approx(direct(model, batches)[0], rel=1e-6)
    held_out_loss(model, batches)
    assert not model.training


def test_the_mode_comes_back_after_an_error() -> None:
    model, batches = made()
    with pytest.raises(InputError):
        held_out_loss(model, [Batch(torch.full((1, 2), 30), batches[0].targets_BT[:1, :2])])
    assert model.training


@pytest.mark.parametrize(("max_tokens", "n_batches"), [(1, 1), (24, 1), (25, 2), (1000, 3), (None, 3)])
def test_it_stops_after_max_tokens(max_tokens: int | None, n_batches: int) -> None:
    model, batches = made()
    loss = held_out_loss(model, batches, max_tokens=max_tokens)
    nats, n_tokens = direct(model, batches[:n_batches])
    assert loss.n_tokens == n_tokens
    assert loss.nats == pytest.approx(nats, rel=1e-6)


def test_no_token_is_an_error_and_not_nan() -> None:
    model, batches = made()
    with pytest.raises(InputError, match="no held-out token"):
        held_out_loss(model, [])
    batches[0].targets_BT.fill_(IGNORE)
    with pytest.raises(InputError, match="ignored"):
        held_out_loss(model, batches[:1])


def test_bits_per_byte_by_hand() -> None:
    # 10 tokens, each with probability 1/4, are 20 bits; over 40 bytes that is half a bit a byte.
    loss = HeldOutLoss(nats=10 * math.log(4), n_tokens=10)
    assert loss.bits_per_byte(40) == pytest.approx(0.5)
    assert perplexity(loss.mean) == pytest.approx(4.0)
    assert perplexity(1e9) < math.inf


@pytest.mark.parametrize(("name", "command"), [("xz -9e", ["xz", "-9e", "-c"]), ("bz2 -9", ["bzip2", "-9", "-c"])])
def test_compressors_need_what_the_programs_need(name: str, command: list[str]) -> None:
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"{command[0]} is not installed")
    packed = subprocess.run([program, *command[1:]], input=TEXT, capture_output=True, check=True).stdout
    assert compressor_bits_per_byte(TEXT)[name] == pytest.approx(8 * len(packed) / len(TEXT))


def test_compressors_find_more_in_more_of_the_same() -> None:
    once, often = compressor_bits_per_byte(TEXT), compressor_bits_per_byte(TEXT * 4)
    assert once.keys() == often.keys() == {"xz -9e", "bz2 -9"}
    assert all(0 < often[name] < once[name] < 8 for name in once)
    with pytest.raises(InputError, match="no held-out text"):
        compressor_bits_per_byte(b"")
