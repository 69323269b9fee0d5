"""Packing: against best-fit decreasing written out, and packed documents against each document alone."""

import json
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from tessera.data.batch import IGNORE, Batch
from tessera.data.batches import Packed, document_ends
from tessera.data.catalog import standard_library
from tessera.data.packing import grouped, pack
from tessera.data.shards import Shard
from tessera.errors import InputError, SettingError
from tessera.model.decoder import Decoder
from tessera.model.flow import Flow
from tessera.objectives import NextToken

END = 0


@settings(max_examples=200, deadline=None)
@given(capacity=st.integers(1, 30), data=st.data())
def test_it_is_best_fit_decreasing(capacity: int, data: st.DataObject) -> None:
    """Each choice, the longest first, against a look at every row: of two rows with the same room either will do."""
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=40))
    row_of = pack(np.array(lengths, dtype=np.int64), capacity)
    rooms: dict[int, int] = {}
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        row, length = int(row_of[item]), lengths[item]
        fitting = [room for room in rooms.values() if room >= length]
        if fitting:
            assert rooms[row] == min(fitting)
        else:
            assert row == len(rooms)
        rooms[row] = rooms.get(row, capacity) - length
    items, begins = grouped(row_of)
    rows = [items[a:b].tolist() for a, b in pairwise(begins)]
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(row == sorted(row) and set(row_of[row]) == {number} for number, row in enumerate(rows))


def test_lengths_that_cannot_be_packed_are_refused() -> None:
    for lengths in ([0, 3], [3, 9]):
        with pytest.raises(SettingError, match="expected from 1 to the capacity, 8"):
            pack(np.array(lengths), 8)


def shard_of(documents: list[list[int]]) -> Shard:
    return Shard(tokens=np.array([token for document in documents for token in [*document, END]], dtype=np.uint16))


def epoch_of(stream: Packed) -> list[Batch]:
    return list(islice(stream, stream.steps_per_epoch))


DOCUMENTS = st.lists(st.lists(st.integers(1, 9), max_size=20), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None)
@given(documents=DOCUMENTS, context=st.integers(1, 9), batch_size=st.integers(1, 4), seed=st.integers(0, 9))
def test_each_document_is_there_once_an_epoch_and_sees_no_other(
    documents: list[list[int]], context: int, batch_size: int, seed: int
) -> None:
    """Each run of one document number is a document, or a piece of one that is longer than a row, by itself."""
    shard = shard_of(documents)
    if len(shard) <= context:
        with pytest.raises(InputError, match="context longer than the data"):
            Packed(shard=shard, context=context, batch_size=batch_size, separate_at=END)
        return
    expected = Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
    for document in documents:
        inputs, targets = [END, *document], [*document, END]
        for at in range(0, len(targets), context):
            expected[(tuple(inputs[at : at + context]), tuple(targets[at : at + context]))] += 1
    stream = Packed(shard=shard, context=context, batch_size=batch_size, seed=seed, separate_at=END)
    for _ in range(2):
        seen = Counter[tuple[tuple[int, ...], tuple[int, ...]]]()
        for batch in epoch_of(stream):
            assert batch.inputs_BT.shape[1] == context
            assert batch.documents_BT is not None
            for inputs, targets, numbers in zip(batch.inputs_BT, batch.targets_BT, batch.documents_BT, strict=True):
                assert numbers.tolist() == sorted(numbers.tolist())
                for number in np.unique(numbers):
                    own = numbers == number
                    piece = (tuple(inputs[own].tolist()), tuple(targets[own].tolist()))
                    if set(piece[1]) == {IGNORE}:
                        assert set(piece[0]) == {END}
                        assert number == numbers[-1] != numbers[0]
                    else:
                        assert IGNORE not in piece[1]
                        seen[piece] += 1
        assert seen == expected
    n_places = 2 * stream.n_rows * context
    assert stream.padding == pytest.approx(1 - 2 * len(shard) / n_places)
    assert stream.n_documents == len(documents)


def test_the_order_is_of_the_seed_and_the_epoch_alone() -> None:
    shard = shard_of([[i % 9 + 1] * (i % 7) for i in range(60)])

    def rows(seed: int, batch_size: int) -> list[object]:
        stream = Packed(shard=shard, context=8, batch_size=batch_size, seed=seed, separate_at=END)
        drawn = []
        while stream.epoch < 2:
            other = Packed(shard=shard, context=8, batch_size=batch_size, seed=seed, separate_at=END)
            other.restore(json.loads(json.dumps(stream.state())))
            drawn += (now := stream.draw())
            assert other.draw() == now
        return [row.pieces for row in drawn]

    first = rows(1, 3)
    half = len(first) // 2
    assert first == rows(1, 5)
    assert first != rows(2, 3)
    assert first[:half] != first[half:]
    assert sorted(first[:half]) == sorted(first[half:])


