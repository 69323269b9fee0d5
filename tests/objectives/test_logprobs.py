"""Log-probabilities of answers against all logits at once, and those of a reference kept on the disk."""

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.objectives.preferences_data import gradients, pairs, small_model

from tessera.data.batches import IGNORE, Batch
from tessera.data.preferences import PairRows
from tessera.errors import DamagedError, InputError
from tessera.objectives import DPO
from tessera.objectives.logprobs import answer_logprobs, entropy, token_logprobs
from tessera.objectives.reference import add_reference, reference_logprobs


@pytest.mark.parametrize("settings", [{}, {"tied": True}, {"vocab_multiple": 8, "logit_cap": 2.0}], ids=str)
def test_they_are_those_of_all_logits(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.objectives.logprobs.rows_at_once", lambda n_vocab: 4)
    model = small_model(**settings)
    batch = next(PairRows(pairs(3), batch_size=3)).sides[0]
    logps_B, lengths_B = answer_logprobs(model, batch)
    logits = model(batch.inputs_BT).transpose(1, 2)
    expected = -F.cross_entropy(logits, batch.targets_BT, ignore_index=IGNORE, reduction="none").sum(1)
    torch.testing.assert_close(logps_B, expected)
    assert lengths_B.tolist() == (batch.targets_BT != IGNORE).sum(1).tolist()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(gradients(model, logps_B @ weights), gradients(model, expected @ weights))


def test_temperature_and_places() -> None:
    model, batch = small_model(), next(PairRows(pairs(2), batch_size=2)).sides[0]
    h_BTD = model.hidden(batch.inputs_BT)
    found = token_logprobs(model, h_BTD, batch.targets_BT, temperature=0.5)
    for row, column in (batch.targets_BT != IGNORE).nonzero().tolist():
        target = batch.targets_BT[row, column]
        expected = F.log_softmax(model.logits(h_BTD[row, column]) / 0.5, dim=-1)[target]
        torch.testing.assert_close(found[row, column], expected)
    assert not found[batch.targets_BT == IGNORE].any()


def test_entropy_is_that_of_torch() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy())


def test_an_answer_without_a_token_is_an_error() -> None:
    batch = next(PairRows(pairs(2), batch_size=2)).sides[0]
    batch.targets_BT[1] = IGNORE
    with pytest.raises(InputError, match="no learned target"):
        answer_logprobs(small_model(), Batch(batch.inputs_BT, batch.targets_BT))


def test_a_reference_is_computed_once_and_kept(tmp_path: Path) -> None:
    model, rows = small_model(dropout=0.5), PairRows(pairs(5), batch_size=2)
    model.train()
    path = add_reference(model, rows, folder=tmp_path / "cache")
    assert path is not None
    first, before = rows.reference_N2, path.stat().st_mtime_ns
    assert model.training
    assert first is not None
    for i, pair in enumerate(pairs(5)):
        for side, each in enumerate((pair.chosen, pair.rejected)):
            alone = PairRows([pair], batch_size=1).batch([0]).sides[side]
            expected = answer_logprobs(small_model(), alone)[0]
            assert first[i, side] == pytest.approx(expected.item(), rel=1e-6), each
    again = PairRows(pairs(5), batch_size=3, seed=8)
    assert add_reference(small_model(dropout=0.5), again, folder=tmp_path / "cache") == path
    assert (again.reference_N2 == first).all()
    assert path.stat().st_mtime_ns == before
    batch = rows.batch([3, 0])
    assert batch.reference_B2 is not None
    assert batch.reference_B2.tolist() == first[[3, 0]].tolist()


def test_other_weights_or_other_data_have_another_file(tmp_path: Path) -> None:
    paths = {
        add_reference(small_model(seed), PairRows(pairs(3, of), batch_size=2), folder=tmp_path)
        for seed in (0, 1)
        for of in (0, 1)
    }
    assert len(paths) == 4


def test_a_damaged_file_is_not_believed(tmp_path: Path) -> None:
    rows = PairRows(pairs(3), batch_size=2)
    path = add_reference(small_model(), rows, folder=tmp_path)
    assert path is not None
    data = bytearray(path.read_bytes())
    for damaged in (data[:-3], data[:-3] + bytes([data[-3] ^ 1]) + data[-2:], b"", b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match="may be removed"):
            add_reference(small_model(), rows, folder=tmp_path)


def test_the_base_of_adapters_is_the_reference() -> None:
    """`base_only` puts the old weights back for a while, as switching adapters off does."""
    model, base = small_model(), small_model(seed=5)
    own = {name: value.clone() for name, value in model.state_dict().items()}

    @contextmanager
    def base_only():  # type: ignore[no-untyped-def]
        model.load_state_dict(base.state_dict())
        yield
        model.load_state_dict(own)

    rows = PairRows(pairs(4), batch_size=4)
    batch = rows.batch(range(4))
    loss, _ = DPO(model=model, data=rows, base_only=base_only)(batch)
    rows.reference_N2 = reference_logprobs(base, rows)
    expected, _ = DPO(model=model, data=rows)(rows.batch(range(4)))
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert loss.requires_grad
