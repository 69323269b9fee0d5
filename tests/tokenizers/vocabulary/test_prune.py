"""A smaller vocabulary: what is kept, that it is reached, and that every text still comes back."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.tokenizers.byte import ByteTokenizer
from tessera.tokenizers.char import CharTokenizer
from tessera.tokenizers.contract import Tokenizer
from tessera.tokenizers.regex_bpe import RegexBpe
from tessera.tokenizers.sentencepiece.piece_bpe import PieceBpe
from tessera.tokenizers.sentencepiece.piece_tokenizer import Piece
from tessera.tokenizers.sentencepiece.unigram import UnigramTokenizer
from tessera.tokenizers.symbols import SymbolTokenizer
from tessera.tokenizers.vocabulary.prune import last_merges, prune
from tessera.tokenizers.vocabulary.usage import count_usage
from tessera.tokenizers.word import WordTokenizer

CORPUS = [
    "Whatever is trained on this text must find enough pairs to merge: letters, words, numbers like 1234 and 5678.\n",
    "the theme of the theatre is that the other brother bothers the mother; ",
    "der Bäcker backt das Brot, und der Bruder bricht das Brot.\n" * 3,
    "for i in range(10):\n    print(i, theme[i])\n",
    "日本語の本、日本の本。",
]
BYTES = {bytes([byte]): byte for byte in range(256)}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def made_of(words: dict[str, int], **settings: Any) -> RegexBpe:
    return RegexBpe(ranks=BYTES | {word.encode(): id for word, id in words.items()}, pattern=r"\S+|\s+", **settings)


@pytest.fixture(scope="module", params=["by rank", "by merges", "by merges alone"])
def bpe(request: pytest.FixtureRequest) -> RegexBpe:
    by_rank = RegexBpe.train(CORPUS, vocab_size=405, specials=["<|endoftext|>", "<|user|>"])
    if request.param == "by rank":
        return by_rank
    parts = last_merges(by_rank)
    merges = [(first, second) for _, (first, second) in sorted(parts.items())]
    return RegexBpe(
        ranks=by_rank.ranks,
        pattern="gpt4",
        merges=merges,
        whole_pieces=request.param == "by merges",
        specials=by_rank.specials,
    )


def test_what_counts_worked_by_hand() -> None:
    """ab is written once and made twice for abc: 3; abc is written 2 times, de 3 times, fg never."""
    tokenizer = made_of({"ab": 256, "abc": 257, "de": 258, "fg": 259})
    kept = [prune(tokenizer, ["abc abc ab de de de"], vocab_size=257 + n).tokenizer for n in range(1, 5)]
    tokens = [{token for id, token in each.vocabulary() if 256 <= id < each.n_vocab - 1} for each in kept]
    assert tokens == [{b"ab"}, {b"ab", b"de"}, {b"ab", b"abc", b"de"}, {b"ab", b"abc", b"de", b"fg"}]
    assert kept[1].encode("abc de") == [256, ord("c"), ord(" "), 257]
    assert kept[1].specials == {"<|endoftext|>": 258}


def test_the_last_merges_worked_by_hand() -> None:
    assert last_merges(made_of({"ab": 256, "cd": 257, "abcd": 258, "xyz": 259})) == {
        256: (97, 98),
        257: (99, 100),
        258: (256, 257),
    }


def test_a_token_may_be_numbered_before_what_it_is_made_of() -> None:
    tokenizer = made_of({"abc": 256, "zz": 270, "ab": 300})
    pruned = prune(tokenizer, ["abc"], vocab_size=256 + 2 + 1).tokenizer
    assert {token for _, token in pruned.vocabulary() if len(token) > 1} == {b"ab", b"abc", b"<|endoftext|>"}
    assert pruned.encode("xabc") == [120, 256]


def test_a_token_that_only_a_whole_piece_becomes_needs_no_parts() -> None:
    pruned = prune(made_of({"xy": 256, "ab": 257, "wxyz": 258}), ["wxyz wxyz ab"], vocab_size=256 + 1 + 1)
    assert pruned.tokenizer.encode("wxyz ab") == [256, ord(" "), ord("a"), ord("b")]
    assert pruned.old_ids.tolist() == [*range(256), 258, 259]


@pytest.mark.parametrize("n_kept", [0, 1, 20, 60, 120, 147])
def test_every_kept_token_is_reached_by_merging(bpe: RegexBpe, n_kept: int) -> None:
    pruned = prune(bpe, CORPUS, vocab_size=258 + n_kept).tokenizer
    assert isinstance(pruned, RegexBpe)
    longer = {id for token, id in pruned.ranks.items() if len(token) > 1}
    assert last_merges(pruned).keys() == longer
    assert len(longer) == n_kept
    assert sorted(id for id, _ in pruned.vocabulary()) == list(range(258 + n_kept))


def test_a_kept_token_is_made_of_the_same_two(bpe: RegexBpe) -> None:
    pruned = prune(bpe, CORPUS, vocab_size=330)
    assert isinstance(pruned.tokenizer, RegexBpe)
    before = last_merges(bpe)
    old_ids = pruned.old_ids.tolist()
    for new, parts in last_merges(pruned.tokenizer).items():
        assert tuple(old_ids[part] for part in parts) == before[old_ids[new]]


@settings(max_examples=60, deadline=None)
@given(text=text, n_kept=st.integers(0, 147))
def test_every_text_comes_back(bpe: RegexBpe, text: str, n_kept: int) -> None:
    pruned = prune(bpe, CORPUS, vocab_size=258 + n_kept).tokenizer
    assert pruned.decode(pruned.encode(text, specials="none")) == text
    assert pruned.decode(pruned.encode(f"{text}<|user|>the", specials="all")) == f"{text}<|user|>the"


@settings(max_examples=60, deadline=None)
@given(text=text)
def test_the_whole_vocabulary_is_the_same_tokenizer(bpe: RegexBpe, text: str) -> None:
    pruned = prune(bpe, CORPUS, vocab_size=bpe.n_vocab).tokenizer
    assert pruned.fingerprint == bpe.fingerprint
    assert pruned.encode(text, specials="none") == bpe.encode(text, specials="none")


def greedy(tokenizer: RegexBpe, texts: list[str], n_kept: int) -> set[int]:
    """Leaf by leaf: drop the least used token that nothing is built upon, split what stood for it, and count anew."""
    parts = last_merges(tokenizer)
    counts = Counter(count_usage(tokenizer, texts).counts)
    kept = set(parts)
    while len(kept) > n_kept:
        inner = {part for id in kept for part in parts[id]}
        leaf = min(kept - inner, key=lambda id: (counts[id], -id))
        for part in parts[leaf]:
            counts[part] += counts[leaf]
        kept.remove(leaf)
    return kept


@pytest.mark.parametrize("n_kept", [5, 40, 90, 140])
def test_one_pass_keeps_what_removing_leaf_by_leaf_keeps(bpe: RegexBpe, n_kept: int) -> None:
    pruned = prune(bpe, CORPUS, vocab_size=258 + n_kept)
    assert set(pruned.old_ids[256 : 256 + n_kept].tolist()) == greedy(bpe, CORPUS, n_kept)


def test_a_larger_vocabulary_needs_fewer_tokens(bpe: RegexBpe) -> None:
    sizes = [258, 270, 300, 340, 380, 405]
    used = [count_usage(prune(bpe, CORPUS, vocab_size=size).tokenizer, CORPUS).n_tokens for size in sizes]
    assert used == sorted(used, reverse=True)
    assert used[0] == sum(len(part.encode()) for part in CORPUS)


def test_what_the_texts_do_not_use_goes_first(bpe: RegexBpe) -> None:
    texts = ["the theme of the theatre"]
    pruned = prune(bpe, texts, vocab_size=300)
    assert pruned.before.n_tokens == count_usage(bpe, texts).n_tokens == count_usage(pruned.tokenizer, texts).n_tokens


def test_special_tokens_are_kept_close_up_and_do_not_count() -> None:
    sparse = RegexBpe.train(CORPUS, vocab_size=300, specials={"<|a|>": 70_000, "<|endoftext|>": 5_000})
    pruned = prune(sparse, ["the<|a|>" * 50 + "der"], vocab_size=280)
    assert pruned.tokenizer.specials == {"<|endoftext|>": 278, "<|a|>": 279}
    assert pruned.tokenizer.encode("<|a|>", specials="all") == [279]
    assert pruned.old_ids[-2:].tolist() == [5_000, 70_000]
    assert not any(b"|" in token for id, token in pruned.tokenizer.vocabulary() if 255 < id < 278)


def pieces(normal: list[str], users: tuple[str, ...] = ()) -> dict[int, Piece]:
    """`<unk>`, then the pieces, each a little less likely than the one before."""
    found = [Piece(each, -1.0 - number) for number, each in enumerate(normal)]
    return dict(enumerate([Piece("<unk>", 0.0, "unknown"), *found, *(Piece(user, 0.0, "user") for user in users)]))


KINDS: dict[str, Tokenizer] = {
    "bpe": RegexBpe.train(CORPUS, vocab_size=330),
    "char": CharTokenizer.train(CORPUS),
    "word": WordTokenizer.train(CORPUS),
    "symbols": SymbolTokenizer.train(CORPUS),
    "symbols and line ends": SymbolTokenizer.train(CORPUS, newline="symbol"),
    "unigram": UnigramTokenizer(pieces=pieces(["the", " the", "other", *"the or"], users=("asked",))),
    "pieces": PieceBpe(pieces=pieces(["th", "the", "er", "zz", *"ther oz"])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_id_stands_for_what_its_old_id_stood_for(kind: str) -> None:
    tokenizer = KINDS[kind]
    size = len(tokenizer.vocabulary()) - 3
    pruned = prune(tokenizer, CORPUS, vocab_size=size)
    assert type(pruned.tokenizer) is type(tokenizer)
    assert len(pruned.old_ids) == pruned.tokenizer.n_vocab == size
    assert len(np.unique(pruned.old_ids)) == size
    for new, token in pruned.tokenizer.vocabulary():
        assert token == tokenizer.token_bytes(int(pruned.old_ids[new]))
    assert pruned.tokenizer.specials.keys() == tokenizer.specials.keys()
    if tokenizer.unk_id is not None:
        assert pruned.tokenizer.unk_id is not None
        assert pruned.old_ids[pruned.tokenizer.unk_id] == tokenizer.unk_id
    pruned.tokenizer.encode("anything at all ☃", specials="none")


def test_words_that_are_left_out_are_unknown() -> None:
    words = WordTokenizer(words=["rare", "the", "cat", "sat"])
    pruned = prune(words, ["the cat sat, the cat ran"], vocab_size=2 + 2 + 1).tokenizer
    assert isinstance(pruned, WordTokenizer)
    assert pruned.words == ["the", "cat"]
    assert pruned.encode("the rare cat") == [2, 1, 3]


def test_one_word_is_not_taken_for_an_alphabet() -> None:
    one = WordTokenizer(words=["the"])
    assert prune(one, ["the cat"], vocab_size=4).tokenizer.fingerprint == one.fingerprint
    assert prune(one, ["the cat"], vocab_size=3).tokenizer.encode("the") == [1]


def test_characters_of_a_unigram_model_outlive_their_words() -> None:
    unigram = KINDS["unigram"]
    pruned = prune(unigram, ["the the other"], vocab_size=len(unigram.vocabulary()) - 3).tokenizer
    left = {token for _, token in pruned.vocabulary()}
    assert {b"t", b"h", b"e", b" ", b"o", b"asked"} <= left


def test_a_joined_piece_keeps_what_it_is_joined_of() -> None:
    pruned = prune(KINDS["pieces"], ["the the other"], vocab_size=8).tokenizer
    assert pruned.decode(pruned.encode("the")) == "the"
    assert {b"th", b"the", b"t", b"h", b"e", b" "} <= {token for _, token in pruned.vocabulary()}


@pytest.mark.parametrize("size", [0, 257, 406])
def test_a_size_that_cannot_be(bpe: RegexBpe, size: int) -> None:
    with pytest.raises(SettingError, match=f"vocab_size = {size}: expected 258 to 405"):
        prune(bpe, CORPUS, vocab_size=size)


def test_what_cannot_be_pruned() -> None:
    with pytest.raises(InputError, match="'byte' cannot be pruned, only bpe, char"):
        prune(ByteTokenizer(), CORPUS, vocab_size=257)
    with pytest.raises(InputError, match="no text"):
        prune(KINDS["bpe"], [], vocab_size=300)
    with pytest.raises(InputError, match="on_unknown"):
        prune(SymbolTokenizer.train(CORPUS, on_unknown="error"), CORPUS, vocab_size=10)


@pytest.mark.slow
def test_gpt4_on_shakespeare(shared_data: Path) -> None:
    from tessera.tokenizers import load_vocabulary

    gpt4 = load_vocabulary("bpe", shared_data / "tokenizers" / "cl100k_base.tiktoken", pattern="gpt4")
    play = (shared_data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    pruned = prune(gpt4, [play], vocab_size=8000)
    after = count_usage(pruned.tokenizer, [play])
    assert after.bytes_per_token > 0.97 * pruned.before.bytes_per_token
    assert isinstance(pruned.tokenizer, RegexBpe)
    assert len(last_merges(pruned.tokenizer)) == len(pruned.tokenizer.ranks) - 256
    assert pruned.tokenizer.decode(pruned.tokenizer.encode(play)) == play


@pytest.mark.slow
def test_a_pruned_qwen_is_the_same_in_hugging_faces_library(shared_data: Path, tmp_path: Path) -> None:
    from tessera.tokenizers.formats import export_tokenizer, import_tokenizer
    from tokenizers import Tokenizer as Reference

    qwen = import_tokenizer(shared_data / "tokenizers" / "qwen3")
    play = (shared_data / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    other = (shared_data / "instruct" / "alpaca_zh_demo.json").read_text(encoding="utf-8")[:200_000]
    pruned = prune(qwen, [play, other[:100_000]], vocab_size=6000).tokenizer
    export_tokenizer(pruned, tmp_path, format="huggingface")
    reference = Reference.from_file(str(tmp_path / "tokenizer.json"))
    assert pruned.specials.keys() == qwen.specials.keys()
    for sample in (play[:200_000], other, "<|im_start|>user\nhi<|im_end|>"):
        assert pruned.encode(sample, specials="all") == reference.encode(sample).ids
        assert pruned.decode(pruned.encode(sample, specials="all")) == sample
