"""Constrained output: what is generated under the mask matches, and whatever matches can be generated."""

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import InputError, SettingError
from tessera.generate.constrain.automaton import Limit
from tessera.generate.constrain.build import automaton
from tessera.generate.constrain.constraint import Constraint, Constraints
from tessera.generate.constrain.encoding import json_string, utf8
from tessera.generate.constrain.regex import parse_regex
from tessera.generate.constrain.vocabulary import Vocabulary
from tessera.generate.sampling import Sampling
from tessera.tokenizers import train_tokenizer

PIECES = ["ab", "abc", "é", "日本", "123", "12", " ", "-0", "\n", "}}", '":"', "true", "aa", "a1", "Z", "€x"]
SPELLED = [bytes([byte]) for byte in range(256)] + [piece.encode() for piece in PIECES] + [b"\xe6\x97", b"\xa9"]
"""Every byte, so that everything can be spelled; some words; and pieces of characters."""
END, NOTHING = len(SPELLED), len(SPELLED) + 1
VOCABULARY = Vocabulary({**dict(enumerate(SPELLED)), NOTHING: b""}, ends=[END])

PATTERNS = [
    "abc",
    "a|b|cd",
    "(ab|a)*c?",
    "[a-c]{2,4}",
    "a{3}b{2,}c{,2}",
    r"\d{3}-\d{4}",
    r"-?(0|[1-9]\d*)(\.\d+)?",
    r"[^a-y0-9]+",
    ".{0,5}",
    r"[\w.]+@\w+\.(com|org)",
    r"\s*\S+\s*",
    "(?:é|日本|[ж-яё]){1,3}",
    r"[^\x00-\x7f]*",
    r"\x41\u00e9\U0001F469",
    "^a$|^b",
    r"\Aa*\Z",
    "a*b|(a|b)*?abb",
    "(?P<year>20[0-9]{2})-(0[1-9]|1[0-2])",
    r"[]a-]+\]",
    r"[\]\-\\^]+",
    "x{,}y{}{z",
    "",
    "()|a",
    "a(^b)?",
    "(a$)?b",
]


def walk(constraint: Constraint, rng: random.Random, most: int = 60) -> bytes | None:
    """Tokens drawn out of those that are allowed, until an end token; None if that takes too long."""
    state, text = constraint.start, b""
    for _ in range(most):
        allowed = constraint.allowed(state).tolist()
        assert (END in allowed) == constraint.accepts(state)
        id = END if END in allowed and rng.random() < 0.3 else rng.choice(allowed)
        state = constraint.advance(state, id)
        if id == END:
            assert constraint.finished(state)
            return text
        text += SPELLED[id]
    return None


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_generated_matches(pattern):
    constraint = Constraint.regex(pattern, VOCABULARY)
    rng = random.Random(pattern)
    texts = [text for _ in range(40) if (text := walk(constraint, rng)) is not None]
    assert len(texts) > 5
    for text in texts:
        assert re.fullmatch(pattern, text.decode(), re.ASCII), text


def cut(text: bytes, rng: random.Random) -> list[int]:
    """Tokens that spell `text`, in one of the ways to do so."""
    ids = []
    while text:
        ids.append(rng.choice([id for id, spelled in enumerate(SPELLED) if text.startswith(spelled)]))
        text = text[len(SPELLED[ids[-1]]) :]
    return ids


def admits(constraint: Constraint, ids: list[int]) -> bool:
    """Whether the masks allow these tokens and the end after them."""
    state = constraint.start
    for id in ids:
        if id not in constraint.allowed(state):
            return False
        state = constraint.advance(state, id)
    return END in constraint.allowed(state)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_way_to_spell_what_matches_is_allowed_and_nothing_else(pattern):
    """Texts from Hypothesis that match, and the same with a character changed, as `re` judges them."""
    constraint = Constraint.regex(pattern, VOCABULARY)
    rng = random.Random(pattern)

    @settings(max_examples=15, deadline=None, database=None, derandomize=True)
    @given(
        st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True),
        st.characters(exclude_categories=["Cs"]),
        st.data(),
    )
    def check(text, character, data):
        place = data.draw(st.integers(0, len(text)))
        for each in (text, text[:place] + character + text[place + 1 :]):
            matches = re.fullmatch(pattern.replace("$", r"\Z"), each, re.ASCII) is not None
            assert constraint.automaton.accepts(each.encode()) == matches
            assert admits(constraint, cut(each.encode(), rng)) == matches

    check()


