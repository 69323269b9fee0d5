"""A whole step in one call: the rows of any sequences, prompts and answers mixed, from tokens to logits.

A step is a list of actions, each cut into parts that threads take (`sharing.py`): rows in eights, panels of matrices,
tiles of attention. Every row is computed as if it were alone.
"""

from tessera.generate.cpu.attend import attend, attend_chunk, join_chunks
from tessera.generate.cpu.kernels import GROUP
from tessera.generate.cpu.plan import (
    DOWN,
    GATE,
    INPUT,
    OF_A_LAYER,
    OUTPUT,
    QUERY,
    VALUE,
    Matrix,
    Norm,
    Row,
    Word,
    number,
    word,
)
from tessera.generate.cpu.pool import keep_row
from tessera.generate.cpu.rows import add_row, gate_row, norm_row, round_blocks
from tessera.generate.cpu.sharing import (
    ACTION,
    BUSY,
    DONE,
    LAYER,
    LINE,
    PARTS,
    PIECE,
    STOP,
    TICKETS,
    add_shared,
    call_address,
    first_part,
    give_way,
    load_shared,
    pause,
    publish,
    store_shared,
    take,
)
from tessera.generate.cpu.vectors import any_word, load, load_word, multiply, splat, store, store_word
from tessera.native.jit import compiled, inner
from tessera.native.memory import prefetch

EMBED, NORM, MIX, LAST, KEEP, ROUND, PROJECT, MIX_IN, WIDEN, NARROW, HEAD, ATTEND, READ = range(13)
ROWS_END, PANELS_END = PROJECT, ATTEND
MATRIX_BYTES, NORM_BYTES = 8 * len(Matrix), 8 * len(Norm)
PARTS_A_THREAD = 16
"""Into how many parts for each thread the panels are cut: fewer are faster to take, more are easier to share."""
ASK, ASK_AT_ONCE = 2**15, 2**10
"""Bytes of the next weights that a thread without work asks for, and how many before it looks for work again."""
PATIENCE = 2**14
"""How often a helper looks for work before it goes to sleep: a millisecond or so."""
MANNERS = 2**10
"""How often someone who waits looks before he lets another thread have the processor."""

call_11, call_6, call_5 = call_address(11), call_address(6), call_address(5)


@inner
def matrix_at(plan, layer, which):  # type: ignore[no-untyped-def]
    return word(plan, Word.MATRICES) + MATRIX_BYTES * (OF_A_LAYER * layer + which)


@inner
def field(matrix, name):  # type: ignore[no-untyped-def]
    return load_word(matrix + 8 * name)


@inner
def product(matrix, x, s_x, x8, s_x8, out, s_out, first, last, n_rows):  # type: ignore[no-untyped-def]
    """Some panels of a matrix by all rows, with its bias."""
    rounded = field(matrix, Matrix.TAKES_BYTES) != 0
    call_11(
        field(matrix, Matrix.MULTIPLY),
        field(matrix, Matrix.WEIGHTS),
        field(matrix, Matrix.S_SCALES),
        field(matrix, Matrix.S_PANEL),
        field(matrix, Matrix.N_BLOCKS),
        x8 if rounded else x,
        s_x8 if rounded else s_x,
        out,
        s_out,
        first,
        last,
        n_rows,
    )
    bias = field(matrix, Matrix.BIAS)
    if bias != 0:
        for row in range(n_rows):
            add_row(out + row * s_out, bias, first, last)


@inner
def embed(plan, index):  # type: ignore[no-untyped-def]
    """The row of a token in the embedding."""
    token = load_word(word(plan, Word.ROWS) + 24 * index + 8 * Row.TOKEN)
    matrix = matrix_at(plan, word(plan, Word.N_LAYERS), 0)
    x = word(plan, Word.X) + index * word(plan, Word.S_X)
    panel = field(matrix, Matrix.WEIGHTS) + token // 16 * field(matrix, Matrix.S_PANEL)
    n_blocks = field(matrix, Matrix.N_BLOCKS)
    call_5(field(matrix, Matrix.UNPACK), panel, token % 16, n_blocks, field(matrix, Matrix.S_SCALES), x)
    scale = splat(number(plan, Word.EMBEDDING_SCALE))
    for place in range(0, 128 * n_blocks, 64):
        store(x + place, multiply(load(x + place), scale))


