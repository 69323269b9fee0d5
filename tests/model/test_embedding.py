"""N-gram embeddings: which rows are added, that nothing looks ahead, and that a cache and documents change nothing."""

from typing import Any

import pytest
import torch

from tessera.errors import InputError, SettingError
from tessera.formats.choice import choose_family
from tessera.model.decoder import Decoder
from tessera.model.embedding import NgramEmbedding, hashed_rows, ngram_keys
from tessera.model.flow import Flow
from tessera.model.settings import DecoderSettings
from tessera.optim import groups

SHAPE: dict[str, Any] = {"n_vocab": 11, "context": 12, "d_model": 16, "n_layers": 2, "n_heads": 4}
NGRAM = {"name": "ngram", "orders": [2, 4], "rows": 150}


def model_of(**settings: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**SHAPE | {"embedding": NGRAM, "init": {"name": "normal", "std": 0.3}} | settings).eval()


def key_by_hand(ids: list[int], base: int, n: int) -> int:
    """Of the last n of `ids`, digit by digit."""
    last = [id + 1 for id in ids[::-1][:n]]
    return sum(digit * base**lag for lag, digit in enumerate(last))


def signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


@pytest.mark.parametrize("base", [12, 50_258])
def test_keys_are_numbers_to_a_base(base: int) -> None:
    ids_BT = torch.randint(base - 1, (2, 9))
    keys = ngram_keys(ids_BT, base, (2, 3, 5), None, None)
    for n, key_BT in zip((2, 3, 5), keys, strict=True):
        expected = [[signed(key_by_hand(row[: t + 1], base, n)) for t in range(len(row))] for row in ids_BT.tolist()]
        assert key_BT.tolist() == expected


def test_rows_by_hand() -> None:
    """Bigrams have a row each (150 rows hold all 144); fourgrams share theirs."""
    embedding = model_of().embedding
    assert isinstance(embedding, NgramEmbedding)
    assert [len(table.weight) for table in embedding.tables] == [144, 150]
    ids = [3, 3, 7, 0, 10, 3]
    with torch.no_grad():
        found_TD = embedding(torch.tensor([ids]))[0]
        for t in range(len(ids)):
            pair, four = (key_by_hand(ids[: t + 1], 12, n) for n in (2, 4))
            row = int(hashed_rows(torch.tensor([[four]]), 150))
            expected = embedding.weight[ids[t]] + embedding.tables[0].weight[pair] + embedding.tables[1].weight[row]
            torch.testing.assert_close(found_TD[t], expected)


def test_the_hash_is_splitmix_like_and_spreads() -> None:
    def by_hand(key: int) -> int:
        for multiplier in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9):
            key = signed((key ^ (key >> 31)) * multiplier)
        return (key ^ (key >> 29)) % 1000

    keys = torch.tensor([[0, 1, 2, 11**4, 2**62 + 5, -7, -(2**63)]])
    assert hashed_rows(keys, 1000).tolist() == [[by_hand(key) for key in keys[0].tolist()]]
    counts = torch.bincount(hashed_rows(torch.arange(100_000)[None] * 4356, 1000)[0], minlength=1000)
    assert counts.min() > 50
    assert counts.max() < 160


def test_nothing_looks_ahead_and_the_last_tokens_count() -> None:
    model = model_of()
    ids_BT = torch.randint(11, (1, 12))
    other_BT = ids_BT.clone()
    other_BT[0, 5] = (other_BT[0, 5] + 1) % 11
    with torch.no_grad():
        change_T = (model.embedding(ids_BT) - model.embedding(other_BT))[0].abs().amax(dim=1)
    assert change_T.nonzero().flatten().tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("sizes", [[1] * 12, [1, 2, 1, 5, 3], [12], [7, 5]])
def test_cached_is_uncached(sizes: list[int]) -> None:
    model = model_of()
    ids_BT = torch.randint(11, (2, 12))
    with torch.no_grad():
        expected = model(ids_BT)
        cache = model.new_cache(2)
        for _ in range(2):
            parts = [model(part_BT, cache) for part_BT in ids_BT.split(sizes, dim=1)]
            torch.testing.assert_close(torch.cat(parts, dim=1), expected, rtol=1e-4, atol=1e-5)
            cache.reset()  # what was before it must not be seen


def test_a_cache_that_is_full_says_so_and_only_this_embedding_keeps_tokens() -> None:
    model = model_of()
    cache = model.new_cache(1, 4)
    with pytest.raises(InputError, match="holds 4 tokens and 5 are needed"):
        model(torch.zeros(1, 5, dtype=torch.long), cache)
    assert cache.n_bytes == model_of(embedding="table").new_cache(1, 4).n_bytes + 4 * 8


def test_documents_are_apart() -> None:
    model = model_of()
    ids_BT = torch.randint(11, (1, 12))
    documents_BT = torch.tensor([[5] * 4 + [9] * 1 + [2] * 7])
    with torch.no_grad():
        together = model.embedding(ids_BT, Flow.of(ids_BT, documents_BT=documents_BT))
        alone = [model.embedding(part_BT) for part_BT in ids_BT.split([4, 1, 7], dim=1)]
        assert torch.equal(together, torch.cat(alone, dim=1))
        assert not torch.equal(together, model.embedding(ids_BT))


def test_whole_rows_are_dropped_in_training_alone() -> None:
    model = model_of(embedding=NGRAM | {"dropout": 0.4})
    ids_BT = torch.randint(11, (400, 12))
    with torch.no_grad():
        plain = model_of().embedding(ids_BT)
        assert torch.equal(model.embedding(ids_BT), plain)
        one, two = model.embedding.tables
        one.weight.fill_(3.0)
        two.weight.fill_(5.0)
        added = model.embedding.train()(ids_BT) - model.embedding.weight[ids_BT]
    assert (added - added[..., :1]).abs().max() < 1e-5, "a row is dropped as a whole"
    values, counts = (added[..., 0] * 0.6).round().unique(return_counts=True)
    assert values.tolist() == [0.0, 3.0, 5.0, 8.0]
    shares = counts / counts.sum()
    torch.testing.assert_close(shares, torch.tensor([0.16, 0.24, 0.24, 0.36]), atol=0.03, rtol=0)


def test_the_tables_are_tables_to_an_optimizer_and_start_like_the_other() -> None:
    model = model_of(d_model=64, n_vocab=300, embedding={"name": "ngram"})
    made = {group["kind"]: group["names"] for group in groups(model)}
    assert {f"embedding.tables.{i}.weight" for i in range(3)} <= set(made["table"])
    assert [len(table.weight) for table in model.embedding.tables] == [32768] * 3
    for table in model.embedding.tables:
        assert 0.29 < float(table.weight.detach().std()) < 0.31


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"orders": []}, r"orders = \[\]"),
        ({"orders": [3, 2]}, "the shortest first"),
        ({"orders": [1, 2]}, "lengths from 2"),
        ({"orders": [2, 2]}, "each once"),
        ({"dropout": 1.0}, "a share from 0 to less than 1"),
        ({"rows": 0}, "rows = 0: expected at least 1"),
    ],
)
def test_what_cannot_be_is_told(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        model_of(embedding={"name": "ngram"} | settings)


def test_no_other_library_has_it_and_an_export_says_so() -> None:
    model = model_of()
    settings = DecoderSettings(**{name: SHAPE[name] for name in SHAPE if name != "n_vocab"}, embedding=NGRAM)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with pytest.raises(SettingError, match=r"none of them has embedding\.name"):
        choose_family(settings, 11, shapes)
