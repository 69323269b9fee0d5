"""The compiled part of training: all words in one array of symbols, and for each pair the places where it stands there.

All words stand one after the other in SYMBOLS, ordered by weight, the heaviest first, with GAP around each. A token
that was merged from several symbols keeps its places: the first and the last of them carry its id, those between are
INSIDE. So both neighbours of a token are found beside it, without links. As words are ordered by weight and every list
of places ascends, the weight of a place is found by walking along the RUNS of equal weight.

Only pairs that occur at least THRESHOLD times are indexed (`pair_index`). Once made, a pair never gains: its two tokens
exist, and new places come only with new tokens. So pairs below the threshold cannot be the best while an indexed one is
left. When none is, `compact` closes the ranks (a token takes one place again, words of one token go), and `index_pairs`
counts anew for a lower threshold. The index stays small enough for the processor's cache, however large the text is.
"""

import numpy as np

from tessera.native.jit import compiled
from tessera.native.memory import load8, load32, load64, prefetch, store32, store64
from tessera.tokenizers.compiled.pair_index import (
    LOW,
    MOST_PAIRS,
    MOST_PLACES,
    MOST_TOKENS,
    N_PAIRS,
    N_PLACES,
    N_SYMBOLS,
    N_TOKENS,
    NEAR,
    PAIRS,
    PLACES,
    RUN_AT,
    RUNS,
    SYMBOLS,
    TOKENS,
    TOUCHED,
    best,
    lose,
    new_pair,
)
from tessera.tokenizers.compiled.word_table import get, put

GAP, INSIDE = 0xFFFFFFFF, 0xFFFFFFFE
BLOCK = 6  # RUN_AT notes the run of every 2**BLOCK-th place
AHEAD = 12  # how many places ahead their symbols are asked for
DONE, SPENT, PAIRS_FULL, PLACES_FULL = range(4)


@compiled
def lay_out(m: int, content: int, ends: int, counts: int, order: int, n_words: int, ranks: int) -> int:
    """Write the words in `order` of falling counts, a byte as its rank, and the runs; returns how many runs."""
    symbols, runs = get(m, SYMBOLS), get(m, RUNS)
    at, n_runs, last = 1, 0, 0
    store32(symbols, GAP)
    for index in range(n_words):
        word = get(order, index)
        start, end, count = get(ends, word - 1) if word else 0, get(ends, word), get(counts, word)
        if end - start < 2:
            continue
        if count != last:
            last = count
            put(runs, 2 * n_runs + 1, count)
            n_runs += 1
        for place in range(start, end):
            store32(symbols + 4 * at, get(ranks, load8(content + place)))
            at += 1
        store32(symbols + 4 * at, GAP)
        at += 1
        put(runs, 2 * n_runs - 2, at)
    put(m, N_SYMBOLS, at)
    return n_runs


@compiled
def compact(m: int, n_runs: int) -> None:
    """Give every token one place, drop words of one token, and note the runs."""
    symbols, runs, tokens = get(m, SYMBOLS), get(m, RUNS), get(m, TOKENS)
    at, word, run = 1, 1, 0  # where to write, where the word began there
    place, end = 1, get(m, N_SYMBOLS)
    while place < end:
        while place == get(runs, 2 * run):
            put(runs, 2 * run, at)
            run += 1
        symbol = load32(symbols + 4 * place)
        if symbol != GAP:
            store32(symbols + 4 * at, symbol)
            at += 1
            place += get(tokens, 4 * symbol + 1)
            continue
        place += 1
        if at - word > 1:
            store32(symbols + 4 * at, GAP)
            at += 1
        else:
            at = word
        word = at
    for rest in range(run, n_runs):
        put(runs, 2 * rest, at)
    for token in range(get(m, N_TOKENS)):
        put(tokens, 4 * token + 1, 1)
    put(m, N_SYMBOLS, at)
    _note_runs(m)


@compiled
def _note_runs(m: int) -> None:
    runs, run_at, run, end = get(m, RUNS), get(m, RUN_AT), 0, get(m, N_SYMBOLS)
    for block in range((end >> BLOCK) + 1):
        while get(runs, 2 * run) <= block << BLOCK and get(runs, 2 * run) < end:
            run += 1
        store32(run_at + 4 * block, run)


@compiled
def _run_of(m: int, place: int, run: int) -> int:
    """The run that `place` is in, where `run` is that of an earlier place."""
    runs = get(m, RUNS)
    if place < get(runs, 2 * run):
        return run
    run = max(run, load32(get(m, RUN_AT) + 4 * (place >> BLOCK)))
    while place >= get(runs, 2 * run):
        run += 1
    return run


