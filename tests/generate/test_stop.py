"""Stop texts: found wherever the pieces are cut, never let through, and nothing else is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.generate.requests import Answer
from tessera.generate.sampling import Sampling, row_generators
from tessera.generate.stop import StopFilter, find_stop
from tessera.tokenizers import train_tokenizer

TEXT = "Grüße, 世界! 👩‍👩‍👧 नमस्ते\r\n\n\n하나 END"
STOPS = ["\n\n하", "END", "👩‍👧‍👧", "🌍"]


def expected(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: the first moment at which the text ends in a stop text."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    pieces=st.lists(st.text("ab€", max_size=4), max_size=8),
    stops=st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3),
)
def test_does_not_depend_on_where_the_pieces_are_cut(pieces, stops):
    stream = StopFilter(stops)
    shown = ""
    text, stopped = expected("".join(pieces), stops)
    for piece in pieces:
        shown += stream.push(piece)
        assert text.startswith(shown)
    shown += stream.finish()
    assert (shown, stream.stopped) == (text, stopped)


@pytest.mark.parametrize(
    ("text", "stops", "at"),
    [
        ("one END two", ["END"], 4),
        ("one two", ["END"], None),
        ("xabcd", ["abcd", "bc"], 2),
        ("xab", ["b", "ab"], 1),
        ("abc", [], None),
    ],
)
def test_find_stop_by_hand(text, stops, at):
    assert find_stop(text, stops) == at


def test_holds_back_no_more_than_it_must():
    stream = StopFilter(["\n\nQ"])
    assert [stream.push(piece) for piece in ["A\n", "B\n\n", "C", "\n\n", "Q?"]] == ["A", "\nB", "\n\nC", "", ""]
    assert stream.stopped
    assert stream.push("more") == ""
    assert stream.finish() == ""


def test_every_pair_of_borders_between_bytes():
    """Tokens that end anywhere: no half character, no part of a stop text, nothing else is lost."""
    data = TEXT.encode()
    shown, stop = expected(TEXT, STOPS)
    assert stop and shown == "Grüße, 世界! 👩‍👩‍👧 नमस्ते\r\n"
    tokenizer = train_tokenizer({"name": "byte"}, [])
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            decoder, stream, made = tokenizer.stream(), StopFilter(STOPS), ""
            for part in (data[:first], data[first:second], data[second:]):
                # A token of several bytes gives what its bytes give.
                made += stream.push("".join(map(decoder.push, part)))
                assert "\ufffd" not in made
                assert shown.startswith(made)
            made += stream.push(decoder.finish()) + stream.finish()
            assert (made, stream.found) == (shown, "\n\n하")


@pytest.mark.parametrize("n_prompt", range(1, len(TEXT.encode())))
def test_an_answer_shows_whole_characters_and_no_beginning_of_a_stop_text(n_prompt: int) -> None:
    """From a prompt that ends at any byte of the text; each byte of the rest is a token."""
    data = TEXT.encode()
    tokenizer = train_tokenizer({"name": "byte"}, [])
    (generator,) = row_generators(0, 1)
    answer = Answer(tokenizer, list(data[:n_prompt]), Sampling(temperature=0, stop=STOPS), generator)
    begun = data[:n_prompt].decode(errors="ignore").encode()  # the character that it ends in belongs to the answer
    shown, stops = expected(data[len(begun) :].decode(), STOPS)
    pieces = []
    for byte in data[n_prompt:]:
        pieces.append(answer.choose(np.eye(tokenizer.n_vocab)[byte])[1])
        assert "\ufffd" not in pieces[-1]
        assert shown.startswith("".join(pieces))
        if answer.finish is not None:
            break
    if not stops:
        pieces.append(answer.close("length"))
    assert "".join(pieces) == answer.text == answer.completion.text == shown
    assert answer.finish == ("stop" if stops else "length")


@pytest.mark.parametrize(
    ("text", "stops", "found"),
    [("xabc", ["abc", "ab"], "ab"), ("xabc", ["bc", "abc"], "abc"), ("x", ["y"], None), ("xyz", ["z", "y"], "y")],
)
def test_says_which_stop_text_it_was(text, stops, found):
    stream = StopFilter(stops)
    for character in text:
        stream.push(character)
    assert stream.found == found
