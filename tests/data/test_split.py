import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.data.documents import Document
from tessera.data.split import cut_tail, held_out, last_documents, seeded_choice
from tessera.errors import InputError

shares = st.floats(0.01, 0.49)


@given(sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=60), share=shares, seed=st.integers(0, 99))
def test_a_choice_is_never_all_and_never_none_and_near_the_share(sizes, share, seed):
    sizes = np.array(sizes)
    mask = seeded_choice(sizes, share=share, seed=seed)
    assert mask.any()
    assert not mask.all()
    smallest = min(sizes)
    assert abs(sizes[mask].sum() - share * sizes.sum()) <= max(sizes[~mask].min(), smallest, 0.01 * share * sizes.sum())


def test_a_choice_of_many_documents_hits_the_share():
    sizes = np.random.default_rng(0).integers(1, 5000, size=2000)
    held = {seed: seeded_choice(sizes, share=0.1, seed=seed) for seed in range(5)}
    assert all(abs(sizes[mask].sum() / sizes.sum() - 0.1) < 0.002 for mask in held.values())
    assert len({mask.tobytes() for mask in held.values()}) == 5
    assert (seeded_choice(sizes, share=0.1, seed=0) == held[0]).all()


@given(
    texts=st.lists(st.integers(0, 5), min_size=2, max_size=30),
    share=shares,
    split=st.sampled_from(["auto", "documents", "tail"]),
    seed=st.integers(0, 99),
)
def test_no_text_is_on_both_sides(texts, share, split, seed):
    sizes, digests = np.array([10 + t for t in texts]), np.array(texts, dtype=np.uint64)
    try:
        mask = held_out(sizes, digests, share=share, split=split, seed=seed)
    except InputError:
        tail = last_documents(sizes, share=share)
        assert len(set(texts)) == 1 or (split == "tail" and set(texts) == set(digests[tail].tolist()))
        return
    assert mask.any()
    assert not mask.all()
    assert not set(digests[mask]) & set(digests[~mask])


@given(sizes=st.lists(st.integers(1, 1000), min_size=2, max_size=40), share=shares)
def test_the_tail_is_the_last_documents_nearest_to_the_share(sizes, share):
    mask = last_documents(np.array(sizes), share=share)
    first = mask.argmax()
    assert mask[first:].all()
    assert 0 < first < len(sizes)
    best = min(abs(sum(sizes[i:]) - share * sum(sizes)) for i in range(1, len(sizes)))
    assert abs(sum(sizes[first:]) - share * sum(sizes)) == best


@given(lines=st.lists(st.text(alphabet="ab é", min_size=1), min_size=2, max_size=30), share=shares)
def test_a_cut_document_is_whole_and_no_line_is_cut(lines, share):
    text = "\n".join(lines)
    if len(text.strip()) < 2 or "\n" not in text.strip():
        return
    start, end = cut_tail(Document(name="a.txt", text=text), share=share)
    assert start.text + end.text == text
    ends = [i + 1 for i, mark in enumerate(text) if mark == "\n" and text[: i + 1].strip() and text[i + 1 :].strip()]
    if any(2 * place >= len(text) for place in ends):
        assert start.text.endswith("\n")
        assert start.text.strip()
        assert end.text.strip()


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("one\n" * 10, 36),
        ("word " * 20, 90),
        ("x" * 100, 90),
        ("ab", 1),
        ("a\nb\nc\nd\n", 6),
        ("title\n" + "word " * 20, 96),
    ],
)
def test_the_cut_lies_at_the_nearest_line_end_space_or_character(text, cut):
    start, _ = cut_tail(Document(name="a.txt", text=text), share=0.1)
    assert len(start.text) == cut


def test_one_character_cannot_be_cut():
    with pytest.raises(InputError, match="too short"):
        cut_tail(Document(name="a.txt", text="a"), share=0.1)


def test_copies_of_one_text_cannot_be_held_out():
    with pytest.raises(InputError, match="all 3 documents are the same text"):
        held_out(np.array([5, 5, 5]), np.zeros(3, dtype=np.uint64), share=0.1, split="auto", seed=0)