@inner
def norm(plan, index, source, weight):  # type: ignore[no-untyped-def]
    """A row of the stream, `source`, under a norm, as row `index` of what products take, also in 8 bits."""
    s_x = word(plan, Word.S_X)
    x, normed = word(plan, Word.X) + source * s_x, word(plan, Word.NORMED) + index * s_x
    norm_row(x, weight, normed, word(plan, Word.D_MODEL), number(plan, Word.EPS))
    group = word(plan, Word.ROUNDED) + index // GROUP * word(plan, Word.S_ROUNDED)
    round_blocks(normed, group, index % GROUP, 0, s_x // 128)


@inner
def project(plan, layer, first, last):  # type: ignore[no-untyped-def]
    """Queries, keys and values: three matrices as one."""
    begin, out, s_x = 0, word(plan, Word.QKV), word(plan, Word.S_X)
    for which in range(QUERY, VALUE + 1):
        matrix = matrix_at(plan, layer, which)
        n_panels = field(matrix, Matrix.N_PANELS)
        low, high = max(first - begin, 0), min(last - begin, n_panels)
        if low < high:
            rounded, s_rounded = word(plan, Word.ROUNDED), word(plan, Word.S_ROUNDED)
            x, s_qkv, n_rows = word(plan, Word.NORMED), word(plan, Word.S_QKV), word(plan, Word.N_ROWS)
            product(matrix, x, s_x, rounded, s_rounded, out, s_qkv, low, high, n_rows)
        begin, out = begin + n_panels, out + 64 * n_panels


@inner
def add_product(plan, layer, which, x, s_x, x8, s_x8, first, last):  # type: ignore[no-untyped-def]
    """Some panels of a product into the stream."""
    matrix, added, s_out = matrix_at(plan, layer, which), word(plan, Word.ADDED), word(plan, Word.S_X)
    n_rows = word(plan, Word.N_ROWS)
    product(matrix, x, s_x, x8, s_x8, added, s_out, first, last, n_rows)
    for row in range(n_rows):
        add_row(word(plan, Word.X) + row * s_out, added + row * s_out, first, last)


@inner
def widen(plan, layer, first, last):  # type: ignore[no-untyped-def]
    """Both maps of the feed-forward, gated and rounded; from an even panel to an even one."""
    n_rows, s_out = word(plan, Word.N_ROWS), word(plan, Word.S_INNER)
    x, s_x = word(plan, Word.NORMED), word(plan, Word.S_X)
    x8, s_x8 = word(plan, Word.ROUNDED), word(plan, Word.S_ROUNDED)
    gate, inside = word(plan, Word.GATE), word(plan, Word.INPUT)
    product(matrix_at(plan, layer, GATE), x, s_x, x8, s_x8, gate, s_out, first, last, n_rows)
    product(matrix_at(plan, layer, INPUT), x, s_x, x8, s_x8, inside, s_out, first, last, n_rows)
    for row in range(n_rows):
        gate_row(gate + row * s_out, inside + row * s_out, first, last)
        group = word(plan, Word.INNER_ROUNDED) + row // GROUP * word(plan, Word.S_INNER_ROUNDED)
        round_blocks(inside + row * s_out, group, row % GROUP, first // 2, last // 2)


@inner
def act_on_rows(plan, action, layer, part, scratch):  # type: ignore[no-untyped-def]
    """What is done to eight rows."""
    n_rows = word(plan, Word.N_WANTED) if action == LAST else word(plan, Word.N_ROWS)
    norms = word(plan, Word.NORMS) + NORM_BYTES * layer
    for index in range(GROUP * part, min(GROUP * part + GROUP, n_rows)):
        if action == EMBED:
            embed(plan, index)
        elif action == NORM:
            norm(plan, index, index, field(norms, Norm.ATTENTION))
        elif action == MIX:
            norm(plan, index, index, field(norms, Norm.FEED_FORWARD))
        elif action == LAST:
            norm(plan, index, load_word(word(plan, Word.WANTED) + 8 * index), field(norms, Norm.ATTENTION))
        elif action == KEEP:
            keep_row(plan, layer, index, norms, scratch)
        else:
            if word(plan, Word.N_LOOKS) > 0:
                join_chunks(plan, index)
            s_mixed = word(plan, Word.S_MIXED)
            group = word(plan, Word.ROUNDED) + index // GROUP * word(plan, Word.S_ROUNDED)
            x = word(plan, Word.MIXED) + index * s_mixed
            round_blocks(x, group, index % GROUP, 0, s_mixed // 128)


@inner
def act_on_panels(plan, action, layer, part, n_parts):  # type: ignore[no-untyped-def]
    """A part of the panels of a product, in twos, as a block of what they give is rounded as a whole."""
    twos = n_panels_of(plan, action, layer) // 2
    first, last = 2 * (twos * part // n_parts), 2 * (twos * (part + 1) // n_parts)
    rounded, s_rounded = word(plan, Word.ROUNDED), word(plan, Word.S_ROUNDED)
    if action == PROJECT:
        project(plan, layer, first, last)
    elif action == MIX_IN:
        x, s_x = word(plan, Word.MIXED), word(plan, Word.S_MIXED)
        add_product(plan, layer, OUTPUT, x, s_x, rounded, s_rounded, first, last)
    elif action == WIDEN:
        widen(plan, layer, first, last)
    elif action == NARROW:
        x, s_x = word(plan, Word.INPUT), word(plan, Word.S_INNER)
        x8, s_x8 = word(plan, Word.INNER_ROUNDED), word(plan, Word.S_INNER_ROUNDED)
        add_product(plan, layer, DOWN, x, s_x, x8, s_x8, first, last)
    else:
        head, out, s_out = matrix_at(plan, layer, 1), word(plan, Word.LOGITS), word(plan, Word.S_LOGITS)
        x, s_x, n_wanted = word(plan, Word.NORMED), word(plan, Word.S_X), word(plan, Word.N_WANTED)
        product(head, x, s_x, rounded, s_rounded, out, s_out, first, last, n_wanted)


@inner
def matrix_of(action):  # type: ignore[no-untyped-def]
    """The first of a product's matrices."""
    if action == PROJECT:
        return QUERY
    return OUTPUT if action == MIX_IN else GATE if action == WIDEN else DOWN if action == NARROW else 1


@inner
def n_panels_of(plan, action, layer):  # type: ignore[no-untyped-def]
    """Of the matrices of a product together; those of the feed-forward go side by side."""
    if action == PROJECT:
        total = 0
        for which in range(QUERY, VALUE + 1):
            total += field(matrix_at(plan, layer, which), Matrix.N_PANELS)
        return total
    return field(matrix_at(plan, layer, matrix_of(action)), Matrix.N_PANELS)


@inner
def read(plan, part, n_parts):  # type: ignore[no-untyped-def]
    """Read a part of a stretch of memory and do next to nothing with it: what the limit of speed is measured by."""
    n_bytes = word(plan, Word.N_STREAM) // n_parts // 256 * 256
    place = word(plan, Word.STREAM) + part * n_bytes
    total = 0
    for at in range(place, place + n_bytes, 256):
        total += any_word(at)
    store_word(word(plan, Word.CONTROL) + TICKETS + LINE * word(plan, Word.N_THREADS) + 8 * part, total)


@compiled
def act(plan, action, layer, part, n_parts, thread):  # type: ignore[no-untyped-def]
    """One part of one action."""
    scratch = word(plan, Word.SCRATCH) + thread * word(plan, Word.S_SCRATCH)
    if action < ROWS_END:
        act_on_rows(plan, action, layer, part, scratch)
    elif action < PANELS_END:
        act_on_panels(plan, action, layer, part, n_parts)
    elif action == ATTEND:
        n_kv_heads, n_looks = word(plan, Word.N_KV_HEADS), word(plan, Word.N_LOOKS)
        if n_looks == 0:
            attend(plan, layer, part // n_kv_heads, part % n_kv_heads, scratch)
        else:
            place, chunk = part // n_looks, part % n_looks
            attend_chunk(plan, layer, place // n_kv_heads, place % n_kv_heads, chunk, scratch)
    else:
        read(plan, part, n_parts)
    return 0


@inner
def act_by_address(plan, action, layer, part, n_parts, thread):  # type: ignore[no-untyped-def]
    """`act`, of which machine code is made once and not for each place that it is called from."""
    call_6(word(plan, Word.ACT), plan, action, layer, part, n_parts, thread)


@inner
def place_ahead(plan, action, layer, thread):  # type: ignore[no-untyped-def]
    """Where the weights begin that a thread reads once the action is done: its share of the next product."""
    n_layers = word(plan, Word.N_LAYERS)
    if action in (NARROW, NORM):
        action, layer = PROJECT if layer + 1 < n_layers else HEAD, layer + 1
    elif action in (MIX_IN, MIX):
        action = WIDEN
    elif action == WIDEN:
        action = NARROW
    elif action in (PROJECT, KEEP, ATTEND, ROUND):
        action = MIX_IN
    else:
        return 0
    twos = n_panels_of(plan, action, layer) // 2
    n_threads = word(plan, Word.N_THREADS)
    n_parts = min(twos, PARTS_A_THREAD * n_threads)
    panel = 2 * (twos * first_part(thread, n_threads, n_parts) // n_parts)
    matrix = matrix_at(plan, layer, matrix_of(action))
    while action == PROJECT and panel >= field(matrix, Matrix.N_PANELS):
        panel -= field(matrix, Matrix.N_PANELS)
        matrix += MATRIX_BYTES
    return field(matrix, Matrix.WEIGHTS) + panel * field(matrix, Matrix.S_PANEL)


@inner
def work(plan, thread):  # type: ignore[no-untyped-def]
    """Take parts as long as there are any; where one was taken, the place of the weights to ask for next, else 0."""
    control, n_threads, done = word(plan, Word.CONTROL), word(plan, Word.N_THREADS), 0
    part = take(control, thread, n_threads)
    action = layer = 0
    while part >= 0:
        action, layer = load_word(control + ACTION), load_word(control + LAYER)
        act_by_address(plan, action, layer, part, load_word(control + PARTS), thread)
        done += 1
        part = take(control, thread, n_threads)
    if done == 0:
        return 0
    add_shared(control + DONE, done)
    return place_ahead(plan, action, layer, thread)


@inner
def idle(place, asked):  # type: ignore[no-untyped-def]
    """A moment without work: ask for some more of what will be read next. Returns how much has been asked for."""
    if place == 0 or asked >= ASK:
        pause()
        return asked
    for line in range(0, ASK_AT_ONCE, 64):
        prefetch(place + asked + line)
    return asked + ASK_AT_ONCE


@inner
def share(plan, action, layer, n_parts):  # type: ignore[no-untyped-def]
    """All parts of an action, with whoever helps; returns when all are done."""
    n_threads = word(plan, Word.N_THREADS)
    if n_parts == 1 or n_threads == 1:
        for part in range(n_parts):
            act_by_address(plan, action, layer, part, n_parts, 0)
        return
    control = word(plan, Word.CONTROL)
    publish(control, n_threads, action, layer, n_parts)
    place, asked, looked = work(plan, 0), 0, 0
    while load_shared(control + DONE) < n_parts:
        asked = idle(place, asked)
        looked += 1
        if looked % MANNERS == 0:
            give_way()


@inner
def share_panels(plan, action, layer):  # type: ignore[no-untyped-def]
    twos = n_panels_of(plan, action, layer) // 2
    share(plan, action, layer, min(twos, PARTS_A_THREAD * word(plan, Word.N_THREADS)))


@inner
def begin(control):  # type: ignore[no-untyped-def]
    store_shared(control + BUSY, 1)


@inner
def step(plan):  # type: ignore[no-untyped-def]
    """The logits of the wanted rows, and the keys and values of all."""
    begin(word(plan, Word.CONTROL))
    n_rows, n_layers = word(plan, Word.N_ROWS), word(plan, Word.N_LAYERS)
    groups, n_looks = (n_rows + GROUP - 1) // GROUP, max(1, word(plan, Word.N_LOOKS))
    share(plan, EMBED, 0, groups)
    for layer in range(n_layers):
        share(plan, NORM, layer, groups)
        share_panels(plan, PROJECT, layer)
        share(plan, KEEP, layer, groups)
        share(plan, ATTEND, layer, word(plan, Word.N_TILES) * word(plan, Word.N_KV_HEADS) * n_looks)
        share(plan, ROUND, layer, groups)
        share_panels(plan, MIX_IN, layer)
        share(plan, MIX, layer, groups)
        share_panels(plan, WIDEN, layer)
        share_panels(plan, NARROW, layer)
    if word(plan, Word.N_WANTED) > 0:
        share(plan, LAST, n_layers, (word(plan, Word.N_WANTED) + GROUP - 1) // GROUP)
        share_panels(plan, HEAD, n_layers)
    store_shared(word(plan, Word.CONTROL) + BUSY, 0)
    return 0


@compiled
def stream(plan, n_parts):  # type: ignore[no-untyped-def]
    """Read the stretch of memory once, with all threads."""
    begin(word(plan, Word.CONTROL))
    share(plan, READ, 0, n_parts)
    store_shared(word(plan, Word.CONTROL) + BUSY, 0)
    return 0


@compiled
def help_along(plan, thread):  # type: ignore[no-untyped-def]
    """Take parts until there has been nothing to do for a while, or until told to stop."""
    control, looked, seen, place, asked = word(plan, Word.CONTROL), 0, -1, 0, 0
    while looked < PATIENCE and load_shared(control + STOP) == 0:
        piece = load_shared(control + PIECE)
        if piece != seen:
            seen, asked, looked, place = piece, 0, 0, work(plan, thread)
            continue
        asked = idle(place, asked)
        looked += 1
        if load_shared(control + BUSY) != 0:
            if looked % MANNERS == 0:
                give_way()
            looked %= MANNERS
    return 0
