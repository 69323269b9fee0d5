"""Generation: read the prompt, then one token after another, each from the logits that the one before it gave.

Keys and values of what has been read are kept in a cache, so that a token costs the work of one token. A model sees at
most `context` tokens: past them the newest half is read again, from position 0, and the text goes on.
"""

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from tessera.errors import InputError, SettingError
from tessera.scratch.decoder import Decoder
from tessera.scratch.sampling import choose


def generate(
    decoder: Decoder,
    ids: Sequence[int],
    *,
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: np.random.Generator | None = None,
    stop: Collection[int] = (),
    never: Sequence[int] = (),
) -> Iterator[int]:
    """The ids that follow `ids`, one at a time; ends with one of `stop`, which is not given, or after `max_tokens`.

    `temperature` 0 always takes the most probable token. Without `rng` the text is another one each time. The ids in
    `never` are not drawn. Of a prompt longer than the context the end is read.
    """
    if not len(ids):
        raise InputError("the prompt is empty: a text goes on from at least one token")
    if max_tokens < 0:
        raise SettingError("max_tokens", max_tokens, "a whole number, 0 or greater")
    rng = np.random.default_rng() if rng is None else rng
    seen = [int(id) for id in ids][-decoder.context :]
    new, cache = seen, decoder.new_cache(1)
    for _ in range(max_tokens):
        if cache.length + len(new) > decoder.context:
            new = seen = seen[-max(1, decoder.context // 2) :]
            cache = decoder.new_cache(1)
        logits_V = decoder.logits(np.array([new], dtype=np.int64), cache)[0, -1]
        logits_V[list(never)] = -np.inf
        id = choose(logits_V, rng, heat=temperature, k=top_k, p=top_p)
        if id in stop:
            return
        yield id
        new = [id]
        seen.append(id)
