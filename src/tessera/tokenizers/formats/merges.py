"""Two rules that say the same: the ranks of tokens (tiktoken), and a list of merges (GPT-2's files, Hugging Face).

By ranks, any two neighbours whose joint bytes are a token may be joined, the lowest rank first. By merges, only listed
pairs are. A list is recovered from ranks by asking of each token what is left of its bytes when all the other tokens
are merged: two parts are its merge. What happens inside a stretch of text that no merge has crossed does not depend on
what stands around it, so a token is never joined from two other parts than these. More parts than two: no merge makes
it, and it is only ever found as a whole piece.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import add, itemgetter

import numpy as np

from tessera.errors import FormatError
from tessera.tokenizers.bpe import Pair
from tessera.tokenizers.encode import merge_lowest
from tessera.tokenizers.formats.byte_level import to_characters

Rule = tuple[Sequence[Pair] | None, bool]  # RegexBpe's `merges` and `whole_pieces`
_BASE = np.uint64(0x9E3779B97F4A7C15)


def recover_merges(ranks: Mapping[bytes, int], likely: Iterable[Pair] = ()) -> tuple[list[Pair], list[int]]:
    """The pair that each token is joined from, in the order of the tokens, and the ids of those that no merge makes.

    Pairs that are `likely` are tried first, which is several times faster where they are right.

    >>> recover_merges({b"a": 0, b"b": 1, b"ab": 2, b"aba": 3, b"bbbb": 4})
    ([(0, 1), (2, 0)], [4])
    """
    merges: list[Pair] = []
    alone: list[int] = []
    others = dict(ranks)
    there = {token[0] for token in ranks if len(token) == 1}
    trial = _Trial(ranks, likely)
    for token, rank in sorted(ranks.items(), key=itemgetter(1)):
        if len(token) < 2:
            continue
        if not there.issuperset(token):  # the vocabulary lacks one of its bytes, so nothing builds it up
            alone.append(rank)
            continue
        pair = trial.pair_of(rank)
        if pair is not None:
            merges.append(pair)
            continue
        del others[token]
        parts = merge_lowest(token, others)
        others[token] = rank
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
            trial.keep(rank, (parts[0], parts[1]))
        else:
            alone.append(rank)
    return merges, alone


class _Trial:
    """Whether a token is joined from a certain pair, known without merging all of its bytes.

    It is where its two parts come about as they do alone: no merge across the place between them is done before they
    are. So both parts are taken apart again, that of the higher rank first, and what then meets at that place must not
    be a token of a lower rank than what was taken apart. That needs ranks in the order in which tokens are built up.
    """

    def __init__(self, ranks: Mapping[bytes, int], likely: Iterable[Pair]) -> None:
        self._ranks = ranks
        self._tokens = {rank: token for token, rank in ranks.items()}
        self._parts: dict[int, Pair] = {}
        self._known = {rank for token, rank in ranks.items() if len(token) == 1}
        """The bytes, and what can be taken apart."""
        tokens, last_byte = self._tokens, max(self._known, default=-1)
        self._likely = {
            rank: pair
            for pair in likely
            if pair[0] < (rank := ranks[tokens[pair[0]] + tokens[pair[1]]]) > pair[1] and rank > last_byte
        }

    def keep(self, rank: int, pair: Pair) -> None:
        """What a token is joined from: those that hold it may be tried, if it comes after its parts and the bytes, and
        its parts can be taken apart as well."""
        if rank in self._likely and max(pair) < rank and self._known.issuperset(pair):
            self._parts[rank] = pair
            self._known.add(rank)

    def pair_of(self, rank: int) -> Pair | None:
        """The pair that the token is joined from; None where that is not known."""
        pair, parts, tokens, known = self._likely.get(rank), self._parts, self._tokens, self._known
        if pair is None or pair[0] not in known or pair[1] not in known:
            return None
        left, right = pair
        while (apart := parts.get(left if left > right else right)) is not None:
            # until both are bytes, whose ranks are below all others
            if left > right:
                limit, left = left, apart[1]
            else:  # of two equal merges the one further left is done first, hence the +1
                limit, right = right + 1, apart[0]
            if self._ranks.get(tokens[left] + tokens[right], limit) < limit:
                return None
        parts[rank] = pair
        known.add(rank)
        return pair


def simplest_rule(ranks: Mapping[bytes, int], merges: Sequence[Pair] | None, whole_pieces: bool) -> Rule:
    """The same rule without merges, where the ranks alone say the same; else as it was."""
    if merges is not None and are_recovered(ranks, merges):
        return None, True
    found, alone = recover_merges(ranks, merges or ())
    if merges is not None:
        # By ranks, a token would also be built up of a byte that the vocabulary lacks.
        there = {token[0] for token in ranks if len(token) == 1}
        if found != list(merges) or not all(map(there.issuperset, ranks)):
            return merges, whole_pieces
    return None, whole_pieces or not alone


def are_recovered(ranks: Mapping[bytes, int], merges: Sequence[Pair]) -> bool:
    """Whether `recover_merges` certainly gives these merges, and no token beside them; False where that is not known.

    It is what `_Trial` does, for all tokens at once. Whether two tokens are one together is looked up by a hash of
    their bytes (a polynomial modulo 2^64, so that of the joint bytes follows from those of the parts). A hash that two
    texts share by chance makes this uncertain, and nothing else.

    >>> are_recovered({b"a": 0, b"b": 1, b"ab": 2, b"aba": 3}, [(0, 1), (2, 0)])
    True
    """
    tokens = sorted(ranks, key=ranks.__getitem__)
    n_bytes = np.fromiter(map(len, tokens), np.int64, len(tokens))
    n_alone = int(np.count_nonzero(n_bytes == 1))
    if not merges or len(merges) != len(tokens) - n_alone or (n_bytes[:n_alone] != 1).any():
        return False
    ids = np.fromiter(map(ranks.__getitem__, tokens), np.int64, len(tokens))
    listed = np.fromiter(chain.from_iterable(merges), np.int64, 2 * len(merges)).reshape(-1, 2)
    pairs = np.minimum(np.searchsorted(ids, listed), len(ids) - 1)
    # The merges are those of the tokens in their order, each of two that come before it, and of their bytes.
    if (ids[pairs] != listed).any() or (pairs >= np.arange(n_alone, len(tokens))[:, None]).any():
        return False
    parts = (map(tokens.__getitem__, side) for side in pairs.T.tolist())
    if list(map(add, *parts)) != tokens[n_alone:]:
        return False
    hashes, powers = _hashes(pairs, n_bytes, n_alone, tokens)
    order = np.argsort(hashes, kind="stable")
    return not _another_comes_first(pairs, n_alone, hashes, powers, hashes[order], order)


def _hashes(
    pairs: np.ndarray, n_bytes: np.ndarray, n_alone: int, tokens: Sequence[bytes]
) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each token's bytes, and what one that stands before it is multiplied by."""
    hashes = np.zeros(len(tokens), np.uint64)
    hashes[:n_alone] = [token[0] + 1 for token in tokens[:n_alone]]
    powers = np.full(int(n_bytes.max()) + 1, _BASE)
    powers[0] = 1
    powers = np.cumprod(powers)[n_bytes]
    for longest in np.flatnonzero(np.bincount(n_bytes))[1:]:  # parts are shorter than what they make
        now = np.flatnonzero(n_bytes[n_alone:] == longest)
        left, right = pairs[now].T
        hashes[n_alone + now] = hashes[left] * powers[right] + hashes[right]
    return hashes, powers


