import errno
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tessera.data.prepare as room
from tessera.data.division import divide
from tessera.data.documents import Document, read_documents
from tessera.data.prepare import prepare, stats
from tessera.data.prepared import Prepared
from tessera.data.shards import Shard
from tessera.errors import DamagedError, InputError, SettingError, StorageError
from tessera.tokenizers import TOKENIZERS

BYTE = TOKENIZERS["byte"].train([])


def numbered(n, size=20):
    return [Document(name=f"d{i}", text=f"{i:04d} " * (size // 5), source="s") for i in range(n)]


def prepared_from(documents, tokenizer, folder, *, progress=None, **settings):
    return prepare(divide(documents, **settings), tokenizer, folder, progress=progress)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def split_ids(shard):
    """The documents in a shard, as bytes."""
    ids = shard.tokens.tolist()
    assert ids[-1] == BYTE.end_id
    documents, start = [], 0
    for place, id in enumerate(ids):
        if id == BYTE.end_id:
            documents.append(BYTE.decode_bytes(ids[start:place]))
            start = place + 1
    return documents


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(alphabet="abé\n", min_size=1, max_size=30), min_size=2, max_size=12, unique=True),
    split=st.sampled_from(["auto", "documents", "tail"]),
    validation=st.floats(0.05, 0.45),
)
def test_each_document_is_in_one_shard_whole_and_in_order(tmp_path, texts, split, validation):
    documents = [Document(name=str(i), text=text) for i, text in enumerate(texts)]
    prepared = prepared_from(documents, BYTE, tmp_path / "d", validation=validation, split=split)
    train, held = split_ids(prepared.train), split_ids(prepared.validation)
    assert not set(train) & set(held)
    assert train
    assert held
    order = [text.encode() for text in texts]
    assert sorted(train + held) == sorted(order)
    assert train == [text for text in order if text in train]
    assert held == [text for text in order if text in held]
    assert prepared.validation_text() == b"".join(held)
    assert prepared.held_out == [str(order.index(text)) for text in held]
    assert prepared.split == ("tail" if split == "tail" else "documents")
    assert names(tmp_path / "d") == sorted(room.FILES)


def test_one_document_is_cut_at_a_line_end(tmp_path):
    text = "".join(f"line {i}\n" for i in range(100))
    prepared = prepared_from([Document(name="a", text=text)], BYTE, tmp_path / "d", validation=0.2)
    (train,), (held,) = split_ids(prepared.train), split_ids(prepared.validation)
    assert train + held == text.encode()
    assert train.endswith(b"\n")
    assert 0.19 < len(held) / len(text) < 0.21
    assert (prepared.split, prepared.held_out) == ("tail", ["a (end)"])
    assert prepared.held_out_share == len(held) / len(text)
    with pytest.raises(InputError, match="split = 'tail'"):
        prepared_from([Document(name="a", text=text)], BYTE, tmp_path / "e", split="documents")
    assert not (tmp_path / "e").exists()


def test_meta_and_counts_say_what_is_there(tmp_path):
    documents = [*numbered(40), Document(name="other", text="é" * 50, source="t")]
    prepared = prepared_from(documents, BYTE, tmp_path, validation=0.25, seed=3)
    again = Prepared.open(tmp_path, fingerprint=BYTE.fingerprint, verify=True)
    assert again == prepared
    for part, shard in (("train", prepared.train), ("validation", prepared.validation)):
        counts = prepared.counts[part]
        assert counts.n_tokens == len(shard) == counts.n_bytes + counts.n_documents
        assert shard.sha256 == prepared.sha256[part]
    assert sum(counts.n_bytes for counts in prepared.counts.values()) == 40 * 20 + 100
    assert {source: (c.n_documents, c.n_bytes) for source, c in prepared.sources.items()} == {
        "s": (40, 800),
        "t": (1, 100),
    }
    assert stats([str(tmp_path)]) == prepared.counts
    assert json.loads((tmp_path / "meta.json").read_text())["seed"] == 3


def test_the_seed_decides_the_split_and_nothing_else_does(tmp_path, monkeypatch):
    first = prepared_from(numbered(50), BYTE, tmp_path / "a", seed=1)
    monkeypatch.setattr(room, "GROUP_BYTES", 50)
    assert prepared_from(iter(numbered(50)), BYTE, tmp_path / "b", seed=1).sha256 == first.sha256
    assert prepared_from(numbered(50), BYTE, tmp_path / "c", seed=2).sha256 != first.sha256


def test_the_tokenizers_of_lossy_kinds_keep_the_held_out_text(tmp_path):
    documents = [Document(name=str(i), text=f"Word {i}, WORD!") for i in range(20)]
    word = TOKENIZERS["word"].train([document.text for document in documents])
    prepared = prepared_from(documents, word, tmp_path)
    held = [documents[int(name)].text for name in prepared.held_out]
    assert prepared.validation_text().decode() == "".join(held)


def test_a_tokenizer_sees_nothing_that_is_held_out(tmp_path):
    documents = numbered(50)
    division = divide(documents, seed=4)
    prepared = prepare(division, BYTE, tmp_path)
    texts = list(division.train_texts())
    assert [text.encode() for text in texts] == split_ids(prepared.train)
    assert prepared.held_out == [document.name for document in documents if document.text not in texts]


def test_a_division_is_described_in_a_line():
    assert divide(numbered(50)).describe() == (
        "1,000 bytes of text; held out for validation: 5 of 50 documents, 100 bytes (10.0%)"
    )
    assert divide([Document(name="a", text="line\n" * 20)]).describe() == (
        "100 bytes of text; held out for validation: the end of the text, 10 bytes (10.0%)"
    )


def test_progress_reaches_the_total(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "GROUP_BYTES", 100)
    calls = []
    prepared_from(numbered(20), BYTE, tmp_path, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 400) for done in range(100, 500, 100)]


