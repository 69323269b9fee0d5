from tessera.data.documents import Document
from tessera.data.stats import Counts, count
from tessera.tokenizers import TOKENIZERS


def test_counts_by_hand():
    documents = [Document(name="a", text="é\nb"), Document(name="b", text="one\ntwo\n")]
    counts = count(documents, TOKENIZERS["byte"].train([]))
    assert counts == Counts(
        n_documents=2, n_bytes=12, n_characters=11, n_lines=4, n_tokens=14, longest="b", longest_bytes=8
    )
    assert counts.bytes_per_document == 6
    assert counts.bytes_per_token == 12 / 14


def test_nothing_encoded_has_no_bytes_per_token():
    assert count([Document(name="a", text="a")]).bytes_per_token is None
    assert count([]).bytes_per_document == 0
