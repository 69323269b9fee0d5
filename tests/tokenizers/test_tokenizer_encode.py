import time

import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from tessera.tokenizers.encode import merge_lowest

BYTES = {bytes([byte]): byte for byte in range(256)}


@given(
    tokens=st.lists(st.text("abc", min_size=2, max_size=6), max_size=20, unique=True),
    piece=st.text("abc", min_size=1, max_size=40),
)
def test_any_ranks_give_tiktokens_ids(tokens: list[str], piece: str) -> None:
    ranks = BYTES | {token.encode(): 256 + place for place, token in enumerate(tokens)}
    reference = tiktoken.Encoding("any", pat_str=r"[\s\S]+", mergeable_ranks=ranks, special_tokens={})
    whole = ranks.get(piece.encode())
    ids = merge_lowest(piece.encode(), ranks) if whole is None else [whole]
    assert ids == reference.encode_ordinary(piece)


def test_a_long_piece_takes_no_quadratic_time() -> None:
    ranks = BYTES | {b"a" * 2**power: 255 + power for power in range(1, 10)}
    start = time.process_time()
    ids = merge_lowest(b"a" * 100_000, ranks)
    assert time.process_time() - start < 5  # a scan for each merge would take minutes and more
    assert len(ids) == 100_000 // 512 + 2
    assert merge_lowest(b"", ranks) == []