def test_a_full_disk_leaves_what_was_prepared_before(tmp_path, monkeypatch):
    before = prepared_from(numbered(20), BYTE, tmp_path / "d")
    fsync, calls = os.fsync, []

    def full_at_the_third(descriptor):
        calls.append(descriptor)
        if len(calls) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    for folder in (tmp_path / "d", tmp_path / "new"):
        calls.clear()
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
            patch.setattr(os, "fsync", full_at_the_third)
            prepared_from(numbered(30), BYTE, folder)
    assert Prepared.open(tmp_path / "d", verify=True) == before
    assert names(tmp_path / "d") == sorted(room.FILES)
    assert not (tmp_path / "new").exists()


def test_shards_of_two_preparations_do_not_pass_for_one(tmp_path):
    prepared_from(numbered(20), BYTE, tmp_path / "a", seed=1)
    prepared_from(numbered(20), BYTE, tmp_path / "b", seed=2)
    (tmp_path / "a" / "train.bin").replace(tmp_path / "b" / "train.bin")
    with pytest.raises(DamagedError, match=r"train\.bin is damaged: it is not the file that meta\.json describes"):
        Prepared.open(tmp_path / "b")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 1, "counts": 3}'])
def test_a_damaged_meta_is_named(tmp_path, content):
    prepared_from(numbered(20), BYTE, tmp_path)
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(DamagedError, match=r"meta\.json"):
        Prepared.open(tmp_path)


def test_altered_held_out_text_is_found(tmp_path):
    prepared_from(numbered(20), BYTE, tmp_path)
    with (tmp_path / "validation.txt").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DamagedError, match=r"validation\.txt"):
        Prepared.open(tmp_path, verify=True)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="no text"):
        prepared_from([], BYTE, tmp_path / "d")
    with pytest.raises(SettingError, match=r"validation = 0\.5"):
        prepared_from(numbered(3), BYTE, tmp_path / "d", validation=0.5)
    with pytest.raises(InputError, match="holds no prepared data"):
        Prepared.open(tmp_path / "d")
    prepared_from(numbered(3), BYTE, tmp_path / "d")
    with pytest.raises(InputError, match="another tokenizer"):
        Prepared.open(tmp_path / "d", fingerprint="0" * 64)


def test_documents_that_change_between_the_passes_are_refused(tmp_path):
    path = tmp_path / "a"
    path.mkdir()
    for name in "xyz":
        (path / f"{name}.txt").write_text(name * 50)

    class Changing:
        def __iter__(self):
            yield from read_documents([str(path)])
            (path / "y.txt").write_text("longer" * 50)

    with pytest.raises(InputError, match=r"y\.txt changed while it was being prepared"):
        prepared_from(Changing(), BYTE, tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_stats_of_sources(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "b.txt").write_text("abcdef")
    sources = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    assert [counts.n_tokens for counts in stats(sources, BYTE).values()] == [4, 7]
    assert [counts.n_tokens for counts in stats(sources).values()] == [0, 0]


def test_a_real_corpus_is_held_out_by_file(tmp_path):
    prepared = prepared_from(read_documents(["python-stdlib"]), BYTE, tmp_path, validation=0.05, seed=1337)
    assert abs(prepared.held_out_share - 0.05) < 0.001
    shard = Shard.open(tmp_path / "validation.bin", verify=True)
    assert np.count_nonzero(shard.tokens == BYTE.end_id) == len(prepared.held_out)
    assert BYTE.decode_bytes(shard.tokens[shard.tokens != BYTE.end_id].tolist()) == prepared.validation_text()