@compiled
def _note(m: int, near: int, weight: int, n_touched: int) -> int:
    """Count a neighbour that was seen once more; returns how many different ones there are."""
    record = get(m, NEAR) + 16 * near
    seen = get(record, 1)
    if seen == 0:
        store32(get(m, TOUCHED) + 4 * n_touched, near)
        n_touched += 1
    put(record, 0, get(record, 0) + weight)
    put(record, 1, seen + 1)
    return n_touched


@compiled
def _forget(m: int, n_touched: int) -> None:
    touched, near = get(m, TOUCHED), get(m, NEAR)
    for index in range(n_touched):
        record = near + 16 * load32(touched + 4 * index)
        put(record, 0, 0)
        put(record, 1, 0)


@compiled
def _write_place(m: int, near: int, place: int) -> None:
    """The next place of the pair with a neighbour, whose record says where in PLACES, or -1 where it is not indexed."""
    record = get(m, NEAR) + 16 * near
    at = get(record, 1)
    if at >= 0:
        store32(get(m, PLACES) + 4 * at, place)
        put(record, 1, at + 1)


@compiled
def index_pairs(m: int, starts: int) -> int:
    """Index all pairs that reach the threshold; returns the highest count of any, or -1 where there is no room.

    The symbols are compact. A counting sort brings the places of each first token together (`starts` is room for it, an
    int64 a token), so that its second tokens can be counted in a plain array. What is sorted and what is indexed share
    PLACES: of a group never more is written than was read, once the group itself was copied behind all others.
    """
    symbols, n_symbols, n_tokens = get(m, SYMBOLS), get(m, N_SYMBOLS), get(m, N_TOKENS)
    grouped = get(m, PLACES)
    _sort_places(symbols, n_symbols, n_tokens, starts, grouped)
    highest, begin = 0, 0
    for token in range(n_tokens):
        end = get(starts, token)
        if get(m, N_PAIRS) + min(end - begin, n_tokens) > get(m, MOST_PAIRS):
            return -1
        if begin < end:
            for place in range(end - begin):
                store32(grouped + 4 * (n_symbols + place), load32(grouped + 4 * (begin + place)))
            highest = max(highest, _index_group(m, token, grouped + 4 * n_symbols, end - begin))
        begin = end
    return highest


@compiled
def _sort_places(symbols: int, n_symbols: int, n_tokens: int, starts: int, grouped: int) -> None:
    """Sort the places of all pairs by their first token; `starts` becomes where each token's places end."""
    for token in range(n_tokens + 1):
        put(starts, token, 0)
    symbol = GAP
    for place in range(1, n_symbols):
        following = load32(symbols + 4 * place)
        if symbol != GAP and following != GAP:
            put(starts, symbol + 1, get(starts, symbol + 1) + 1)
        symbol = following
    for token in range(n_tokens):
        put(starts, token + 1, get(starts, token + 1) + get(starts, token))
    symbol = GAP
    for place in range(1, n_symbols):
        following = load32(symbols + 4 * place)
        if symbol != GAP and following != GAP:
            at = get(starts, symbol)
            put(starts, symbol, at + 1)
            store32(grouped + 4 * at, place - 1)
        symbol = following


@compiled
def _index_group(m: int, first: int, group: int, n_places: int) -> int:
    """Index the pairs of one first token, which stands at the places of `group`; returns the highest count."""
    symbols, runs, near, touched = get(m, SYMBOLS) + 4, get(m, RUNS), get(m, NEAR), get(m, TOUCHED)
    n_touched, run, highest, n_before = 0, 0, 0, get(m, N_PAIRS)
    for index in range(n_places):
        place = load32(group + 4 * index)
        run = _run_of(m, place, run)
        n_touched = _note(m, load32(symbols + 4 * place), get(runs, 2 * run + 1), n_touched)
    for index in range(n_touched):
        second = load32(touched + 4 * index)
        record = near + 16 * second
        count = get(record, 0)
        highest = max(highest, count)
        put(record, 1, new_pair(m, first << 32 | second, count, get(record, 1)))
    if get(m, N_PAIRS) > n_before:
        for index in range(n_places):
            place = load32(group + 4 * index)
            _write_place(m, load32(symbols + 4 * place), place)
    _forget(m, n_touched)
    return highest