ATOMS = st.sampled_from(["a", "b", "ab", "[ab]", "[^a]", ".", r"\d", "é", r"\w", "^", "$", "()"])


def wrapped(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    counts = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,1}", "{1,}", "*?"])
    return (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map("|".join)
        | st.tuples(inner.map("({})".format), counts).map("".join)
    )


@settings(max_examples=300, deadline=None)
@given(pattern=st.recursive(ATOMS, wrapped, max_leaves=8), texts=st.lists(st.text("abé1\n", max_size=5), max_size=8))
def test_any_pattern_accepts_what_re_accepts(pattern, texts):
    made = automaton(parse_regex(pattern), Limit(5000, "the pattern"))
    for text in ["", *texts]:
        matches = re.fullmatch(pattern.replace("$", r"\Z"), text, re.ASCII)
        assert made.accepts(text.encode()) == (matches is not None), (pattern, text)


@given(st.lists(st.tuples(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF)), max_size=4), st.integers(0, 0x10FFFF))
def test_ranges_of_characters_are_ranges_of_bytes(pairs, code):
    ranges = tuple((min(pair), max(pair)) for pair in pairs)
    probes = {code, *(end + d for pair in ranges for end in pair for d in (-1, 0, 1))}
    products = utf8(ranges)
    for each in probes:
        if 0 <= each <= 0x10FFFF and not 0xD800 <= each <= 0xDFFF:
            spelled = chr(each).encode()
            hits = [
                p
                for p in products
                if len(p) == len(spelled) and all(a <= x <= b for x, (a, b) in zip(spelled, p, strict=True))
            ]
            assert bool(hits) == any(first <= each <= last for first, last in ranges)


def test_characters_in_a_json_string_have_one_spelling():
    for code in (*range(0x80), 0xE9, 0x1F469):
        (product,) = json_string(((code, code),))
        spelled = bytes(first for first, last in product)
        assert json.loads(b'"' + spelled + b'"') == chr(code)


REFUSED = [
    (r"a\b", r"no \\b, it is not supported \(at character 3\)"),
    (r"(a)\1", r"no \\1"),
    ("(?=a)b", r"no \(\?=\.\.\.\) group"),
    ("(?i)a", r"no \(\?i\.\.\.\) group"),
    ("(?<!a)b", r"no \(\?<\.\.\.\) group"),
    ("a++", "possessive"),
    ("a**", "two in a row|one quantifier"),
    ("*a", "something to repeat"),
    ("{2}", "something to repeat"),
    ("(a", r"a '\)' for each"),
    ("a)", r"no '\)'"),
    ("[a", r"a '\]' for each"),
    ("[b-a]", "the lower one first"),
    ("a{3,2}", "from less to more"),
    (r"\xg0", "hexadecimal"),
    ("a\\", "ends too early"),
    ("a{999999}", "at most"),
]


@pytest.mark.parametrize(("pattern", "message"), REFUSED)
def test_what_a_pattern_may_not_have_is_named(pattern, message):
    with pytest.raises(SettingError, match=message) as caught:
        parse_regex(pattern)
    assert str(caught.value).startswith(f"regex = {pattern!r}: expected ")


def test_too_many_states_are_an_error():
    with pytest.raises(InputError, match=r"the pattern '.*' needs more than 500 states: make its counted repeats"):
        Constraint.regex("(a|b)*a.{12}", VOCABULARY, states=500)
    with pytest.raises(InputError, match="more than 500 states"):
        Constraint.regex("(a{100}){100}", VOCABULARY, states=500)
    with pytest.raises(InputError, match="more than 500 states"):
        Constraint.regex("(a|b)*.{900}", VOCABULARY, states=500)
    with pytest.raises(InputError, match="is nested too deeply"):
        Constraint.regex("(" * 5000 + ")" * 5000, VOCABULARY)
    with pytest.raises(InputError, match="matches no text at all"):
        Constraint.regex("a^b", VOCABULARY)


