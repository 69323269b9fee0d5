"""What changes logits before they are a distribution: guidance, biases, penalties, bans; and log-probabilities.

Pure functions on one row, (V,), in float32 or float64, and the ids that came before it. They return new logits.

It is NumPy in one thread: PyTorch would share a row of 50,000 among its threads, which costs more than it saves, and
where a model is computed by other means it need not be there.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from tessera.errors import InputError, SettingError

Ids = Sequence[int] | np.ndarray


def in_float32(logits_BV: np.ndarray) -> np.ndarray:
    """In float32 at least, in which sampling is done."""
    return logits_BV.astype(np.promote_types(logits_BV.dtype, np.float32), copy=False)


def log_softmax(logits_BV: np.ndarray) -> np.ndarray:
    """log of exp(logit) over the sum of all of a row; -inf stays -inf."""
    less_BV = logits_BV - logits_BV.max(axis=-1, keepdims=True)
    return less_BV - np.log(np.exp(less_BV).sum(axis=-1, keepdims=True))


def guided(logits_BV: np.ndarray, negative_BV: np.ndarray, scale: float) -> np.ndarray:
    """log p(x | negative) + scale * (log p(x) - log p(x | negative)) (Sanchez et al. 2023).

    Classifier-free guidance: `negative_BV` are the logits of the same answer after another prompt. Scale 1 is the
    model's own distribution, 0 the other's; above 1 leads away from it.
    """
    own_BV, negative_BV = log_softmax(logits_BV), log_softmax(negative_BV)
    with np.errstate(invalid="ignore"):
        mixed_BV = negative_BV + own_BV.dtype.type(scale) * (own_BV - negative_BV)
    # Where either says that a token is impossible the difference is no number: the model's own word counts.
    return np.where(np.isneginf(own_BV) | np.isneginf(negative_BV), own_BV, mixed_BV)


def biased(logits_V: np.ndarray, bias: Mapping[int, float]) -> np.ndarray:
    """`bias` added to the logits of its ids."""
    n_vocab = len(logits_V)
    wrong = next((id for id in bias if not 0 <= id < n_vocab), None)
    if wrong is not None:
        raise InputError(f"logit_bias names the token id {wrong}, outside of the vocabulary of {n_vocab}")
    ids = np.array(list(bias), dtype=np.int64)
    return _put(logits_V, ids, _at(logits_V, ids) + np.array([*bias.values()]))


def repetition_penalty(logits_V: np.ndarray, previous: Ids, penalty: float) -> np.ndarray:
    """Tokens that have occurred: logit / penalty if it is positive, logit * penalty if not (Keskar et al. 2019, CTRL).

    Once for each token, however often it occurred.
    """
    if not 0.0 < penalty < math.inf:
        raise SettingError("repetition_penalty", penalty, "a number greater than 0")
    ids = np.unique(_inside(previous, len(logits_V)))
    seen = _at(logits_V, ids)
    return _put(logits_V, ids, np.where(seen > 0, seen / penalty, seen * penalty))


def occurrence_penalty(logits_V: np.ndarray, answer: Ids, presence: float, frequency: float) -> np.ndarray:
    """logit - presence * (it has occurred) - frequency * (how often it has): the two penalties of OpenAI's API."""
    ids, counts = np.unique(_inside(answer, len(logits_V)), return_counts=True)
    return _put(logits_V, ids, _at(logits_V, ids) - (presence + frequency * counts))


def repeated_ngrams(previous: Ids, n: int) -> np.ndarray:
    """The ids that would now complete an n-gram that has occurred (Paulus et al. 2017, section 2.5).

    >>> repeated_ngrams([5, 7, 9, 5, 7], 3)
    array([9])
    """
    if n < 1:
        raise SettingError("no_repeat_ngram", n, "a whole number, 1 or greater")
    ids_T = np.asarray(previous, dtype=np.int64)
    if len(ids_T) < n:
        return ids_T[:0]
    windows = np.lib.stride_tricks.sliding_window_view(ids_T, n)
    begin = ids_T[len(ids_T) - n + 1 :]
    return np.unique(windows[(windows[:, :-1] == begin).all(axis=1), -1])


def banned(logits_V: np.ndarray, ids: Ids) -> np.ndarray:
    """-inf at `ids`; those outside of the vocabulary cannot be drawn anyway."""
    inside = _inside(ids, len(logits_V))
    return _put(logits_V, inside, np.full(len(inside), -np.inf))


def allowed_only(logits_V: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """-inf where `mask` is not True; what is beyond its end is not allowed."""
    row_V = np.full_like(logits_V, -np.inf)
    np.copyto(row_V[: len(mask)], logits_V[: len(mask)], where=mask)
    return row_V


def log_probabilities(logits_V: np.ndarray, id: int, k: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `id`, and the k most probable ids with theirs, the most probable first.

    Equal ones are in the order of their ids.
    """
    total = math.log(np.exp(logits_V - logits_V.max()).sum(dtype=np.float64)) + float(logits_V.max())
    k = min(k, len(logits_V))
    near = np.flatnonzero(logits_V >= np.partition(logits_V, -k)[-k]) if k else np.zeros(0, dtype=np.int64)
    first = near[np.argsort(-logits_V[near], kind="stable")[:k]]
    return float(logits_V[id]) - total, [(int(each), float(logits_V[each]) - total) for each in first]


def check_logits(logits_BV: np.ndarray) -> None:
    """NaN and +inf come out as the maximum of their row, and so does -inf if there is nothing else."""
    largest_B = logits_BV.max(axis=-1)
    if np.isfinite(largest_B).all():
        return
    if np.isneginf(largest_B).any():
        raise InputError("no token is left to choose from: every logit of a row is -inf")
    raise InputError("the model's logits are not finite (NaN or infinity): its weights are damaged or have diverged")


def best_ids(logits_SV: np.ndarray) -> list[int | None]:
    """The most probable id of each row, None for a row that `check_logits` would refuse: one look at all."""
    best_S = logits_SV.argmax(axis=-1)  # a NaN is the largest to it
    good_S = np.isfinite(logits_SV[np.arange(len(logits_SV)), best_S])
    return [best if good else None for best, good in zip(best_S.tolist(), good_S.tolist(), strict=True)]


def _inside(ids: Ids, n_vocab: int) -> np.ndarray:
    found = np.asarray(ids, dtype=np.int64)
    return found[(found >= 0) & (found < n_vocab)]


def _at(logits_V: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The logits of `ids`, in float64."""
    return logits_V[ids].astype(np.float64)


def _put(logits_V: np.ndarray, ids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy with these values at `ids`."""
    row_V = logits_V.copy()
    row_V[ids] = values
    return row_V