@compiled
def _join(m: int, number: int, new: int) -> int:
    """Put the token `new` at the places of a pair, from left to right; returns how many were still true."""
    symbols, record = get(m, SYMBOLS), get(m, PAIRS) + 32 * number
    first, second, length = get(record, 0) >> 32, get(record, 0) & LOW, get(record, 3)
    width = 4 * get(get(m, TOKENS), 4 * first + 1)
    last = 4 * get(get(m, TOKENS), 4 * new + 1) - 4
    places = get(m, PLACES) + 4 * get(record, 2)
    kept = places
    for index in range(length):
        place = load32(places + 4 * index)
        prefetch(symbols + 4 * load32(places + 4 * min(index + AHEAD, length - 1)))
        at = symbols + 4 * place
        if load32(at) == first and load32(at + width) == second:
            store32(at + width - 4, INSIDE)
            store32(at + width, INSIDE)
            store32(at, new)
            store32(at + last, new)
            store32(kept, place)
            kept += 4
    return (kept - places) >> 2


@compiled
def _add_token(m: int, first: int, second: int) -> int:
    new = get(m, N_TOKENS)
    put(m, N_TOKENS, new + 1)
    one, other, record = get(m, TOKENS) + 32 * first, get(m, TOKENS) + 32 * second, get(m, TOKENS) + 32 * new
    put(record, 0, first << 32 | second)
    put(record, 1, get(one, 1) + get(other, 1))
    put(record, 2, get(one, 2) + get(other, 2))
    prefix = load64(one + 24)
    if get(one, 2) < 8:
        prefix |= load64(other + 24) >> np.uint64(8 * get(one, 2))
    store64(record + 24, prefix)
    return new


@compiled
def _merge(m: int, number: int) -> None:
    """Merge a pair everywhere, and count what that changes: its neighbours lose a pair and get one with the new token.

    Where two new tokens meet ("abab"), what was between them is counted once, on the right one.
    """
    symbols, runs, right_of = get(m, SYMBOLS), get(m, RUNS), get(m, MOST_TOKENS)
    pair = get(get(m, PAIRS), 4 * number)
    new = _add_token(m, pair >> 32, pair & LOW)
    width = get(get(m, TOKENS), 4 * new + 1)
    n_joined = _join(m, number, new)
    places = get(m, PLACES) + 4 * get(get(m, PAIRS), 4 * number + 2)
    n_touched, run = 0, 0
    for index in range(n_joined):
        place = load32(places + 4 * index)
        run = _run_of(m, place, run)
        weight = get(runs, 2 * run + 1)
        left, right = load32(symbols + 4 * place - 4), load32(symbols + 4 * (place + width))
        if left != GAP:
            n_touched = _note(m, left, weight, n_touched)
        if right != GAP and right != new:
            n_touched = _note(m, right_of + right, weight, n_touched)
    n_before = get(m, N_PAIRS)
    _count_neighbours(m, pair, new, n_touched)
    if get(m, N_PAIRS) > n_before:
        _write_places(m, places, n_joined, new)
    _forget(m, n_touched)
    put(get(m, PAIRS), 4 * number + 1, 0)


@compiled
def _count_neighbours(m: int, pair: int, new: int, n_touched: int) -> None:
    touched, near, right_of = get(m, TOUCHED), get(m, NEAR), get(m, MOST_TOKENS)
    first, second = pair >> 32, pair & LOW
    for index in range(n_touched):
        token = load32(touched + 4 * index)
        record = near + 16 * token
        if token >= right_of:
            gone, made = second << 32 | token - right_of, new << 32 | token - right_of
        else:
            gone, made = (second if token == new else token) << 32 | first, token << 32 | new
        lose(m, gone, get(record, 0))
        put(record, 1, new_pair(m, made, get(record, 0), get(record, 1)))


@compiled
def _write_places(m: int, places: int, n_joined: int, new: int) -> None:
    """Write where the pairs with the new token are."""
    symbols, tokens, right_of = get(m, SYMBOLS), get(m, TOKENS), get(m, MOST_TOKENS)
    width = get(tokens, 4 * new + 1)
    for index in range(n_joined):
        place = load32(places + 4 * index)
        left, right = load32(symbols + 4 * place - 4), load32(symbols + 4 * (place + width))
        if left != GAP:
            _write_place(m, left, place - get(tokens, 4 * left + 1))
        if right != GAP and right != new:
            _write_place(m, right_of + right, place)


@compiled
def merge_until(m: int, n_tokens: int) -> int:
    """Merge the best pair again and again; returns why it stopped: DONE, SPENT, PAIRS_FULL or PLACES_FULL."""
    while get(m, N_TOKENS) < n_tokens:
        number = best(m)
        if number < 0:
            return SPENT
        most = get(get(m, PAIRS), 4 * number + 3)
        if get(m, N_PAIRS) + 2 * min(most, get(m, N_TOKENS)) + 1 > get(m, MOST_PAIRS):
            return PAIRS_FULL
        if get(m, N_PLACES) + 2 * most > get(m, MOST_PLACES):
            return PLACES_FULL
        _merge(m, number)
    return DONE