def test_masks_by_hand():
    vocabulary = Vocabulary({0: b"a", 1: b"ab", 2: b"b", 3: b"ba", 4: b"", 6: b"c"}, ends=[5], n_vocab=9)
    constraint = Constraint.regex("(ab)+", vocabulary)
    start = constraint.start
    assert constraint.allowed(start).tolist() == [0, 1]
    assert constraint.allowed(constraint.advance(start, 0)).tolist() == [2, 3]
    done = constraint.advance(start, 1)
    assert constraint.allowed(done).tolist() == [0, 1, 5]
    assert constraint.accepts(done) and not constraint.finished(done)
    masked_V = constraint.masked(np.zeros(11), done)
    assert np.flatnonzero(np.isfinite(masked_V)).tolist() == [0, 1, 5]
    ended = constraint.advance(done, 5)
    assert constraint.finished(ended) and constraint.allowed(ended).tolist() == [5]
    for state, id in ((start, 2), (start, 5), (start, 4), (start, 7), (ended, 0)):
        with pytest.raises(InputError, match=f"the token {id} .* is not allowed"):
            constraint.advance(state, id)
    with pytest.raises(InputError, match="8 logits for a vocabulary of 9"):
        constraint.masked(np.zeros(8), start)


def test_where_no_token_can_go_on():
    constraint = Constraint.regex("xy", Vocabulary({0: b"x"}, ends=[1]))
    with pytest.raises(InputError, match="cannot spell what must follow"):
        constraint.masked(np.zeros(2), constraint.advance(constraint.start, 0))
    whole = Constraint.regex("x", Vocabulary({0: b"x"}))
    after = whole.advance(whole.start, 0)
    assert whole.finished(after)
    with pytest.raises(InputError, match="no end token"):
        whole.masked(np.zeros(1), after)


def test_masks_are_kept_within_a_bound(monkeypatch):
    monkeypatch.setattr("tessera.generate.constrain.constraint.MASKS", 3)
    constraint = Constraint.regex("[a-z]{9}", VOCABULARY)
    for state in [*range(1, 9), *range(1, 9)]:
        fresh = VOCABULARY.allowed(constraint.automaton, state)
        assert constraint.allowed(state).tolist() == fresh.tolist()
        assert len(constraint._masks) <= 3


def test_the_trie_gives_what_each_token_alone_gives():
    constraint = Constraint.regex(r'("[^"\n]{0,6}",?)*|[日本é]+\d', VOCABULARY)
    made = constraint.automaton
    for state in range(1, len(made.accepting)):
        alone = [id for id, spelled in enumerate(SPELLED) if made.run(spelled, state)]
        assert VOCABULARY.allowed(made, state).tolist() == alone


def test_the_vocabulary_of_a_tokenizer():
    tokenizer = train_tokenizer({"name": "byte", "specials": ["<|endoftext|>", "<|x|>"]}, [])
    vocabulary = Vocabulary.of(tokenizer, n_vocab=300)
    constraint = Constraint.regex("<.*", vocabulary)
    allowed = constraint.allowed(constraint.advance(constraint.start, tokenizer.encode("<")[0]))
    assert tokenizer.end_id in allowed
    assert tokenizer.specials["<|x|>"] not in allowed, "a special token is not text"
    assert np.all(allowed < tokenizer.n_vocab)
    words = train_tokenizer({"name": "word"}, ["one two"])
    if words.separator:
        with pytest.raises(InputError, match="between two tokens"):
            Vocabulary.of(words)
    with pytest.raises(InputError, match="outside of the vocabulary of 5"):
        Vocabulary({7: b"a"}, n_vocab=5)


def test_the_same_constraint_is_compiled_once():
    constraints = Constraints(VOCABULARY, most=2)
    first = constraints.of(Sampling(regex="a"))
    assert constraints.of(Sampling()) is None
    schema = constraints.of(Sampling(json_schema={"type": "null"}))
    assert schema is not None and schema.automaton.accepts(b"null")
    assert constraints.of(Sampling(regex="a", seed=3)) is first
    constraints.of(Sampling(regex="b"))
    assert constraints.of(Sampling(regex="a")) is first, "the one that was used least recently goes"
    assert constraints.of(Sampling(json_schema={"type": "null"})) is not schema
