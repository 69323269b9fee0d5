"""The trainer in plain Python: merges and tokens are those of the compiled loop, and of the textbook."""

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.tokenizers import plain_train, regex_bpe, train
from tessera.tokenizers.bpe import Ties
from tessera.tokenizers.regex_bpe import RegexBpe

TEXTS = st.lists(st.text(st.sampled_from("ab é\n1"), max_size=40), max_size=4)


@pytest.mark.parametrize("ties", get_args(Ties))
@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, n_merges=st.integers(0, 30))
def test_merges_and_tokens_are_those_of_the_compiled_trainer(ties: Ties, texts: list[str], n_merges: int) -> None:
    expected = train.learn_tokens(texts, 256 + n_merges, ties=ties)
    assert plain_train.learn_tokens(texts, 256 + n_merges, ties=ties) == expected


def test_a_tokenizer_of_text_with_special_tokens_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(__file__).read_text(encoding="utf-8") + "<|endoftext|>" + "def test(): return 1\n" * 3
    fast = RegexBpe.train([text, text[:500]], vocab_size=400)
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(regex_bpe, "compiles", lambda: False)
    plain = RegexBpe.train([text, text[:500]], vocab_size=400, progress=lambda done, of: seen.append((done, of)))
    assert plain.to_json() == fast.to_json()
    assert seen[-1] == (143, 143)
