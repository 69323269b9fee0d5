"""Speculative decoding: guess tokens cheaply, check them in one step of the model, keep those that it would have drawn.

The output has exactly the model's distribution. A guess x drawn from q is kept with probability min(1, p(x) / q(x)),
else a token is drawn from norm(max(0, p - q)) and the rest of the guesses is dropped (Leviathan et al. 2023, algorithm
1; Chen et al. 2023, algorithm 2). When all are kept the model's last row gives one more.

A guess that was not drawn at all (prompt lookup, or a greedy draft) has q(x) = 1. Then it is enough to draw from p as
ever and to see whether the guess comes out: it does with probability p(x), and if not, what came out is distributed as
p without x. So such an answer is not only of the same distribution but the same, token for token, as without guesses.

K guesses, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tessera.errors import InputError, SettingError
from tessera.generate.chooser import Choice, Chooser
from tessera.generate.sampling import Sampling, draw, filtered


@dataclass(frozen=True)
class Draft:
    """Guessed tokens, and the distributions that they were drawn from (K, V); None if they were not drawn."""

    ids: list[int]
    probs_KV: Tensor | None = None


def prompt_lookup(ids: Sequence[int], k: int, *, longest: int = 3, shortest: int = 1) -> Draft:
    """What followed the newest earlier occurrence of the last tokens: at most `k` of it.

    The longest run that has occurred wins, from `longest` down to `shortest` tokens (Saxena 2023, "Prompt lookup
    decoding"; Yang et al. 2023).

    >>> prompt_lookup([1, 2, 3, 4, 9, 2, 3], k=2).ids
    [4, 9]
    """
    if k < 0:
        raise SettingError("k", k, "a whole number, 0 or greater")
    if not 1 <= shortest <= longest:
        raise SettingError("shortest", shortest, f"from 1 to longest = {longest}")
    ids_T = np.asarray(ids, dtype=np.int64)
    for n in range(min(longest, len(ids_T) - 1), shortest - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(ids_T[:-1], n)
        (found,) = np.nonzero((windows == ids_T[-n:]).all(axis=1))
        if len(found):
            start = int(found[-1]) + n
            return Draft(ids_T[start : start + k].tolist())
    return Draft([])


def draft(
    score: Callable[[list[int]], Tensor], ids: Sequence[int], k: int, sampling: Sampling, generator: torch.Generator
) -> Draft:
    """`k` tokens of a smaller model: `score(ids)` gives its logits after `ids`, (V,).

    `generator` is the draft's own, so that the answer's stream is not moved. Of `sampling` the temperature and the
    filters are used: a draft need not be right. Greedy drafts are not drawn, see above.
    """
    plain = Sampling(
        **{name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p", "typical")}
    )
    guesses: list[int] = []
    rows: list[Tensor] = []
    for _ in range(k):
        logits_V = filtered(score([*ids, *guesses])[None], plain)[0]
        guesses.append(int(logits_V.argmax() if plain.temperature == 0.0 else draw(logits_V[None], [generator])[0]))
        rows.append(logits_V.double().softmax(dim=-1))
    return Draft(guesses, None if plain.temperature == 0.0 or not rows else torch.stack(rows))


def residual(target_V: Tensor, draft_V: Tensor) -> Tensor:
    """norm(max(0, p - q)): what to draw from when a guess is refused."""
    left_V = (target_V - draft_V).clamp(min=0.0)
    total = left_V.sum()
    # p <= q everywhere means p = q, but for rounding: such a guess is as good as never refused.
    return left_V / total if total > 0 else target_V


def accept(target_V: Tensor, draft_V: Tensor, id: int, generator: torch.Generator) -> int:
    """`id`, which was drawn from `draft_V`, or another: together they are distributed as `target_V`."""
    if not draft_V[id] > 0:
        raise InputError(f"the draft has the token {id}, which its own distribution says is impossible")
    uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
    if uniform * float(draft_V[id]) < float(target_V[id]):
        return id
    return _draw(residual(target_V, draft_V), generator)


def verify(target_SV: Tensor, drafted: Draft, generator: torch.Generator) -> list[int]:
    """The tokens that the guesses lead to: those kept, and one more.

    `target_SV` are the model's distributions (probabilities) at each guess and after the last, S = K + 1.
    """
    if len(target_SV) != len(drafted.ids) + 1:
        raise InputError(f"{len(drafted.ids)} guesses need {len(drafted.ids) + 1} distributions, not {len(target_SV)}")
    target_SV = target_SV.double().cpu()
    kept: list[int] = []
    for place, guess in enumerate(drafted.ids):
        if drafted.probs_KV is None:
            kept.append(_draw(target_SV[place], generator))
        else:
            kept.append(accept(target_SV[place], drafted.probs_KV[place].double().cpu(), guess, generator))
        if kept[-1] != guess:
            return kept
    return [*kept, _draw(target_SV[-1], generator)]


def choose_drafted(chooser: Chooser, logits_SV: Tensor, drafted: Draft, generator: torch.Generator) -> list[Choice]:
    """`verify` for an answer with all its settings: penalties, filters and constraint see the tokens kept so far.

    `logits_SV` are the model's after each guess's predecessor and after the last. It ends at an end token, and where
    the constraint is fulfilled. `generator` decides on guesses that were drawn; the others use the chooser's own.
    """
    if chooser.sampling.guidance is not None:
        raise SettingError("guidance", chooser.sampling.guidance.scale, "none with speculative decoding")
    choices: list[Choice] = []
    for place in range(len(drafted.ids) + 1):
        guess = drafted.ids[place] if place < len(drafted.ids) else None
        if guess is None or drafted.probs_KV is None or chooser.sampling.temperature == 0.0:
            choices.append(chooser.choose(logits_SV[place]))
        else:
            target_V = chooser.distribution(logits_SV[place]).double().softmax(dim=-1).cpu()
            id = accept(target_V, drafted.probs_KV[place].double().cpu(), guess, generator)
            choices.append(chooser.take(id, logits_SV[place]))
        if choices[-1].id != guess or choices[-1].id in chooser.ends or chooser.finished:
            break
    return choices


def _draw(probs_V: Tensor, generator: torch.Generator) -> int:
    return int(draw(probs_V.log()[None], [generator])[0])
