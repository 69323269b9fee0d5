"""What changes logits before they are a distribution: guidance, biases, penalties, bans; and log-probabilities.

Pure functions on one row, (V,), in float32 or float64, and the ids that came before it. They return new logits.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tessera.errors import InputError, SettingError

Ids = Sequence[int] | np.ndarray


def guided(logits_BV: Tensor, negative_BV: Tensor, scale: float) -> Tensor:
    """log p(x | negative) + scale * (log p(x) - log p(x | negative)) (Sanchez et al. 2023).

    Classifier-free guidance: `negative_BV` are the logits of the same answer after another prompt. Scale 1 is the
    model's own distribution, 0 the other's; above 1 leads away from it.
    """
    own_BV, negative_BV = logits_BV.log_softmax(dim=-1), negative_BV.log_softmax(dim=-1)
    mixed_BV = negative_BV + scale * (own_BV - negative_BV)
    # Where either says that a token is impossible the difference is no number: the model's own word counts.
    return torch.where((own_BV == -math.inf) | (negative_BV == -math.inf), own_BV, mixed_BV)


def biased(logits_V: Tensor, bias: Mapping[int, float]) -> Tensor:
    """`bias` added to the logits of its ids."""
    n_vocab = len(logits_V)
    wrong = next((id for id in bias if not 0 <= id < n_vocab), None)
    if wrong is not None:
        raise InputError(f"logit_bias names the token id {wrong}, outside of the vocabulary of {n_vocab}")
    ids = np.array(list(bias), dtype=np.int64)
    return _put(logits_V, ids, _at(logits_V, ids) + np.array(list(bias.values())))


def repetition_penalty(logits_V: Tensor, previous: Ids, penalty: float) -> Tensor:
    """Tokens that have occurred: logit / penalty if it is positive, logit * penalty if not (Keskar et al. 2019, CTRL).

    Once for each token, however often it occurred.
    """
    if not 0.0 < penalty < math.inf:
        raise SettingError("repetition_penalty", penalty, "a number greater than 0")
    ids = np.unique(_inside(previous, len(logits_V)))
    seen = _at(logits_V, ids)
    return _put(logits_V, ids, np.where(seen > 0, seen / penalty, seen * penalty))


def occurrence_penalty(logits_V: Tensor, answer: Ids, presence: float, frequency: float) -> Tensor:
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


def banned(logits_V: Tensor, ids: Ids) -> Tensor:
    """-inf at `ids`; those outside of the vocabulary cannot be drawn anyway."""
    inside = _inside(ids, len(logits_V))
    return _put(logits_V, inside, np.full(len(inside), -np.inf))


def allowed_only(logits_V: Tensor, mask: np.ndarray) -> Tensor:
    """-inf where `mask` is not True; what is beyond its end is not allowed."""
    row_V = logits_V.detach().cpu().numpy().copy()
    row_V[: len(mask)][~mask] = -np.inf
    row_V[len(mask) :] = -np.inf
    return torch.from_numpy(row_V).to(logits_V.device)


def log_probabilities(logits_V: Tensor, id: int, k: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of `id`, and the k most probable ids with theirs, the most probable first.

    Equal ones are in the order of their ids.
    """
    row_V = logits_V.detach().cpu().numpy()
    total = math.log(np.exp(row_V - row_V.max()).sum(dtype=np.float64)) + float(row_V.max())
    k = min(k, len(row_V))
    near = np.flatnonzero(row_V >= np.partition(row_V, -k)[-k]) if k else np.zeros(0, dtype=np.int64)
    first = near[np.argsort(-row_V[near], kind="stable")[:k]]
    return float(row_V[id]) - total, [(int(each), float(row_V[each]) - total) for each in first]


def check_logits(logits_BV: Tensor) -> None:
    """NaN and +inf come out as the maximum of their row, and so does -inf if there is nothing else."""
    if logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32:  # NumPy is several times as fast there
        largest_B = torch.from_numpy(np.asarray(logits_BV.detach().numpy().max(axis=-1)))
    else:
        largest_B = logits_BV.amax(dim=-1)
    if torch.isfinite(largest_B).all():
        return
    if torch.isneginf(largest_B).any():
        raise InputError("no token is left to choose from: every logit of a row is -inf")
    raise InputError("the model's logits are not finite (NaN or infinity): its weights are damaged or have diverged")


def best_ids(logits_SV: Tensor) -> list[int | None]:
    """The most probable id of each row on a CPU, None for a row that `check_logits` would refuse: one look at all."""
    rows_SV = logits_SV.detach().numpy()
    best_S = rows_SV.argmax(axis=-1)  # a NaN is the largest to it
    good_S = np.isfinite(rows_SV[np.arange(len(rows_SV)), best_S])
    return [best if good else None for best, good in zip(best_S.tolist(), good_S.tolist(), strict=True)]


def _inside(ids: Ids, n_vocab: int) -> np.ndarray:
    found = np.asarray(ids, dtype=np.int64)
    return found[(found >= 0) & (found < n_vocab)]


def _at(logits_V: Tensor, ids: np.ndarray) -> np.ndarray:
    """The logits of `ids`, in float64."""
    if logits_V.device.type == "cpu":
        return logits_V.detach().numpy()[ids].astype(np.float64)
    return logits_V[torch.from_numpy(ids).to(logits_V.device)].double().cpu().numpy()


def _put(logits_V: Tensor, ids: np.ndarray, values: np.ndarray) -> Tensor:
    """A copy with these values at `ids`; on a CPU by NumPy, in one thread."""
    if logits_V.device.type == "cpu":
        row_V = logits_V.detach().numpy().copy()
        row_V[ids] = values
        return torch.from_numpy(row_V)
    new = torch.from_numpy(values).to(logits_V.device, logits_V.dtype)
    return logits_V.index_copy(0, torch.from_numpy(ids).to(logits_V.device), new)