def _another_comes_first(
    pairs: np.ndarray,
    n_alone: int,
    hashes: np.ndarray,
    powers: np.ndarray,
    sorted_hashes: np.ndarray,
    order: np.ndarray,
) -> bool:
    """Whether, while the bytes of some token are joined, two that meet between its parts may be a token before them."""
    left, right = pairs.T.copy()
    while len(left):
        from_left = left > right
        taken = np.where(from_left, left, right)
        going = taken >= n_alone  # until both are bytes
        left, right, from_left, taken = left[going], right[going], from_left[going], taken[going]
        parts = pairs[taken - n_alone]
        left = np.where(from_left, parts[:, 1], left)
        right = np.where(from_left, right, parts[:, 0])
        # Of two equal merges the one further left is done first.
        limit = np.where(from_left, taken, taken + 1)
        joint = hashes[left] * powers[right] + hashes[right]
        place = np.minimum(np.searchsorted(sorted_hashes, joint), len(order) - 1)
        if ((sorted_hashes[place] == joint) & (order[place] < limit)).any():
            return True
    return False


def listed_merges(ranks: Mapping[bytes, int], merges: Sequence[Pair] | None) -> list[Pair]:
    """The merges to write: the given ones, each pair once, or those that the ranks stand for."""
    return recover_merges(ranks)[0] if merges is None else list(dict.fromkeys(merges))


def read_merges(written: Iterable[tuple[str, str]], vocabulary: Mapping[str, int], source: str) -> list[Pair]:
    """Pairs of tokens as pairs of ids. Of a pair that is listed twice the later place counts, as in Hugging Face's
    library."""
    firsts, seconds = zip(*written, strict=True) if (written := list(written)) else ((), ())
    joined = map(add, firsts, seconds)
    if vocabulary.keys() >= {*firsts, *seconds, *joined}:
        ids = (map(vocabulary.__getitem__, side) for side in (firsts, seconds))
        pairs = list(zip(*ids, strict=True))
        return pairs if len(set(pairs)) == len(pairs) else list(dict.fromkeys(reversed(pairs)))[::-1]
    for place, (first, second) in enumerate(written, start=1):
        if first not in vocabulary or second not in vocabulary or first + second not in vocabulary:
            token = next(token for token in (first, second, first + second) if token not in vocabulary)
            raise FormatError(source, f"merge {place} ({first} {second}) needs {token!r}, which is no token")
    raise AssertionError("unreachable")


def write_merges(ranks: Mapping[bytes, int], merges: Sequence[Pair] | None) -> list[str]:
    """Two tokens a merge, with a space between them."""
    written = {id: to_characters(token) for token, id in ranks.items()}
    return [f"{written[first]} {written[second]}" for first, second in listed_merges(ranks, merges)]