def test_what_it_says_of_its_targets_is_so() -> None:
    stream = Packed(shard=shard_of([[3] * (i % 11) for i in range(40)]), context=8, batch_size=1, separate_at=END)
    counted = 0
    for n, batch in enumerate(islice(stream, 2 * stream.n_rows), 1):
        counted += batch.n_targets
        assert stream.n_targets(n) == counted


def test_documents_are_found_in_any_chunks() -> None:
    tokens = np.array([5, 0, 0, 7, 8, 0, 9, 9])
    for chunk in range(1, 10):
        assert document_ends(tokens, 0, chunk=chunk).tolist() == [2, 3, 6, 8]
    assert document_ends(tokens[:6], 0).tolist() == [2, 3, 6]
    assert document_ends(np.array([4, 4]), 0).tolist() == [2]


def test_an_end_token_is_needed() -> None:
    with pytest.raises(SettingError, match="separate_at = None: expected the id of the token that ends a document"):
        Packed(shard=shard_of([[1] * 9]), context=4, batch_size=1)


SHAPES: dict[str, dict[str, Any]] = {
    "rope": {"position": "rope"},
    "learned": {"position": "learned"},
    "alibi": {"position": "alibi"},
    "n-grams": {"embedding": {"name": "ngram", "orders": [2, 3], "rows": 50}},
    "latent attention": {"attention": {"name": "mla"}},
    "windows": {"attention": {"name": "gqa", "window": 5, "value_residual": True}},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_a_packed_document_has_the_loss_that_it_has_alone(shape: dict[str, Any]) -> None:
    """Each token's, to 1e-6; and the packed batch's loss is their mean."""
    rng = np.random.default_rng(3)
    documents = [rng.integers(1, 17, size).tolist() for size in rng.integers(0, 40, 60)]
    context = 24
    torch.manual_seed(0)
    model = (
        Decoder(
            n_vocab=17,
            context=context,
            d_model=16,
            n_layers=2,
            n_heads=2,
            **shape,
            init={"name": "normal", "std": 0.3},
        )
        .double()
        .eval()
    )
    stream = Packed(shard=shard_of(documents), context=context, batch_size=5, seed=2, separate_at=END)
    alone: dict[tuple[int, ...], torch.Tensor] = {}
    for document in documents:
        for at in range(0, len(document) + 1, context):
            inputs, targets = [END, *document][at : at + context], [*document, END][at : at + context]
            with torch.no_grad():
                logits = model(torch.tensor([inputs]))[0]
            alone[(*inputs, -1, *targets)] = cross_entropy(logits, torch.tensor(targets), reduction="none")
    n_compared = 0
    for batch in (each.to("cpu") for each in epoch_of(stream)):
        flow = Flow.of(batch.inputs_BT, documents_BT=batch.documents_BT)
        with torch.no_grad():
            logits_BTV = model(batch.inputs_BT, flow=flow)
        total = 0.0
        assert batch.documents_BT is not None
        for i in range(len(batch.inputs_BT)):
            for number in batch.documents_BT[i].unique():
                own = batch.documents_BT[i] == number
                inputs, targets = batch.inputs_BT[i, own].tolist(), batch.targets_BT[i, own]
                if (targets == IGNORE).all():
                    continue
                packed = cross_entropy(logits_BTV[i, own], targets, reduction="none")
                expected = alone[(*inputs, -1, *targets.tolist())]
                assert (packed - expected).abs().max() <= 1e-6
                total += float(expected.sum())
                n_compared += len(packed)
        with torch.no_grad():
            loss, _ = NextToken(model=model, data=stream).eval()(batch)
        assert float(loss) == pytest.approx(total / batch.n_targets, abs=1e-6)
    assert n_compared == len(stream.shard)


def test_hardly_a_place_is_left_empty_on_real_text() -> None:
    """Python's own library by bytes: the last row of all and what no document fits into, at four lengths of rows."""
    texts = [text.encode() for _, text in islice(standard_library(), 300)]
    tokens = np.concatenate([np.append(np.frombuffer(text, dtype=np.uint8), 0) for text in texts])
    for context in (128, 512, 2048, 8192):
        stream = Packed(shard=Shard(tokens=tokens), context=context, batch_size=8, separate_at=0)
        assert 0 <= stream.padding < 0.01, context
